"""The faults, each aimed at a process that this run has started, or at a backend of its own server."""

import os
import signal
import time
from collections import defaultdict

import psycopg
from queues import LEASE_SECONDS, QUEUES

RECOVERY_LIMIT = 60


class Injector:
    """Injects faults into a stage and measures how long each takes to heal."""

    def __init__(self, stage):
        self.stage, self.random = stage, stage.random
        self.injected = []
        self.recoveries, self.failed = [], []
        self._orphans = []  # (when, database, tokens): leases whose holder is gone
        self._paused = []  # (until, process)

    def inject(self, kind):
        """One fault."""
        self.injected.append(kind)
        getattr(self, "_" + kind.replace(" ", "_").replace("-", "_"))()

    def watch(self, seconds):
        """Let time pass, and note what heals meanwhile."""
        end = time.monotonic() + seconds
        while True:
            self._look()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(0.05, left))

    def finish(self):
        """Wait until nothing is left to heal."""
        end = time.monotonic() + RECOVERY_LIMIT
        while self._orphans or self._paused:
            self.watch(0.05)
            if time.monotonic() > end:
                self.failed += [f"leases in {database.name} were never taken over: {tokens}" for _, database, tokens in self._orphans]
                return

    def _look(self):
        now = time.time()
        for until, process in [entry for entry in self._paused if entry[0] <= now]:
            self._paused.remove((until, process))
            if process.paused:
                process.send(signal.SIGCONT)
                process.paused = False
        for database in {orphan[1] for orphan in self._orphans}:
            try:
                held = set().union(*_leases(database).values())
            except psycopg.OperationalError:
                continue
            for orphan in [orphan for orphan in self._orphans if orphan[1] is database and not orphan[2] & held]:
                self._orphans.remove(orphan)
                self.recoveries.append(time.time() - orphan[0])

    # -- processes -------------------------------------------------------------------------

    def _client_killed(self):
        clients = self.stage.of("consumer", "producer")
        self._kill(self.random.choices(clients, [4 if client.kind == "consumer" else 1 for client in clients])[0])

    def _worker_killed(self):
        self._kill(self.random.choice(self.stage.of("worker")))

    def _await_lease(self, process):
        """A little patience, so that most victims hold something."""
        end = time.monotonic() + 0.3
        while process.kind != "producer" and not process.paused and time.monotonic() < end:
            try:
                if process.pid in _leases(process.database):
                    return
            except psycopg.OperationalError:
                return
            time.sleep(0.003)

    def _kill(self, process):
        self._await_lease(process)
        pid, moment = process.pid, time.time()
        status = process.send(signal.SIGKILL, wait=True)
        if status != -signal.SIGKILL:
            self.failed.append(f"a {process.kind} had ended by itself with status {status}")
        process.start()
        self._orphan(moment, process.database, pid)

    def _process_stopped(self):
        process = self.random.choice(self.stage.of("consumer", "worker"))
        if not process.paused:
            self._await_lease(process)
            process.send(signal.SIGSTOP)
            process.paused = True
            self._paused.append((time.time() + LEASE_SECONDS + 0.6, process))
            self._orphan(time.time(), process.database, process.pid)

    def _orphan(self, moment, database, pid):
        try:
            tokens = _leases(database).get(pid)
            if tokens:
                self._orphans.append((moment, database, tokens))
        except psycopg.OperationalError:
            pass  # the server is away; the checker still sees what becomes of its leases

    # -- the server ------------------------------------------------------------------------

    def _backend_killed(self):
        pids = []
        while not pids:
            with psycopg.connect(self.stage.cluster.url("postgres"), autocommit=True) as connection:
                pids = [pid for pid, in connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname LIKE 'chaos%' AND application_name <> 'chaos-watch' ORDER BY pid")]
        pid = self.random.choice(pids)
        if os.readlink(f"/proc/{pid}/cwd") != str(self.stage.cluster.data):
            raise RuntimeError(f"process {pid} does not belong to {self.stage.cluster.folder.name}")
        moment = time.time()
        os.kill(pid, signal.SIGKILL)
        self._await_all(moment)

    def _postmaster_killed(self):
        moment, pid = time.time(), self.stage.cluster.pid
        os.kill(pid, signal.SIGKILL)
        while self.stage.cluster.pid == pid:
            time.sleep(0.005)
        self.stage.cluster.start()
        self._await_all(moment)

    def _await_all(self, moment):
        """Until something was completed in each queue of each database after that."""
        waiting = [(database, queue) for database in (self.stage.with_log, self.stage.with_workers) for queue in QUEUES.values()]
        self._await(moment, waiting, "SELECT id FROM {done} WHERE updated_at > to_timestamp(%s) LIMIT 1", lambda: (moment,))

    # -- the network -----------------------------------------------------------------------

    def _connections_reset(self):
        proxy, moment = self.random.choice(self.stage.proxies), time.time()
        proxy.reset()
        self._await_behind(proxy, moment)

    def _connections_half_open(self):
        proxy, length = self.random.choice(self.stage.proxies), self.random.uniform(0.5, 3)
        proxy.forget()
        self.watch(length)
        proxy.remember()
        self._await_behind(proxy, time.time())

    def _network_delayed(self):
        proxy, length, delay = self.random.choice(self.stage.proxies), self.random.uniform(1, 3), self.random.uniform(0.05, 1.5)
        proxy.delay(delay)
        self.watch(length)
        proxy.delay(0)
        self._await_behind(proxy, time.time())

    def _await_behind(self, proxy, moment):
        """Until a consumer behind the proxy has completed something in each queue after that."""
        def pids():
            return moment, [str(process.pid) for process in self.stage.of("consumer") if process.proxy is proxy]
        self._await(moment, [(self.stage.with_log, queue) for queue in QUEUES.values()],
                    "SELECT id FROM {done} WHERE updated_at > to_timestamp(%s) AND split_part(leased_by, '-', 2) = ANY (%s) LIMIT 1", pids)

    def _await(self, moment, waiting, question, parameters):
        end = time.monotonic() + RECOVERY_LIMIT
        while waiting:
            self._look()
            database, queue = waiting[-1]
            try:
                found = database.run(question.format(done=queue.done), *parameters())
            except psycopg.OperationalError:
                found = False
            if found:
                waiting.pop()
                continue
            if time.monotonic() > end:
                self.failed.append(f"nothing was completed in {queue.name} of {database.name} for {RECOVERY_LIMIT} s after: {self.injected[-1]}")
                return
            time.sleep(0.02)
        self.recoveries.append(time.time() - moment)


def _leases(database):
    """The leases that are held, by the process ids in the names under which clients and workers lease: pid -> tokens."""
    union = " UNION ".join(f"SELECT leased_by, lease_token FROM {queue.live} WHERE status = '{queue.leased}'" for queue in QUEUES.values())
    leases = defaultdict(set)
    for name, token in database.run(union):
        for part in filter(str.isdigit, name.split("-")):
            leases[int(part)].add(token)
    return leases
