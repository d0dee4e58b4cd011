"""Producers, consumers and workers: processes that are killed at any moment, and a parent that starts and kills them.

The parent reads a JSON command per line and answers each with a line. It is the only one to signal its children, so no process id can
ever mean somebody else; when its input ends, so do they.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid

import psycopg
from history import History
from psycopg.rows import namedtuple_row
from queues import LEASE_SECONDS, QUEUES, doomed

ANSWER_LIMIT = 4.0  # a call that takes longer is given up: the other end may be gone without a word
SESSION = "-c statement_timeout=3s -c lock_timeout=2s -c idle_in_transaction_session_timeout=500ms"
LOST = ("08", "57P")  # the connection or the server ended; what it had committed by then is unknown
FAULTS = (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout)


class _Late(psycopg.OperationalError):
    """No answer in time."""


@contextlib.contextmanager
def _in_time():
    signal.setitimer(signal.ITIMER_REAL, ANSWER_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _refused(error):
    """True if the server said no, so that nothing was changed."""
    return bool(error.sqlstate) and not error.sqlstate.startswith(LOST)


class Client:
    """One process with its own log and its own random numbers."""

    def __init__(self, kind, url, queue, folder, seed):
        self.name = f"{kind}-{os.getpid()}-{queue}"
        self.url, self.queue = url, QUEUES[queue]
        self.random, self.history = random.Random(seed), History(folder, self.name)
        self.stopping = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGALRM, self._late)

    def _stop(self, *_):
        self.stopping = True

    @staticmethod
    def _late(*_):
        raise _Late("no answer in time")

    def run(self):
        """Work until told to stop; connect again, a little later each time, whenever the connection is lost."""
        wait = 0.05
        while not self.stopping:
            connection = None
            try:
                with _in_time():
                    connection = psycopg.connect(self.url, autocommit=True, row_factory=namedtuple_row, connect_timeout=2, options=SESSION,
                                                 application_name=self.name)
                while not self.stopping:
                    self.work(connection)
                    wait = 0.05
            except psycopg.Error as error:
                if not isinstance(error, FAULTS) or isinstance(error, psycopg.errors.DeadlockDetected):
                    raise  # a defect
                time.sleep(self.random.uniform(0, wait))
                wait = min(wait * 2, 0.5)
            finally:
                if connection:
                    connection.close()

    def call(self, connection, step, sql, **parameters):
        """Run a statement that is its own transaction; note in the log how it failed."""
        try:
            with _in_time():
                return connection.execute(sql, parameters).fetchall()
        except psycopg.Error as error:
            self.history.end(step, "refused" if _refused(error) else "unknown")
            raise

    @contextlib.contextmanager
    def transaction(self, connection, step, keep=True):
        """A transaction whose outcome goes to the log, with what the block has put into the dictionary."""
        outcome, seen = "refused", {}
        try:
            with _in_time():
                connection.execute("BEGIN")
                yield seen
                outcome = "unknown" if keep else "rolled back"  # until it is answered
                connection.execute("COMMIT" if keep else "ROLLBACK")
                outcome = "ok" if keep else "rolled back"
        except psycopg.Error as error:
            if outcome == "unknown" and _refused(error):
                outcome = "refused"
            raise
        finally:
            self.history.end(step, outcome, **seen)


class Producer(Client):
    """Enqueues batches of new keys; takes some back by a rollback, repeats some whose outcome is unknown."""

    def __init__(self, *, rate, **arguments):
        super().__init__("producer", **arguments)
        self.rate, self.lanes = rate, [f"{self.name}-{n}" for n in range(3)]

    def work(self, connection):
        """One batch."""
        keys = [str(uuid.UUID(int=self.random.getrandbits(128))) for _ in range(self.random.randint(1, 20))]
        lanes = None
        if self.queue.name == "events":
            lane = self.random.choice(self.lanes) if self.random.random() < 0.1 else None
            lanes = [lane] * len(keys)
        self._enqueue(connection, keys, lanes, keep=self.random.random() > 0.05)
        time.sleep(self.random.uniform(0, 2 * len(keys) / self.rate))

    def _enqueue(self, connection, keys, lanes, keep=True):
        step = self.history.begin("enqueue", keys=keys, lanes=lanes)
        with self.transaction(connection, step, keep) as seen:
            for statement in self.queue.enqueue:
                cursor = connection.execute(statement, {"keys": keys, "lanes": lanes})
            seen["ids"] = [row.id for row in cursor.fetchall()]
        if keep and self.queue.name == "events" and self.random.random() < 0.05:
            self._repeat(connection, keys, lanes)

    def _repeat(self, connection, keys, lanes):
        """The same keys again name the same events; those that failed for good would begin anew, so they are left out."""
        again = [n for n, key in enumerate(keys) if not doomed(key)]
        if again:
            self._enqueue(connection, [keys[n] for n in again], [lanes[n] for n in again])


class Consumer(Client):
    """Leases, works, completes; sometimes too slowly."""

    def __init__(self, **arguments):
        super().__init__("consumer", **arguments)

    def work(self, connection):
        """One batch."""
        asked = self.random.randint(1, 20)
        step = self.history.begin("claim", asked=asked)
        rows = self.call(connection, step, self.queue.lease, asked=asked, worker=self.name)
        token = str(rows[0].token) if rows else None
        self.history.end(step, "ok", token=token, items=[(row.id, row.key, row.attempts, row.expires) for row in rows])
        if not rows:
            time.sleep(self.random.uniform(0.02, 0.1))
            return
        time.sleep(self._length_of_work(rows))
        if self.random.random() < 0.1:
            self._extend(connection, [row.id for row in rows], token)
        self._end(connection, rows, token)

    def _length_of_work(self, rows):
        if self.random.random() < 0.005:
            return LEASE_SECONDS + 0.3  # too slow
        if any(row.attempts > 1 for row in rows) and self.random.random() < 0.8:
            return self.random.uniform(0.5, 1.8)  # whoever had it before may come back meanwhile
        return self.random.uniform(0, 0.04)

    def _extend(self, connection, ids, token):
        step = self.history.begin("extend", ids=ids, token=token)
        rows = self.call(connection, step, self.queue.extend, ids=ids, token=token)
        self.history.end(step, "ok", held=[row.id for row in rows if row.held], expires={row.id: row.expires for row in rows})

    def _end(self, connection, rows, token):
        retried = [row.id for row in rows if not doomed(row.key) and self.random.random() < 0.01]
        for ids, retryable in ((retried, True), ([row.id for row in rows if doomed(row.key)], False)):
            if ids:
                self._fail(connection, ids, token, retryable)
        rest = [row.id for row in rows if not doomed(row.key) and row.id not in retried]
        while rest:
            size = self.random.randint(1, len(rest))
            part, rest = rest[:size], rest[size:]
            step = self.history.begin("effect", ids=part, token=token)
            self.history.end(step, "ok")
            (self._complete_with_effect if self.random.random() < 0.3 else self._complete)(connection, part, token)
            time.sleep(self.random.uniform(0, 0.02))

    def _fail(self, connection, ids, token, retryable):
        step = self.history.begin("fail", ids=ids, token=token, retryable=retryable)
        rows = self.call(connection, step, self.queue.fail, ids=ids, token=token, retryable=retryable)
        self.history.end(step, "ok", held=[row.id for row in rows if row.held], run_at={row.id: row.run_at for row in rows})

    def _complete(self, connection, ids, token):
        step = self.history.begin("complete", ids=ids, token=token, way="ack")
        rows = self.call(connection, step, self.queue.ack, ids=ids, token=token)
        self.history.end(step, "ok", held=[row.id for row in rows if row.held])

    def _complete_with_effect(self, connection, ids, token):
        """An effect in the database and the completion, in one transaction."""
        step = self.history.begin("complete", ids=ids, token=token, way="hold")
        with self.transaction(connection, step) as seen:
            mine = [row.id for row in connection.execute(self.queue.hold, {"ids": ids, "token": token}).fetchall()]
            connection.execute("INSERT INTO chaos_effects SELECT %s, i, %s FROM unnest(%s::bigint[]) i", (self.queue.name, token, mine))
            time.sleep(self.random.uniform(0, 0.01))
            seen["held"] = [row.id for row in connection.execute(self.queue.ack, {"ids": ids, "token": token}).fetchall() if row.held] if mine else []
            if set(seen["held"]) != set(mine):
                raise AssertionError(f"{mine} were held, and {seen['held']} acknowledged")


def _worker(url, command, log):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "TRUST_", "DATABASE_", "LISTEN_", "RUST_"))}
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.execve(command[0], command, environment | {"DATABASE_URL": url})


KINDS = {"producer": lambda **arguments: Producer(**arguments).run(), "consumer": lambda **arguments: Consumer(**arguments).run(), "worker": _worker}


def _start(kind, arguments):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        KINDS[kind](**arguments)
        status = 0
    finally:
        if status:
            sys.excepthook(*sys.exc_info())
        os._exit(status)


def _parent():
    children = set()
    try:
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "start":
                pid = _start(command["kind"], command["arguments"])
                children.add(pid)
                answer = {"pid": pid}
            else:
                pid = command["pid"]
                os.kill(pid, command["signal"])
                status = os.waitpid(pid, 0)[1] if command["wait"] else 0
                children -= {pid} if command["wait"] else set()
                answer = {"status": os.waitstatus_to_exitcode(status)}
            print(json.dumps(answer), flush=True)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


class Clients:
    """The parent, as seen by the run."""

    def __init__(self):
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, **command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, kind, **arguments):
        """Start a process; its id."""
        return self._ask(do="start", kind=kind, arguments=arguments)["pid"]

    def signal(self, pid, number, wait=False):
        """Signal a process; with wait, its exit status."""
        return self._ask(do="signal", pid=pid, signal=number, wait=wait)["status"]

    def close(self):
        """End them all."""
        self._process.stdin.close()
        self._process.wait(10)


if __name__ == "__main__":
    _parent()
