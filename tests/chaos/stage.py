"""What runs while faults are injected: two databases, two proxies, clients with logs, and real workers."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import history
import psycopg
from checker import Row, check
from clients import Clients
from proxy import Proxy
from psycopg.types.json import Jsonb
from queues import LEASE_SECONDS, QUEUES, TOPIC

ROOT = Path(__file__).resolve().parents[2]
WORKER = os.environ.get("PGSTEWARD_WORKER", str(ROOT / "target/release/pgsteward"))
TEMPLATE = "chaos_template"
CONSUMERS, WORKERS = 3, 3
RATE = 60  # keys per second and producer
WORKER_FLAGS = ("--lease-ttl", str(LEASE_SECONDS), "--queue-batch-size", "20", "--queue-concurrency", "1",
                "--discovery-lease-ttl", str(LEASE_SECONDS), "--statement-timeout", "5",
                "--trust-recompute-timeout", "1", "--heartbeat-interval", "1", "--drain-timeout", "10")
QUICK_RETRY = Jsonb({"max_attempts": 100, "retry_base": "50 milliseconds", "retry_cap": "500 milliseconds"})

SETUP = (
    "CREATE EXTENSION pgsteward CASCADE",
    "SELECT * FROM steward_migrate()",
    # Not every build of PostgreSQL brings it along.
    "DO $$ BEGIN IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'amcheck') THEN CREATE EXTENSION amcheck; END IF; END $$",
    "CREATE TABLE chaos_effects (queue text NOT NULL, id bigint NOT NULL, token uuid)",
)
# The workers' effects: a row per event that a handler was called for and did not refuse, and one per discovery item that ended in done.
# Both take a little while, so that a kill finds something in work.
WORKERS_SETUP = (
    """CREATE FUNCTION chaos_handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE sql AS $$
           WITH work AS MATERIALIZED (SELECT pg_sleep(random() * 0.03)),
                chosen AS MATERIALIZED (SELECT i, random() < 0.02 AS refused FROM work, unnest(ids) AS i),
                effects AS (INSERT INTO chaos_effects SELECT 'events', i FROM chosen WHERE NOT refused)
           SELECT i, 'not this time', true FROM chosen WHERE refused $$""",
    """CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN INSERT INTO chaos_effects VALUES ('discovery', NEW.id); PERFORM pg_sleep(random() * 0.003); RETURN NULL; END $$""",
    "CREATE TRIGGER chaos_note AFTER INSERT ON marketplace_discovery_queue_done FOR EACH ROW EXECUTE FUNCTION chaos_note()",
)
CORRUPTION = """
    SELECT c.relname, bad.msg FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
           LATERAL verify_heapam(c.oid) AS bad WHERE c.relkind = 'r' AND n.nspname = 'public'
"""
INDEXES = """
    SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'i' AND a.amname = 'btree' AND n.nspname = 'public' AND c.relpersistence = 'p'
"""


def prepare(cluster):
    """Make the database that every phase copies."""
    with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {TEMPLATE} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    with psycopg.connect(cluster.url(TEMPLATE), autocommit=True) as connection:
        for statement in SETUP:
            connection.execute(statement)


class Process:
    """A place in the cast: whenever its process is killed, another one takes it."""

    def __init__(self, stage, kind, database, proxy, **arguments):
        self.stage, self.kind, self.database, self.proxy, self.arguments = stage, kind, database, proxy, arguments
        self.pid, self.paused = None, False
        self.start()

    def start(self):
        """Begin, behind its proxy; a client with random numbers of its own."""
        url = self.stage.cluster.url(self.database.name).replace(f":{self.stage.cluster.port}/", f":{self.proxy.port}/")
        seed = {} if self.kind == "worker" else {"seed": self.stage.random.getrandbits(32)}
        self.pid = self.stage.clients.start(self.kind, url=url, **seed, **self.arguments)
        self.paused = False

    def send(self, number, wait=False):
        """A signal; with wait, the exit status."""
        return self.stage.clients.signal(self.pid, number, wait)


class Database:
    """One of the two databases, watched through a connection that no proxy cuts."""

    def __init__(self, cluster, name, folder):
        self.cluster, self.name, self.history, self._connection = cluster, name, folder / name, None
        for queue in QUEUES:
            (self.history / queue).mkdir(parents=True)
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")

    def run(self, sql, *parameters):
        """The rows of a statement."""
        try:
            if self._connection is None:
                self._connection = psycopg.connect(self.cluster.url(self.name), autocommit=True, connect_timeout=2, application_name="chaos-watch")
            cursor = self._connection.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.OperationalError:
            self.close()
            raise

    def close(self):
        """Let go of the connection."""
        if self._connection:
            self._connection.close()
        self._connection = None


class Stage:
    """The cast of one phase."""

    def __init__(self, cluster, folder, random):
        self.cluster, self.random = cluster, random
        self.with_log = Database(cluster, "chaos_clients", folder)
        self.with_workers = Database(cluster, "chaos_workers", folder)
        for database, handler in ((self.with_log, None), (self.with_workers, "chaos_handle")):
            for statement in WORKERS_SETUP if handler else ():
                database.run(statement)
            database.run("SELECT register_topic(%s, %s::regproc)", TOPIC, handler)
            for topic in (TOPIC, "marketplace.discovery"):
                database.run("SELECT configure_topic(%s, %s)", topic, QUICK_RETRY)
        self.clients = Clients()
        self.proxies = [Proxy(cluster.port), Proxy(cluster.port)]
        self.processes = []
        for queue in QUEUES:
            for database in (self.with_log, self.with_workers):
                self._add("producer", database, queue=queue, folder=str(database.history / queue), rate=RATE)
            for _ in range(CONSUMERS):
                self._add("consumer", self.with_log, queue=queue, folder=str(self.with_log.history / queue))
        for _ in range(WORKERS):
            self._add("worker", self.with_workers, command=[WORKER, "run", *WORKER_FLAGS], log=str(self.with_workers.history / "workers.log"))

    def _add(self, kind, database, **arguments):
        self.processes.append(Process(self, kind, database, self.proxies[len(self.of(kind)) % 2], **arguments))

    def of(self, *kinds):
        """The processes of these kinds."""
        return [process for process in self.processes if process.kind in kinds]

    def settle(self, limit=60):
        """End the producers, let everything be consumed, end the rest; what did not end well."""
        for process in self.processes:
            if process.paused:
                process.send(signal.SIGCONT)
                process.paused = False
        failed = self._end("producer")
        end = time.monotonic() + limit
        while time.monotonic() < end and not self.empty():
            time.sleep(0.1)
        return failed + self._end("consumer", "worker")

    def _end(self, *kinds):
        ended = [(process.kind, process.send(signal.SIGTERM, wait=True)) for process in self.of(*kinds)]
        return [f"a {kind} ended with status {status}" for kind, status in ended if status]

    def empty(self):
        """True if every item has ended; False as well while the server cannot be asked."""
        with suppress(psycopg.OperationalError):
            return not any(database.run(f"SELECT id FROM {queue.live} LIMIT 1") for database in (self.with_log, self.with_workers) for queue in QUEUES.values())
        return False

    def verdicts(self):
        """The checker's verdict on each queue of each database."""
        verdicts = {}
        for database, logged in ((self.with_log, True), (self.with_workers, False)):
            effects = database.run("SELECT queue, id, token::text FROM chaos_effects")
            for queue in QUEUES.values():
                rows = [Row(*row) for row in database.run(queue.rows)]
                mine = [(item, token) for name, item, token in effects if name == queue.name]
                verdicts[f"{queue.name}, {'clients' if logged else 'workers'}"] = check(
                    history.read(database.history / queue.name), rows, mine, logged=logged)
        return verdicts

    def damage(self):
        """What amcheck and the health views find: damaged rows and wrong counts. A damaged index raises."""
        found = []
        for database in (self.with_log, self.with_workers):
            if database.run("SELECT FROM pg_extension WHERE extname = 'amcheck'"):
                database.run(INDEXES)
                found += [f"{relation} in {database.name}: {text}" for relation, text in database.run(CORRUPTION)]
            for queue in QUEUES.values():
                shown, counted = ({status: int(ct) for status, ct in database.run(f"SELECT status, {counter} FROM {source} GROUP BY status") if ct}
                                  for counter, source in (("sum(ct)", queue.health), ("count(*)", f"({queue.rows}) AS q")))
                if shown != counted:
                    found.append(f"{queue.health} in {database.name} says {shown}, and there are {counted}")
        return found

    def close(self):
        """End what is left."""
        self.clients.close()
        for proxy in self.proxies:
            proxy.close()
        for database in (self.with_log, self.with_workers):
            database.close()
