"""What a piece of work costs: wall clock, CPU time and write-ahead log of the server, load of the machine beside it."""

import os
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """One measured run."""

    wall_ms: float
    cpu_ms: float
    load: float

    def as_json(self):
        """For the results file."""
        return {key: round(value, 3) for key, value in asdict(self).items()}


def _stat(pid):
    """The fields of /proc/PID/stat after the name: index 10 is utime, 12 cutime."""
    return [int(word) for word in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1:]]


def _cpu_ms(backend, postmaster):
    """CPU time of a backend, and of the postmaster's ended children: its parallel workers are among them."""
    own, ended = Path(f"/proc/{backend}/schedstat"), _stat(postmaster)
    own_ms = int(own.read_text().split()[0]) / 1e6 if own.exists() else sum(_stat(backend)[10:12]) * TICK_MS
    return own_ms + sum(ended[12:14]) * TICK_MS


def measure(connection, postmaster, work):
    """Run `work`, return what it returns and what it cost."""
    backend, load = connection.info.backend_pid, os.getloadavg()[0]
    cpu, began = _cpu_ms(backend, postmaster), time.perf_counter()
    result = work(connection)
    wall = (time.perf_counter() - began) * 1000
    return result, Cost(wall, _cpu_ms(backend, postmaster) - cpu, load)


def median(costs):
    """The median of each part of some costs."""
    return Cost(*(statistics.median(getattr(cost, part) for cost in costs) for part in ("wall_ms", "cpu_ms", "load")))


def percentile(values, share):
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def _ended(pid):
    """Tell whether a process is gone or waits to be counted among its parent's ended children."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _own_cpu_ms(pid):
    """CPU time of a process that may end at any moment."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6
    except OSError:
        return 0.0


@dataclass
class Spent:
    """What a piece of work has cost everybody."""

    wall_ms: float
    cpu_ms: float
    client_ms: float
    wal_bytes: int
    load: float


class Meter:
    """What the whole server spends, with every process of it, and the clients that this program runs."""

    def __init__(self, server):
        self.server, self.monitor = server, server.connect("postgres")

    def _sessions(self):
        """The clients of all databases."""
        return {pid for (pid,) in self.monitor.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")}

    def _cpu_ms(self):
        """CPU time of all processes of the server, read while none of them ends."""
        postmaster = self.server.cluster.pid
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children")
        while True:
            alive = children.read_text().split()
            spent = sum(_stat(postmaster)[10:14]) * TICK_MS + sum(map(_own_cpu_ms, alive))
            if children.read_text().split() == alive and not any(_ended(pid) for pid in alive):
                return spent
            time.sleep(0.01)

    def _read(self):
        """What has been spent until now."""
        wal = self.monitor.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()[0]
        clients = resource.getrusage(resource.RUSAGE_CHILDREN)
        return [time.perf_counter() * 1000, self._cpu_ms(), (clients.ru_utime + clients.ru_stime) * 1000, wal]

    def measure(self, work):
        """Run `work`; return what it returns and what was spent until its sessions were gone."""
        load, before, began = os.getloadavg()[0], self._sessions(), self._read()
        result = work()
        while self._sessions() - before:
            time.sleep(0.01)
        return result, Spent(*(now - then for now, then in zip(self._read(), began)), load)
