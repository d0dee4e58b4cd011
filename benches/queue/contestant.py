"""What a contestant has to be able to do. The cases measure; a contestant only says how."""

import json
import threading
import time
from contextlib import contextmanager

from benchkit.programs import STOP, Outcome, pgbench

PAYLOAD = json.dumps({"order": 1234567, "note": "no more to say"})
CHUNK = 5000


def array(count, payload=PAYLOAD):
    """Payloads as an SQL literal of an array."""
    quoted = '"' + payload.replace('"', r"\"") + '"'
    return "'{" + ",".join([quoted] * count) + "}'::jsonb[]"


class Database:
    """A database for one run of one contestant."""

    def __init__(self, server, name):
        self.server, self.name = server, name

    def connect(self):
        """A session in autocommit."""
        return self.server.connect(self.name)

    def value(self, statement, *parameters):
        """The one value of a statement."""
        with self.connect() as connection:
            return connection.execute(statement, parameters or None).fetchone()[0]

    def environment(self):
        """The variables of a client."""
        return self.server.environment(self.name)


class Contestant:
    """One queue in one form. `family` selects it on the command line; forms of a family share the code."""

    family, name = "", ""
    copy = None          # COPY of {file} into the queue, if it can
    batches = True       # claims batches; otherwise one item after the other
    most_clients = 16    # of one process or one queue
    sample = None        # drains only so many, because it takes so long
    tables = ""          # what to ANALYZE after filling; all by default

    def install(self):
        """Provide the package; returns its version."""
        raise NotImplementedError

    def create(self, database):
        """Create the schema and the queue."""
        raise NotImplementedError

    def one(self, payload):
        """A statement that enqueues an item; the payload is an SQL expression of type jsonb."""
        raise NotImplementedError

    def many(self, payloads):
        """A statement that enqueues items; the payloads are an SQL expression of type jsonb[]."""
        raise NotImplementedError

    def fill(self, database, items, batch):
        """Enqueue in bulk, as the contestant does it best."""
        del batch
        with database.connect() as connection:
            for done in range(0, items, CHUNK):
                connection.execute(self.many(array(min(CHUNK, items - done))))

    def left(self, connection):
        """How many items are not finished."""
        raise NotImplementedError

    def drain(self, database, items, clients, batch):
        """Work until nothing is left; returns the Outcome."""
        raise NotImplementedError

    def latency(self, database, samples, rate):
        """Milliseconds from before the enqueueing to the handler, of so many items at so many a second."""
        seen, ready = [], threading.Event()
        worker = threading.Thread(target=self.wait_for, args=(database, samples, seen, ready), daemon=True)
        worker.start()
        ready.wait(30)
        with database.connect() as connection:
            produce(connection, self, samples, rate)
        worker.join(30)
        return seen

    def wait_for(self, database, samples, seen, ready):
        """Take items as they come until so many were seen, and append the milliseconds that each took."""
        raise NotImplementedError


def produce(connection, contestant, samples, rate):
    """Enqueue items at a rate, each with the time of the client's clock."""
    statement = contestant.one("%s::jsonb")
    for number in range(samples):
        time.sleep((0.5 + number * 0.618 % 1) / rate)
        connection.execute(statement, [json.dumps({"sent": time.time()})])


def taken(payload):
    """Milliseconds since an item was sent."""
    return (time.time() - payload["sent"]) * 1000


class SqlContestant(Contestant):
    """A queue that is worked on by SQL alone: pgbench is its client."""

    def lease(self, batch):
        """A query whose one row has ids and n, their number, and whatever `finish` needs."""
        raise NotImplementedError

    def finish(self):
        """A statement that finishes :ids."""
        raise NotImplementedError

    def drain(self, database, items, clients, batch):
        """Lease and finish in two commits until nothing is there."""
        text = f"{self.lease(batch)} \\gset\n\\if :n = 0\n{STOP}\n\\endif\n{self.finish()};\n"
        return Outcome(items, pgbench(database.server, database.name, text, clients).seconds)


@contextmanager
def listening(database, channel):
    """Another session that listens and does nothing else."""
    stop = threading.Event()

    def listen():
        with database.connect() as connection:
            connection.execute(f'LISTEN "{channel}"')
            ready.set()
            while not stop.is_set():
                for _ in connection.notifies(timeout=0.2):
                    pass

    ready, thread = threading.Event(), threading.Thread(target=listen, daemon=True)
    thread.start()
    ready.wait(10)
    yield
    stop.set()
    thread.join()
