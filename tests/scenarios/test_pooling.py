"""Behind a pooler in transaction mode, where every transaction may run in another session: nothing depends on one, nothing is left in one."""

import contextlib
import signal
import time

import psycopg
import pytest
from conftest import in_parallel, wait_until
from devkit.pooler import Pooler
from psycopg.rows import namedtuple_row

PASSWORD = "pooled word"
SESSIONS = 4
HANDLER = """CREATE TABLE effects (event_id bigint, n int);
GRANT INSERT ON effects TO steward_worker;
CREATE FUNCTION handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE sql AS $$
    WITH done AS (INSERT INTO effects SELECT i, (p ->> 'n')::int FROM unnest(ids, payloads) AS e(i, p))
    SELECT NULL::bigint, NULL::text, NULL::boolean WHERE false
$$;
SELECT register_topic('t', 'handle')"""
SETTINGS = ("search_path", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "default_transaction_isolation",
            "synchronous_commit", "session_authorization", "role")


class Pooled:
    """The test's database behind the pooler, for the roles of a worker and of an application."""

    def __init__(self, db, pooler):
        self.db, self.pooler = db, pooler
        for statement in HANDLER.split(";\n"):
            db.run(statement)

    def url(self, role):
        """Where a role connects to the pooler."""
        return self.pooler.url(self.db.name, role, PASSWORD)

    def connect(self, role="pooled_app"):
        """A client of the pooler."""
        return psycopg.connect(self.url(role), autocommit=True, prepare_threshold=None, row_factory=namedtuple_row)

    def sessions(self, role):
        """The server sessions of a role, each looked at once: as many clients as sessions, in transactions at the same time."""
        with contextlib.ExitStack() as stack:
            seen = {}
            for _ in range(SESSIONS):
                client = stack.enter_context(self.connect(role))
                client.autocommit = False
                shown = ", ".join(f"current_setting('{name}')" for name in SETTINGS)
                row = client.execute(f"""SELECT pg_backend_pid(), ARRAY[{shown}], (SELECT count(*) FROM pg_prepared_statements) AS prepared,
                    (SELECT count(*) FROM pg_listening_channels()) AS channels, (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory') AS locks""").fetchone()
                seen[row[0]] = (tuple(row[1]), *row[2:])
            return seen


@pytest.fixture
def pooled(db):
    """The test's database behind a pooler."""
    roles = {"pooled_worker": "steward_worker", "pooled_app": "steward_app"}
    for role, group in roles.items():
        db.run(f"DROP ROLE IF EXISTS {role}")
        db.run(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' IN ROLE {group}")
    pooler = Pooler(db.cluster, SESSIONS, dict.fromkeys(roles, PASSWORD))
    try:
        yield Pooled(db, pooler)
    finally:
        pooler.stop()
        for role in roles:
            db.run(f"DROP ROLE {role}")


@pytest.fixture
def start(pooled, worker):
    """Starts workers behind the pooler that listen beside it."""
    def start(*arguments, **environment):
        direct = pooled.db.url.replace("postgres:" + pooled.db.cluster.password, "pooled_worker:" + PASSWORD.replace(" ", "%20"))
        return worker(*arguments, url=pooled.url("pooled_worker"), **{"LISTEN_URL": direct, **environment})
    return start


def listeners(db):
    """Server sessions whose last statement was LISTEN."""
    return db.run("SELECT usename FROM pg_stat_activity WHERE query = 'LISTEN pgsteward' AND datname = current_database()")


def test_the_whole_life_of_both_queues(pooled, start):
    db, clients, each = pooled.db, 4, 150
    interests = [row.id for row in db.run("INSERT INTO interest_catalog (domain, category, tag) SELECT 'music', 'records', 'tag ' || i FROM generate_series(1, 60) i RETURNING id")]
    workers = [start("--queue-batch-size", "20", "--poll-interval", "0.2") for _ in range(2)]

    def enqueue(client):
        with pooled.connect() as connection:
            connection.execute(f"SET search_path = pg_catalog, client_{client}")
            for n in range(each):
                connection.execute("SELECT public.enqueue_event('t', jsonb_build_object('n', %s::int), %s)", (client * each + n, f"key-{client}-{n}"))
                connection.execute("SELECT public.enqueue_event('t', jsonb_build_object('n', %s::int), %s)", (client * each + n, f"key-{client}-{n}"))
                if n % 10 == 0:
                    connection.execute("SELECT public.enqueue_event('t', '{\"n\": \"not a number\"}')")
                    connection.execute("SELECT public.enqueue_discovery_item(%s)", (interests[(client * each + n) // 10],))

    in_parallel(*(lambda client=client: enqueue(client) for client in range(clients)))
    total = clients * each
    wait_until(lambda: db.one("SELECT count(*) FROM events_queue_live") == 0, 60, "no event left")
    wait_until(lambda: db.one("SELECT count(*) FROM marketplace_discovery_queue_live") == 0, 60, "no discovery item left")
    assert db.run("SELECT status, count(*) FROM events_queue GROUP BY 1 ORDER BY 1") == [("done", total), ("error", clients * each // 10)]
    assert db.run("SELECT count(*) AS effects, count(DISTINCT event_id) AS events, count(DISTINCT n) AS numbers FROM effects") == [(total, total, total)]
    assert db.run("SELECT status, count(*) FROM marketplace_discovery_queue GROUP BY 1") == [("done", clients * each // 10)]
    leased_by = db.one("SELECT count(DISTINCT leased_by) FROM events_queue WHERE status = 'done'")
    assert leased_by == 2, "both workers work"
    for process in workers:
        assert process.stop() == 0, process.output


def test_the_worker_leaves_nothing_in_a_session(pooled, start):
    before = pooled.sessions("pooled_worker")
    process = start("--poll-interval", "0.1", TRUST_RECOMPUTE_INTERVAL_SEC="0.2")
    pooled.db.run("SELECT count(*) FROM enqueue_events('t', ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, 500) i))")
    wait_until(lambda: pooled.db.one("SELECT count(*) FROM effects") == 500, what="the effects")
    used = pooled.sessions("pooled_worker")
    assert len(used) == SESSIONS and {*used.values()} == {*before.values()} and len({*used.values()}) == 1
    assert next(iter(used.values()))[1:] == (0, 0, 0)
    assert process.stop() == 0, process.output


def test_what_others_left_in_a_session_does_no_harm(pooled, start):
    with contextlib.ExitStack() as stack:
        for _ in range(SESSIONS):
            client = stack.enter_context(pooled.connect("pooled_worker"))
            client.execute("BEGIN")
            client.execute("SET search_path = nowhere")
            client.execute("SET statement_timeout = '20s'")
            stack.callback(client.execute, "COMMIT")
    assert {values[0][0] for values in pooled.sessions("pooled_worker").values()} == {"nowhere"}
    pooled.db.run("SELECT count(*) FROM enqueue_events('t', ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, 100) i))")
    pooled.db.run("INSERT INTO scenes (name, owner_did) VALUES ('a', 'did:x')")
    process = start("--until-empty")
    assert process.wait() == 0, process.output
    assert pooled.db.one("SELECT count(*) FROM effects") == 100
    assert pooled.db.one("SELECT count(*) FROM trust_dirty") == 0


def test_the_extension_in_a_schema_whose_name_needs_quotes(pooled, pgsteward, empty_db):
    url = pooled.pooler.url(empty_db.name)
    done = pgsteward("migrate", "--schema", "Odd name", url=url, PGSTEWARD_POOLER="transaction")
    assert done.returncode == 0, done.stderr
    done = pgsteward("health", url=url, PGSTEWARD_POOLER="transaction")
    assert done.returncode == 0 and "worker.alive" in done.stdout, done.stderr
    done = pgsteward("run", "--until-empty", url=url, PGSTEWARD_POOLER="transaction")
    assert done.returncode == 0, done.stderr


def test_notifications_come_beside_the_pooler(pooled, start):
    process = start("--poll-interval", "3600")
    wait_until(lambda: pooled.db.run("SELECT FROM vw_worker_health WHERE alive AND waiting"), what="a waiting worker")
    assert listeners(pooled.db) == [("pooled_worker",)]
    for n in range(3):
        time.sleep(0.3)  # the worker is idle again
        with pooled.connect() as client:
            began = time.monotonic()
            client.execute("SELECT public.enqueue_event('t', jsonb_build_object('n', %s::int))", (n,))
        wait_until(lambda n=n: pooled.db.one("SELECT count(*) FROM effects") == n + 1, 10, "the effect")
        assert time.monotonic() - began < 3
    assert process.stop() == 0, process.output


def test_without_a_direct_connection_it_polls_and_says_so(pooled, worker):
    process = worker("--poll-interval", "0.1", url=pooled.url("pooled_worker"), PGSTEWARD_POOLER="transaction")
    wait_until(lambda: pooled.db.run("SELECT FROM vw_worker_health WHERE alive"), what="a worker")
    pooled.db.run("SELECT enqueue_event('t', '{\"n\": 1}')")
    wait_until(lambda: pooled.db.one("SELECT count(*) FROM effects") == 1, 10, "the effect")
    assert not pooled.db.run("SELECT FROM vw_worker_health WHERE waiting"), "nobody could notify it"
    assert listeners(pooled.db) == []
    assert process.stop() == 0 and "polling only" in process.output


def test_timeouts_of_the_role(pooled, start):
    """statement_timeout and lock_timeout of the role are shorter than a batch takes: batches shrink, and all gets done."""
    db = pooled.db
    db.run("""CREATE FUNCTION slow_handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE plpgsql AS $$
              BEGIN PERFORM pg_sleep(0.02 * cardinality(ids)); RETURN QUERY SELECT * FROM public.handle(ids, payloads); END $$""")
    db.run("SELECT register_topic('t', 'slow_handle')")
    db.run("ALTER ROLE pooled_worker SET statement_timeout = '300ms'")
    db.run("ALTER ROLE pooled_worker SET lock_timeout = '50ms'")
    db.run("SELECT count(*) FROM enqueue_events('t', ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, 200) i))")
    process = start("--log-level", "debug")
    with db.connect(autocommit=False) as connection:
        connection.execute("LOCK TABLE effects IN EXCLUSIVE MODE")
        time.sleep(0.5)  # longer than the lock_timeout
    wait_until(lambda: db.one("SELECT count(*) FROM events_queue_live") == 0, 60, "an empty queue")
    assert db.run("SELECT status, count(*) FROM events_queue GROUP BY 1") == [("done", 200)]
    assert db.run("SELECT count(*) AS effects, count(DISTINCT event_id) AS events FROM effects") == [(200, 200)]
    assert any("statement timeout" in line for line in process.log), "some batch was too large"
    assert process.stop() == 0, process.output


def test_a_hanging_event_holds_up_nobody(pooled, start):
    """No statement_timeout helps here: the worker itself cancels the batch in time, through the pooler, and halves it."""
    db = pooled.db
    db.run("""CREATE FUNCTION hang(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE plpgsql AS $$
              BEGIN IF payloads @> ARRAY['{"n": 5}'::jsonb] THEN PERFORM pg_sleep(600); END IF; RETURN QUERY SELECT * FROM public.handle(ids, payloads); END $$""")
    db.run("SELECT register_topic('t', 'hang')")
    db.run("SELECT count(*) FROM enqueue_events('t', ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, 8) i))")
    process = start("--lease-ttl", "2", "--queue-batch-size", "32", "--queue-concurrency", "1", "--log-level", "debug")
    wait_until(lambda: db.one("SELECT count(*) FROM events_queue WHERE status = 'done'") == 7, 30, "the others")
    assert db.run("SELECT DISTINCT attempts FROM events_queue WHERE status = 'done'") == [(1,)]
    assert db.one("SELECT lease_expires_at > now() + interval '10 s' FROM events_queue WHERE status = 'leased'"), "it is held for as long as it may run"
    process.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0, process.output
    assert db.run("SELECT status, attempts FROM events_queue WHERE status <> 'done'") == [("queued", 0)]
