"""What a piece of work costs: wall clock, CPU time of the server, load of the machine beside it."""

import os
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
