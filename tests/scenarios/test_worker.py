"""The real worker: what it survives, what it tells, how it starts and ends."""

import contextlib
import json
import random
import signal
import subprocess
import time

import psycopg
import pytest
from conftest import HAS_TLS, ROOT, WORKER, Worker, clean_environment, create_database, wait_until
from hosts import Host

HANDLER = """CREATE TABLE effects (event_id bigint, n int);
CREATE FUNCTION handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE sql AS $$
    WITH done AS (INSERT INTO effects SELECT i, (p ->> 'n')::int FROM unnest(ids, payloads) AS e(i, p))
    SELECT NULL::bigint, NULL::text, NULL::boolean WHERE false
$$;
SELECT register_topic('t', 'handle')"""


def add_handler(db):
    with db.connect() as connection:
        for statement in HANDLER.split(";\n"):
            connection.execute(statement)


def add_hanging_handler(db):
    db.run("""CREATE FUNCTION hang(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE plpgsql AS $$
              BEGIN PERFORM pg_sleep(600); END $$""")
    db.run("SELECT register_topic('t', 'hang')")


def enqueue(db, count):
    db.run("SELECT count(*) FROM enqueue_events('t', ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, %s) i))", (count,))


def enqueue_items(db, count):
    """Discovery items, each of an interest of its own."""
    db.run("""WITH i AS (INSERT INTO interest_catalog (domain, category, tag) SELECT 'music', 'records', 'tag ' || n FROM generate_series(1, %s) n RETURNING id)
              SELECT count(*) FROM (SELECT array_agg(id) AS ids FROM i) AS i, enqueue_discovery_items(i.ids)""", (count,))


def effects_happened_once(db, count):
    assert db.one("SELECT count(*) FROM events_queue WHERE status = 'done'") == count
    assert db.run("SELECT count(*) AS effects, count(DISTINCT event_id) AS events, count(DISTINCT n) AS numbers FROM effects") == [(count, count, count)]


def json_lines(worker):
    return [json.loads(line) for line in worker.log if line.startswith("{")]


def messages(worker):
    return {line["msg"]: line for line in json_lines(worker)}


def seed_scene(db, name="a"):
    return db.one("""WITH s AS (INSERT INTO scenes (name, owner_did) VALUES (%s, 'did:x') RETURNING id)
                     INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) SELECT id, 'u', 'owner', 'active', 0.5 FROM s RETURNING scene_id""", (name,))


def test_drains_and_reports(db, worker):
    add_handler(db)
    enqueue(db, 3000)
    enqueue_items(db, 70)
    for i in range(20):
        seed_scene(db, f"scene {i}")
    process = worker("--until-empty")
    assert process.wait() == 0, process.output
    effects_happened_once(db, 3000)
    assert db.run("SELECT status, count(*) FROM marketplace_discovery_queue GROUP BY 1") == [("done", 70)]
    assert db.one("SELECT count(*) FROM trust_scores WHERE score = 0.5") == 20
    assert "3000" in process.output.replace(",", "") and "70" in process.output and "20" in process.output
    stopped = messages(process)["worker stopped"]
    assert (stopped["events_done"], stopped["discovery_done"]) == (3000, 70)
    assert db.one("SELECT events_done FROM vw_worker_health") == 3070


def test_until_empty_leaves_what_no_worker_may_take(db, worker):
    add_handler(db)
    enqueue(db, 5)
    db.run("SELECT register_topic('by.name')")
    db.run("SELECT enqueue_event('by.name')")
    db.run("SELECT register_topic('resting', 'handle')")
    db.run("SELECT enqueue_event('resting')")
    db.run("SELECT pause_topic('resting')")
    enqueue_items(db, 3)
    db.run("SELECT pause_topic('marketplace.discovery')")
    assert worker("--until-empty").wait() == 0
    assert db.run("SELECT topic, status FROM events_queue WHERE status <> 'done' ORDER BY 1") == [("by.name", "queued"), ("resting", "queued")]
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue_live") == 3
    effects_happened_once(db, 5)


def test_recomputes_at_the_interval_and_at_once_when_woken(db, worker):
    process = worker(TRUST_RECOMPUTE_INTERVAL_SEC="3600")
    wait_until(lambda: db.run("SELECT FROM vw_worker_health WHERE alive AND waiting"), what="a waiting worker")
    began = time.monotonic()
    scene = seed_scene(db)
    wait_until(lambda: db.run("SELECT FROM trust_scores WHERE scene_id = %s", (scene,)), 10, "the score")
    assert time.monotonic() - began < 5  # the interval is an hour
    assert process.stop() == 0
    process = worker(TRUST_RECOMPUTE_INTERVAL_SEC="1")
    db.run("INSERT INTO trust_dirty (scene_id) VALUES (%s)", (scene,))  # marked without a notification
    wait_until(lambda: db.one("SELECT count(*) FROM trust_dirty") == 0, 10, "an empty backlog")


def test_a_sparse_stream_does_not_wait_for_the_poll(db, worker):
    """The poll interval is an hour, and the worker falls idle again and again: what is enqueued meanwhile is found at once."""
    add_handler(db)
    process = worker("--poll-interval", "3600")
    pauses = random.Random(7)
    with db.connect() as connection:
        for n in range(60):
            time.sleep(pauses.uniform(0, 0.25))
            connection.execute("SELECT enqueue_event('t', jsonb_build_object('n', %s::int))", (n,))
    wait_until(lambda: db.one("SELECT count(*) FROM effects") == 60, 10, "the last effect")
    waits = "SELECT max(updated_at - created_at) FROM events_queue"
    assert db.one(waits).total_seconds() < 5
    assert process.stop() == 0, process.output


def test_log_lines_of_the_trust_document(db, worker):
    seed_scene(db)
    process = worker("--until-empty", "--log-format", "json")
    assert process.wait() == 0, process.output
    logged = messages(process)
    assert logged["recomputing trust scores"]["level"] == "INFO"
    assert logged["recomputing trust scores"]["dirty_count"] == 1
    completed = logged["trust recompute completed"]
    assert completed["level"] == "INFO" and completed["scenes_processed"] == 1 and completed["scenes_failed"] == 0
    assert isinstance(completed["duration_seconds"], float) and completed["avg_weight_variance"] == 0
    assert all({"level", "msg", "time"} <= line.keys() for line in json_lines(process))


def test_log_of_a_timeout_and_of_a_failing_scene(db, worker):
    scenes = [seed_scene(db, f"s{i}") for i in range(60)]
    db.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END $$")
    db.run("CREATE TRIGGER slow BEFORE INSERT ON trust_scores FOR EACH ROW EXECUTE FUNCTION slow()")
    process = worker("--log-format", "json", TRUST_RECOMPUTE_TIMEOUT_SEC="1")
    line = wait_until(lambda: messages(process).get("trust recompute timeout exceeded"), what="the timeout's line")
    assert line["level"] == "ERROR" and line["timeout"] == "1s" and 0 < line["processed"] < line["total"] == 60
    process.stop()
    db.run("DROP TRIGGER slow ON trust_scores")
    db.run(f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.scene_id = '{scenes[0]}' THEN RAISE 'database connection lost'; END IF; RETURN NEW; END $$")
    db.run("DELETE FROM trust_scores")
    db.run("SELECT trust_mark_all_dirty()")
    db.run("CREATE TRIGGER fail BEFORE INSERT ON trust_scores FOR EACH ROW EXECUTE FUNCTION fail()")
    process = worker("--log-format", "json")
    line = wait_until(lambda: messages(process).get("failed to recompute trust score"), what="the failure's line")
    assert line["level"] == "ERROR" and line["scene_id"] == str(scenes[0]) and "database connection lost" in line["error"]


def test_survives_a_restarted_server(own_cluster):
    db = create_database(own_cluster, "survivor")
    subprocess.run([WORKER, "migrate"], env=clean_environment() | {"DATABASE_URL": db.url}, check=True, capture_output=True)
    add_handler(db)
    process = Worker(db.url, environment={"TRUST_RECOMPUTE_INTERVAL_SEC": "1"})
    try:
        first = seed_scene(db, "before")
        score = "SELECT FROM trust_scores WHERE scene_id = %s"
        wait_until(lambda: db.run(score, (first,)), what="the first score")
        own_cluster.restart()
        second = seed_scene(db, "after")
        enqueue(db, 100)
        wait_until(lambda: db.run(score, (second,)), 30, "the second score")
        wait_until(lambda: db.one("SELECT count(*) FROM effects") == 100, 30, "the effects")
        own_cluster.restart(immediate=True)
        third = seed_scene(db, "after the crash")
        wait_until(lambda: db.run(score, (third,)), 30, "the third score")
        beat = db.one("SELECT beat_at FROM worker_heartbeats")
        wait_until(lambda: db.one("SELECT max(beat_at) FROM worker_heartbeats") > beat, 20, "another heartbeat")
        assert process.process.poll() is None, process.output
        assert process.stop() == 0, process.output
        assert db.one("SELECT state FROM worker_heartbeats") == "stopped"
    finally:
        process.kill()


def test_drains_on_sigterm(db, worker):
    add_handler(db)
    db.run("""CREATE FUNCTION slow_handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE plpgsql AS $$
              BEGIN PERFORM pg_sleep(1.5); RETURN QUERY SELECT * FROM handle(ids, payloads); END $$""")
    db.run("SELECT register_topic('t', 'slow_handle')")
    enqueue(db, 50)
    process = worker("--queue-batch-size", "40", "--queue-concurrency", "1")
    wait_until(lambda: db.run("SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"), what="a batch that has begun")
    assert db.one("SELECT count(*) FROM events_queue WHERE status = 'leased'") == 10, "a quarter of the largest"
    assert process.stop() == 0, process.output
    (row,) = db.run("SELECT count(*) FILTER (WHERE status = 'done') AS done, count(*) FILTER (WHERE status = 'leased') AS leased, max(attempts) FILTER (WHERE status = 'queued') AS attempts FROM events_queue")
    assert row.done >= 10 and row.leased == 0 and row.attempts == 0
    assert db.one("SELECT count(*) FROM effects") == row.done
    assert db.one("SELECT state FROM worker_heartbeats") == "stopped"


def test_drains_discovery_items_as_well(db, worker):
    """What has begun is finished; after a second signal it is undone, and the attempt does not count."""
    enqueue_items(db, 30)
    for signals, statuses in ((1, {"done", "queued"}), (2, {"queued"})):
        db.run("SELECT count(*) FROM enqueue_discovery_items(ARRAY(SELECT id FROM interest_catalog))")
        db.run("DELETE FROM marketplace_gaps")
        process = worker("--discovery-batch-size", "40")
        with db.connect(autocommit=False) as blocker:
            blocker.execute("LOCK TABLE marketplace_gaps IN SHARE MODE")
            wait_until(lambda: db.run("SELECT FROM pg_stat_activity WHERE query LIKE '%%process_discovery_items%%' AND wait_event_type = 'Lock' AND datname = current_database()"), what="a batch that has begun")
            for _ in range(signals):
                process.process.send_signal(signal.SIGTERM)
                wait_until(lambda: db.run("SELECT FROM worker_heartbeats WHERE worker_id = (SELECT max(leased_by) FROM marketplace_discovery_queue WHERE lease_token IS NOT NULL) AND state = 'draining'")
                           or signals == 2, what="draining")
            if signals == 2:
                assert process.wait(10) == 0, process.output
        assert process.wait(10) == 0, process.output
        assert {row.status for row in db.run("SELECT DISTINCT status FROM marketplace_discovery_queue")} == statuses
        assert db.one("SELECT coalesce(max(attempts), 0) FROM marketplace_discovery_queue WHERE status = 'queued'") == 0
        db.run("DELETE FROM marketplace_discovery_queue")


def test_workers_on_two_hosts(db, tmp_path):
    """S2-074: two machines share the items of both queues; one loses its power, and the other redoes its items after the lease."""
    add_handler(db)
    db.run("ALTER DATABASE \"%s\" SET client_connection_check_interval = '300ms'" % db.name)
    db.run("CREATE TABLE going_down (host inet)")
    db.run("CREATE FUNCTION falter() RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF EXISTS (SELECT FROM going_down WHERE host = inet_client_addr()) THEN PERFORM pg_sleep(600); END IF; PERFORM pg_sleep(0.02); END $$")
    db.run("""CREATE FUNCTION faltering_handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE plpgsql AS $$
              BEGIN PERFORM falter(); RETURN QUERY SELECT * FROM handle(ids, payloads); END $$""")
    db.run("CREATE FUNCTION falter_before() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM falter(); RETURN NULL; END $$")
    db.run("CREATE TRIGGER falter BEFORE INSERT ON marketplace_gaps EXECUTE FUNCTION falter_before()")
    db.run("SELECT register_topic('t', 'faltering_handle')")
    flags = ("--lease-ttl", "3", "--discovery-lease-ttl", "3", "--queue-batch-size", "20", "--discovery-batch-size", "4", "--queue-concurrency", "1")
    left = "SELECT (SELECT count(*) FROM events_queue_live) + (SELECT count(*) FROM marketplace_discovery_queue_live)"
    with contextlib.closing(Host("host-a", "127.0.0.2", db, tmp_path / "a")) as first, contextlib.closing(Host("host-b", "127.0.0.3", db, tmp_path / "b")) as second:
        for host in (first, second):
            host.start(*flags)
        wait_until(lambda: db.one("SELECT count(*) FROM vw_worker_health WHERE alive AND waiting") == 2, what="both workers")
        assert {str(row.client_addr) for row in db.run("SELECT client_addr FROM pg_stat_activity WHERE application_name LIKE 'pgsteward%%' AND datname = current_database()")} == {"127.0.0.2", "127.0.0.3"}
        if first.isolated:
            assert {row.host for row in db.run("SELECT host FROM vw_worker_health")} == {"host-a", "host-b"}
        enqueue(db, 1000)
        enqueue_items(db, 60)
        wait_until(lambda: db.one(left) == 0, 60, "an empty queue")
        for queue in ("events_queue", "marketplace_discovery_queue"):
            assert db.one(f"SELECT count(DISTINCT leased_by) FROM {queue} WHERE status = 'done'") == 2, queue
        db.run("DELETE FROM events_queue; DELETE FROM marketplace_discovery_queue; DELETE FROM effects; DELETE FROM interest_catalog; INSERT INTO going_down VALUES ('127.0.0.2')")
        enqueue(db, 400)
        enqueue_items(db, 40)
        hanging = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND client_addr = '127.0.0.2' AND datname = current_database() AND query LIKE '%%process_%%'"
        wait_until(lambda: db.one(hanging) == 2, what="a batch of each queue on the first machine")
        first.lose_power()
        wait_until(lambda: db.one(left) == 0, 30, "an empty queue")
        effects_happened_once(db, 400)
        for queue, count in (("events_queue", 400), ("marketplace_discovery_queue", 40)):
            assert db.run(f"SELECT status, count(*) AS ct, count(DISTINCT leased_by) AS workers, max(attempts) AS attempts FROM {queue} GROUP BY 1") == [("done", count, 1, 2)], queue
        assert db.one("SELECT state FROM worker_heartbeats ORDER BY beat_at DESC LIMIT 1") == "running", second.output


def test_a_stuck_lease_by_the_runbook(db, worker):
    """kill -9 a worker with leased events, age them past 300 s, follow the runbook."""
    add_handler(db)
    add_hanging_handler(db)
    enqueue(db, 20)
    process = worker("--queue-concurrency", "1")
    wait_until(lambda: db.run("SELECT FROM pg_stat_activity WHERE query LIKE '%%process_events%%' AND wait_event = 'PgSleep' AND datname = current_database()"), what="a hanging handler")
    process.kill()
    db.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")
    wait_until(lambda: db.run("SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()") == [], what="the end of the backend")
    db.run("UPDATE events_queue SET run_at = now() - interval '400 s', lease_expires_at = now() - interval '340 s' WHERE status = 'leased'")
    age = "SELECT max(p95_age_sec) FROM public.vw_events_queue_health"
    assert db.one(age) > 300
    assert db.one("SELECT level FROM steward_health WHERE check_name = 'queue.waiting'") == "error"
    assert db.one("SELECT count(*) FROM public.events_queue WHERE status='leased' AND lease_expires_at < now()") == 20
    db.run("SELECT register_topic('t', 'handle')")
    db.run("UPDATE public.events_queue SET status='queued', lease_token=NULL, lease_expires_at=NULL WHERE status='leased' AND lease_expires_at < now()")
    assert worker("--until-empty").wait() == 0
    assert db.one(age) is None
    effects_happened_once(db, 20)


def test_four_workers_killed_every_second(db, worker):
    """100,000 events, one of four workers killed every second: each effect once, none lost."""
    add_handler(db)
    total = 100_000
    for _ in range(10):
        db.run("SELECT count(*) FROM enqueue_events('t', ARRAY(SELECT jsonb_build_object('n', i + (SELECT coalesce(count(*), 0) FROM events_queue)) FROM generate_series(1, %s) i))", (total // 10,))
    db.run("UPDATE event_topics SET max_attempts = 100")
    db.run("UPDATE events_queue SET max_attempts = 100")
    flags = ("--lease-ttl", "2", "--queue-concurrency", "1", "--queue-batch-size", "50")
    workers = [worker(*flags) for _ in range(4)]
    kills = 0
    end = time.monotonic() + 300
    while db.one("SELECT count(*) FROM events_queue_live") > 0:
        assert time.monotonic() < end, "not drained"
        time.sleep(1)  # the interval of the kills
        victim = kills % 4
        workers[victim].kill()
        workers[victim] = worker(*flags)
        kills += 1
    assert kills >= 3
    effects_happened_once(db, total)
    assert db.one("SELECT count(*) FROM events_queue WHERE status = 'error'") == 0


def test_killed_workers_and_backends_lose_no_score(db, worker):
    """kill -9 of workers and of backends in the middle of recomputing."""
    db.run("INSERT INTO scenes (name, owner_did) SELECT 's' || i, 'x' FROM generate_series(1, 20000) i")
    db.run("INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) SELECT id, 'u', 'owner', 'active', 0.5 FROM scenes")
    for round_ in range(4):
        db.run("UPDATE memberships SET trust_weight = %s", (0.1 + round_ / 10,))
        processes = [worker() for _ in range(2)]
        busy = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%%trust_recompute(%%' AND state = 'active' AND pid <> pg_backend_pid() AND datname = current_database()"
        wait_until(lambda: db.run(busy), what="a busy recompute")
        processes[0].kill()
        db.run(f"SELECT pg_terminate_backend(pid) FROM ({busy}) b")
        processes[1].kill()
    process = worker("--until-empty")
    assert process.wait() == 0, process.output
    assert db.one("SELECT count(*) FROM trust_dirty") == 0
    assert db.run("SELECT count(*), min(score), max(score) FROM trust_scores") == [(20000, pytest.approx(0.4), pytest.approx(0.4))]


def test_a_killed_backend_takes_nothing_with_it(own_cluster):
    """kill -9 of a server process: the server recovers, the worker goes on, nothing is lost or done twice."""
    db = create_database(own_cluster, "crash")
    subprocess.run([WORKER, "migrate"], env=clean_environment() | {"DATABASE_URL": db.url}, check=True, capture_output=True)
    add_handler(db)
    enqueue(db, 20_000)
    db.run("INSERT INTO scenes (name, owner_did) SELECT 's' || i, 'x' FROM generate_series(1, 5000) i")
    db.run("INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) SELECT id, 'u', 'owner', 'active', 0.5 FROM scenes")
    process = Worker(db.url, "--lease-ttl", "2", "--queue-batch-size", "20", "--queue-concurrency", "1")
    try:
        for _ in range(2):
            assert process.process.poll() is None, process.output
            pid = wait_until(lambda: db.run("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pgsteward%%' AND datname = current_database()"), what="a backend")[0].pid
            subprocess.run(["kill", "-9", str(pid)], check=True)
            wait_until(lambda: answers(db), 60, "the server")
        wait_until(lambda: answers(db) and db.one("SELECT count(*) FROM events_queue_live") == 0, 120, "an empty queue")
        wait_until(lambda: db.one("SELECT count(*) FROM trust_dirty") == 0, 60, "an empty backlog")
        assert process.stop() == 0, process.output
        effects_happened_once(db, 20_000)
        assert db.run("SELECT count(*), min(score) FROM trust_scores") == [(5000, 0.5)]
    finally:
        process.kill()


def test_a_connection_lost_at_start_is_tried_again(db, worker):
    for _ in range(5):
        db.run("DELETE FROM worker_heartbeats")
        process = worker()
        session = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pgsteward%' AND datname = current_database()"
        with db.connect() as connection:
            wait_until(lambda: connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({session}) s").fetchall(), what="a session")
        wait_until(lambda: db.run("SELECT FROM vw_worker_health WHERE alive"), what="a heartbeat")
        assert process.stop() == 0, process.output


def answers(db):
    try:
        return db.one("SELECT true")
    except psycopg.OperationalError:
        return False


def test_configuration_is_checked_at_start(pgsteward):
    for environment, name in (({"TRUST_RECOMPUTE_INTERVAL_SEC": "0"}, "TRUST_RECOMPUTE_INTERVAL_SEC"), ({"TRUST_RECOMPUTE_TIMEOUT_SEC": "-1"}, "TRUST_RECOMPUTE_TIMEOUT_SEC"),
                              ({"TRUST_RECOMPUTE_TIMEOUT_SEC": "soon"}, "TRUST_RECOMPUTE_TIMEOUT_SEC"), ({"TRUST_RECOMPUTE_BATCH_SIZE": "99999999"}, "TRUST_RECOMPUTE_BATCH_SIZE"), ({"PGSTEWARD_DISCOVERY_BATCH_SIZE": "0"}, "PGSTEWARD_DISCOVERY_BATCH_SIZE"),
                              ({"PGSTEWARD_POOLER": "session"}, "PGSTEWARD_POOLER")):
        done = pgsteward("run", **environment)
        assert done.returncode == 2 and name in done.stderr, done.stderr


def test_a_database_without_the_extension(empty_db, pgsteward):
    done = pgsteward("run", url=empty_db.url)
    assert done.returncode == 1 and "extension" in done.stderr and "migrate" in done.stderr
    empty_db.run("CREATE EXTENSION pgsteward")
    done = pgsteward("run", url=empty_db.url)
    assert done.returncode == 1 and "migrate" in done.stderr


def test_a_schema_of_another_version(db, pgsteward):
    db.run("DELETE FROM schema_migrations WHERE name = 'migrations/0003_trust.sql'")
    done = pgsteward("run")
    assert done.returncode == 1 and "pgsteward migrate" in done.stderr
    db.run("INSERT INTO schema_migrations (name, kind, checksum, version, duration_ms) SELECT name, kind, checksum, '0', 1 FROM steward_files() WHERE name = 'migrations/0003_trust.sql'")
    db.run("INSERT INTO schema_migrations (name, kind, checksum, version, duration_ms) VALUES ('migrations/9999_future.sql', 'migration', 'x', '9.9.9', 1)")
    done = pgsteward("run")
    assert done.returncode == 1 and "newer" in done.stderr


def test_a_role_without_rights(db, pgsteward):
    if not db.run("SELECT FROM pg_roles WHERE rolname = 'test_login'"):
        db.run("CREATE ROLE test_login LOGIN PASSWORD 'secret pass/word'")
    db.run("REVOKE steward_worker FROM test_login")
    url = f"postgresql://test_login:secret%20pass%2Fword@127.0.0.1:{db.cluster.port}/{db.name}"
    done = pgsteward("run", url=url)
    assert done.returncode == 1 and "steward_worker" in done.stderr and "secret pass" not in done.stderr + done.stdout
    db.run("GRANT steward_worker TO test_login")
    add_handler(db)
    db.run("GRANT INSERT ON effects TO steward_worker")
    enqueue(db, 10)
    seed_scene(db)
    done = pgsteward("run", "--until-empty", url=url)
    assert done.returncode == 0, done.stderr
    effects_happened_once(db, 10)
    assert db.one("SELECT count(*) FROM trust_scores") == 1
    wrong = pgsteward("run", "--connect-timeout", "2", url=url.replace("secret%20pass", "wrong"))
    assert wrong.returncode == 1 and "test_login" in wrong.stderr


def test_libpq_variables_work_too(db):
    environment = clean_environment() | {"PGHOST": str(db.cluster.socket_dir), "PGPORT": str(db.cluster.port), "PGUSER": "postgres", "PGDATABASE": db.name}
    done = subprocess.run([WORKER, "status"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "migrations/0003_trust.sql" in done.stdout, done.stderr


def test_health_from_the_shell(db, pgsteward):
    done = pgsteward("health")
    assert done.returncode == 0 and "worker.alive" in done.stdout
    db.run("SELECT enqueue_event('t')")
    db.run("UPDATE events_queue SET run_at = now() - interval '1 hour'")
    done = pgsteward("health", "--json")
    assert done.returncode == 1
    assert {"check_name", "level", "hint"} <= json.loads(done.stdout)[0].keys()


if HAS_TLS:
    def test_tls_to_the_server(own_cluster):
        authority = own_cluster.enable_ssl()
        db = create_database(own_cluster, "tls")
        environment = clean_environment()

        def run(parameters, command="migrate"):
            return subprocess.run([WORKER, command], env=environment | {"DATABASE_URL": f"{db.url}?{parameters}"}, capture_output=True, text=True, check=False)

        done = run(f"sslmode=verify-full&sslrootcert={authority}")
        assert done.returncode == 0, done.stderr
        process = Worker(f"{db.url}?sslmode=verify-full&sslrootcert={authority}")
        try:
            wait_until(lambda: db.run("SELECT FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE s.ssl AND a.application_name LIKE 'pgsteward%%'"), what="an encrypted session")
            assert process.stop() == 0
        finally:
            process.kill()
        done = run(f"sslmode=verify-full&sslrootcert={ROOT / 'tests/scenarios/another-authority.pem'}", "status")
        assert done.returncode == 1 and "certificate" in done.stderr, done.stderr


def test_a_second_signal_releases_at_once(db, worker):
    add_handler(db)
    add_hanging_handler(db)
    enqueue(db, 5)
    process = worker("--queue-concurrency", "1")
    wait_until(lambda: db.run("SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"), what="a hanging handler")
    process.process.send_signal(signal.SIGTERM)
    wait_until(lambda: db.run("SELECT FROM worker_heartbeats WHERE state = 'draining'"), what="draining")
    process.process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert db.run("SELECT status, attempts FROM events_queue GROUP BY 1, 2") == [("queued", 0)]


def test_ended_items_expire_by_themselves(db, worker):
    add_handler(db)
    db.run("SELECT * FROM configure_topic('t', '{\"keep_done\": \"1 millisecond\"}')")
    enqueue(db, 50)
    enqueue_items(db, 3)
    worker("--expire-interval", "0.2")
    wait_until(lambda: db.one("SELECT count(*) FROM effects") == 50, what="the work")
    wait_until(lambda: db.one("SELECT count(*) FROM events_queue") == 0, what="the expiry")
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue") == 3  # kept for days
