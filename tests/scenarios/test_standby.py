"""A hot standby: everything reads there, nothing writes; and a worker that follows a failover."""

import os
import subprocess
import threading
import time

import psycopg
import pytest
from conftest import MAJOR, WORKER, Database, Worker, clean_environment, create_database, refused, wait_until
from devkit.clusters import Cluster

HANDLER = """CREATE FUNCTION handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE sql AS $$
    WITH done AS (INSERT INTO effects SELECT i FROM unnest(ids) AS i) SELECT NULL::bigint, NULL::text, NULL::boolean WHERE false $$"""


class Pair:
    """A primary and a hot standby that has applied a transaction before its commit returns."""

    def __init__(self, primary, standby):
        self.primary = create_database(primary, "pair")
        self._run("migrate", self.primary)
        self.primary.run("CREATE TABLE effects (event_id bigint)")
        self.primary.run(HANDLER)
        self.primary.run("SELECT register_topic('t', 'handle')")
        standby.start(standby_of=primary)
        self.standby = Database(standby, "pair")
        # After the copy, so that the standby waits for nobody once it is the primary.
        self.primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.run("ALTER SYSTEM SET synchronous_commit = 'remote_apply'")
        self.primary.run("SELECT pg_reload_conf()")
        wait_until(lambda: self.primary.run("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"), what="a synchronous standby")

    @staticmethod
    def _run(command, db):
        return subprocess.run([WORKER, command], env=clean_environment() | {"DATABASE_URL": db.url}, capture_output=True, text=True, check=False, timeout=60)

    def on_standby(self, command):
        """Run one command of the worker's program against the standby."""
        return self._run(command, self.standby)

    @property
    def url(self):
        """Both servers, of which the one that takes writes is wanted."""
        near, far = self.primary.cluster, self.standby.cluster
        return f"postgresql://postgres:{near.password}@127.0.0.1:{near.port},127.0.0.1:{far.port}/pair?target_session_attrs=read-write"


@pytest.fixture
def pair(own_cluster):
    """A primary and its standby."""
    standby = Cluster(major=MAJOR, name=f"standby-{os.environ.get('PGSTEWARD_TEST_CLUSTER', MAJOR)}")
    standby.destroy()
    try:
        yield Pair(own_cluster, standby)
    finally:
        standby.destroy()


def fill(db):
    """Some of everything: waiting, done and failed events, discovery items, dirty scenes, a heartbeat."""
    db.run("SELECT count(*) FROM enqueue_events('t', array_fill('{}'::jsonb, ARRAY[10]))")
    db.run("SELECT enqueue_event('nobody', '{}')")
    db.run("SELECT p.* FROM (SELECT lease_token, array_agg(id) AS ids FROM lease_events(max_events => 6) GROUP BY 1) l, process_events(l.ids, l.lease_token) p")
    db.run("INSERT INTO interest_catalog (domain, category, tag) SELECT 'music', 'records', 'tag ' || i FROM generate_series(1, 3) i")
    db.run("SELECT enqueue_discovery_item(id) FROM interest_catalog")
    db.run("SELECT lease_discovery_items(1)")
    db.run("INSERT INTO scenes (name, owner_did) VALUES ('a', 'did:x')")
    db.run("SELECT worker_beat('w', 'h', 1, '0', now(), 'running', false, 0, 0)")


def test_a_hot_standby_reads_everything_and_refuses_writes(pair):
    fill(pair.primary)
    views = [row.name for row in pair.primary.run("SELECT relname AS name FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace ORDER BY 1")]
    assert {"vw_events_queue_health", "vw_discovery_queue_health", "vw_dead_letter_queue", "vw_trust_health", "vw_worker_health", "steward_health"} <= {*views}
    for view in views:
        rows = pair.primary.one(f'SELECT count(*) FROM (SELECT * FROM "{view}") AS v')
        assert pair.standby.one(f'SELECT count(*) FROM (SELECT * FROM "{view}") AS v') == rows, view
    ct = "SELECT status, sum(ct) FROM vw_events_queue_health GROUP BY 1 ORDER BY 1"
    assert pair.standby.run(ct) == pair.primary.run(ct)
    for command in ("status", "validate", "report", "stats", "health"):
        done = pair.on_standby(command)
        assert done.returncode in (0, 1) and "SQLSTATE" not in done.stderr, done.stderr
        assert done.stdout
    writes = ["enqueue_event('t')", "enqueue_events('t', ARRAY['{}'::jsonb])", "enqueue_events('t', ARRAY['{}'::jsonb], ARRAY['key'])", "lease_events()",
              "lease_events('t')", "enqueue_discovery_item((SELECT id FROM interest_catalog LIMIT 1))", "lease_discovery_items()", "trust_recompute()", "trust_propagate()",
              "worker_beat('v', 'h', 1, '0', now(), 'running', false, 0, 0)"]
    with pair.standby.connect() as connection:
        for write in writes:
            refused(connection, f"SELECT * FROM {write}", "25006", hint=False)
    done = subprocess.run([WORKER, "run", "--until-empty", "--connect-timeout", "2"], capture_output=True, text=True, check=False, timeout=60,
                          env=clean_environment() | {"DATABASE_URL": f"{pair.standby.url}?target_session_attrs=read-write"})
    assert done.returncode == 1, "a worker that wants a primary does not start on a standby"


def test_a_worker_follows_a_failover(pair):
    """The primary is gone in the middle of the work: nothing that was acknowledged is lost, nothing happens twice."""
    acknowledged, ending = [], threading.Event()

    def enqueue_until_the_end():
        try:
            with pair.primary.connect() as connection:
                while not ending.is_set():
                    acknowledged.append(connection.execute("SELECT enqueue_event('t')").fetchone()[0])
        except psycopg.OperationalError:
            return  # the last one is not acknowledged

    process = Worker(pair.url, "--lease-ttl", "2", "--queue-batch-size", "20", "--heartbeat-interval", "0.5")
    client = threading.Thread(target=enqueue_until_the_end)
    try:
        client.start()
        wait_until(lambda: pair.primary.one("SELECT count(*) FROM effects") > 200, 60, "work under way")
        pair.primary.cluster.stop(immediate=True)
        client.join(30)
        assert not client.is_alive() and process.process.poll() is None
        time.sleep(1)  # without any primary
        pair.standby.cluster.promote()
        new = pair.standby
        wait_until(lambda: new.one("SELECT count(*) FROM events_queue_live") == 0, 60, "an empty queue")
        assert process.process.poll() is None, process.output
        done = {row.id for row in new.run("SELECT id FROM events_queue WHERE status = 'done'")}
        assert {*acknowledged} <= done
        assert new.run("SELECT count(*) AS effects, count(DISTINCT event_id) AS events FROM effects") == [(len(done), len(done))]
        later = new.one("SELECT enqueue_event('t')")
        wait_until(lambda: new.run("SELECT FROM effects WHERE event_id = %s", (later,)), what="work on the new primary")
        assert process.stop() == 0, process.output
        assert new.one("SELECT state FROM worker_heartbeats") == "stopped"
    finally:
        ending.set()
        process.kill()
        client.join(30)
