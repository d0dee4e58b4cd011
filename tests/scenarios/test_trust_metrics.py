"""The metrics of trust: the same in SQL and at the worker's /metrics, whoever recomputed."""

import socket
import threading
import time

import psycopg
import pytest
from conftest import in_parallel, refused, wait_until
from observed import add_runs, add_scenes, break_scenes, described, fetch, logged, metrics, scrape, slow_down

DOCUMENTED = {
    "trust_recompute_total": "counter", "trust_recompute_errors_total": "counter", "trust_recompute_duration_seconds": "histogram",
    "trust_last_recompute_timestamp": "gauge", "trust_last_recompute_scene_count": "gauge",
}
HISTOGRAM = "trust_recompute_duration_seconds"
FREE_PORT = ("--metrics-listen", "127.0.0.1:0")


def served_as(samples):
    """The lines of the view, as /metrics names them."""
    names = {}
    for name, value in samples.items():
        if isinstance(name, tuple):
            metric, le = name
            name = f"{metric}_{le}" if le in ("sum", "count") else f'{metric}_bucket{{le="{le}"}}'
        names[name] = value
    return names


def test_a_fresh_worker_names_every_family(db, worker):
    process = worker(*FREE_PORT)
    status, text = fetch(process)
    named = described(text)
    assert status == 200 and DOCUMENTED.items() <= named.items()
    assert {row.metric: row.kind for row in db.run("SELECT metric, kind FROM vw_trust_metrics")}.items() <= named.items()
    samples = scrape(process)
    assert samples["trust_recompute_total"] == samples["trust_recompute_errors_total"] == samples[f"{HISTOGRAM}_count"] == 0
    assert samples["pgsteward_worker_up"] == samples["pgsteward_database_up"] == 1
    assert samples['pgsteward_build_info{version="0.1.0"}'] == 1
    wait_until(lambda: abs(scrape(process)["pgsteward_worker_heartbeat_timestamp_seconds"] - time.time()) < 30, what="the heartbeat")
    assert fetch(process, "/")[0] == 200 and "/metrics" in fetch(process, "/")[1]
    assert fetch(process, "/nothing")[0] == 404


def test_what_plain_sql_recomputes_is_served(db, worker):
    """The worker looks once an hour; marks are made without a notification, so that only plain SQL recomputes."""
    add_scenes(db, 50)
    db.run("SELECT * FROM trust_recompute()")
    process = worker(*FREE_PORT, TRUST_RECOMPUTE_INTERVAL_SEC="3600")
    logged(process, "worker started")
    for cycles in (1, 2):
        seen = served_as(metrics(db))
        assert seen["trust_recompute_total"] == cycles and seen["trust_last_recompute_scene_count"] == 50
        wait_until(lambda: {name: value for name, value in scrape(process).items() if name.startswith("trust_")} == served_as(metrics(db)), 10, "the same numbers")
        db.run("INSERT INTO trust_dirty (scene_id) SELECT id FROM scenes")
        db.run("SELECT * FROM trust_recompute()")
    before = scrape(process)["trust_recompute_errors_total"]
    db.run("UPDATE trust_scores SET score = 0.9")
    db.run("INSERT INTO trust_dirty (scene_id) SELECT id FROM scenes")
    slow_down(db, 0.1)
    assert db.one("SELECT timed_out FROM trust_recompute(timeout => '250 ms')")
    wait_until(lambda: scrape(process)["trust_recompute_errors_total"] == before + 1, 10, "the timeout")


def test_cycles_failures_and_timeouts_are_counted(db):
    scenes = [row.id for row in db.run("SELECT md5(i::text)::uuid AS id FROM generate_series(1, 2) i")]
    for _ in range(3):
        add_scenes(db, 50, first=1 + db.one("SELECT count(*) FROM scenes"))
        db.run("SELECT * FROM trust_recompute()")
    seen = metrics(db)
    assert (seen["trust_recompute_total"], seen["trust_recompute_errors_total"], seen["trust_last_recompute_scene_count"]) == (3, 0, 50)
    assert (seen["trust_recompute_scenes_total"], seen["trust_scenes"], seen["trust_dirty_scenes"]) == (150, 150, 0)
    db.run("UPDATE trust_scores SET score = 0.9")
    break_scenes(db, scenes)
    db.run("SELECT trust_mark_all_dirty()")
    (run,) = db.run("SELECT * FROM trust_recompute()")
    assert (run.processed, run.failed) == (148, 2)
    seen = metrics(db)
    assert (seen["trust_recompute_total"], seen["trust_recompute_errors_total"]) == (4, 2)
    assert (seen["trust_recompute_scenes_total"], seen["trust_recompute_scenes_failed_total"], seen["trust_recompute_cycles_failed_total"]) == (300, 2, 0)
    assert seen["trust_avg_weight_variance"] == run.avg_weight_variance > 0
    assert seen["trust_dirty_scenes"] == 2 and seen["trust_oldest_dirty_age_seconds"] > 0
    break_scenes(db, [])
    db.run("UPDATE trust_scores SET score = 0.9")
    db.run("SELECT trust_mark_all_dirty()")
    slow_down(db, 0.1)
    (run,) = db.run("SELECT * FROM trust_recompute(timeout => '250 ms')")
    assert run.timed_out
    seen = metrics(db)
    assert (seen["trust_recompute_total"], seen["trust_recompute_errors_total"], seen["trust_recompute_cycles_failed_total"]) == (4, 3, 1)
    assert seen[HISTOGRAM, "count"] == seen[HISTOGRAM, "+Inf"] == 5


def test_the_histogram_has_the_buckets_of_the_document(db, worker):
    add_runs(db, [{"duration_ms": duration_ms, "timed_out": duration_ms == 40000} for duration_ms in (100, 100.1, 1000, 9999, 40000)])
    process = worker(*FREE_PORT)
    text = fetch(process)[1]
    buckets = [line.removeprefix(f"{HISTOGRAM}_") for line in text.splitlines() if line.startswith(f"{HISTOGRAM}_")]
    counts = [1, 2, 2, 3, 3, 3, 4, 5]
    bounds = ["0.1", "0.25", "0.5", "1", "2", "5", "10", "+Inf"]
    assert buckets == [f'bucket{{le="{le}"}} {ct}' for le, ct in zip(bounds, counts)] + ["sum 51.1991", "count 5"]


def test_a_recorded_run_is_the_histograms_sum(db):
    add_scenes(db, 20)
    (run,) = db.run("SELECT * FROM trust_recompute()")
    seen = metrics(db)
    assert seen[HISTOGRAM, "count"] == 1 and seen[HISTOGRAM, "sum"] == pytest.approx(run.duration_ms / 1000, abs=1e-9)
    finished = db.one("SELECT extract(epoch FROM started_at) + duration_ms / 1000 FROM trust_recompute_runs")
    assert seen["trust_last_recompute_timestamp"] == pytest.approx(float(finished), abs=1)


def test_idle_succeeds_and_failing_does_not(db):
    scenes = [row.id for row in db.run("SELECT md5(i::text)::uuid AS id FROM generate_series(1, 3) i")]
    assert metrics(db)["trust_last_recompute_timestamp"] == 0
    add_scenes(db, 3)
    break_scenes(db, scenes)
    (run,) = db.run("SELECT * FROM trust_recompute()")
    assert (run.processed, run.failed) == (0, 3)
    db.run("SELECT * FROM trust_recompute()")  # finds nothing to do before they are due again
    seen = metrics(db)
    assert (seen["trust_last_recompute_timestamp"], seen["trust_recompute_cycles_failed_total"]) == (0, 1)
    break_scenes(db, [])
    db.run("SELECT trust_mark_all_dirty()")
    db.run("SELECT * FROM trust_recompute()")
    first = metrics(db)
    assert first["trust_last_recompute_timestamp"] > time.time() - 60
    rows = db.one("SELECT count(*) FROM trust_recompute_runs")
    with db.connect() as connection:
        for _ in range(120):
            connection.execute("SELECT * FROM trust_recompute()")
    idle = metrics(db)
    assert idle["trust_last_recompute_timestamp"] > first["trust_last_recompute_timestamp"]
    assert {name: value for name, value in idle.items() if name != "trust_last_recompute_timestamp"} == \
        {name: value for name, value in first.items() if name != "trust_last_recompute_timestamp"}
    assert db.one("SELECT count(*) FROM trust_recompute_runs") == rows and db.one("SELECT count(*) FROM trust_tally") <= 51


def test_counters_never_go_back(db):
    """Four sessions record runs while others are expired: each look counts at least as many as the one before."""
    each, looks, done = 60, [], threading.Event()

    def record():
        with db.connect() as connection:
            for _ in range(each):
                connection.execute("SELECT record_trust_run(clock_timestamp(), 1, 2, 1, 1, 0, 0, false)")

    def expire():
        with db.connect() as connection:
            while not done.is_set():
                connection.execute("SELECT expire_trust_runs(5, '0')")
                looks.append(connection.execute("SELECT value FROM vw_trust_metrics WHERE metric = 'trust_recompute_total'").fetchone().value)

    def work():
        try:
            in_parallel(*[record] * 4)
        finally:
            done.set()

    in_parallel(work, expire)
    assert looks == sorted(looks)
    while db.one("SELECT expire_trust_runs(keep => '0')"):
        pass
    seen = metrics(db)
    assert db.one("SELECT count(*) FROM trust_recompute_runs") == 0
    assert (seen["trust_recompute_total"], seen["trust_recompute_scenes_total"], seen["trust_recompute_errors_total"]) == (4 * each, 12 * each, 4 * each)
    assert seen[HISTOGRAM, "0.1"] == seen[HISTOGRAM, "count"] == 4 * each
    assert db.one("SELECT count(*) FROM trust_tally") < 60


def test_expiring_runs(db):
    for age in ("1 hour", "29 days", "31 days", "40 days", "50 days"):
        db.run("SELECT record_trust_run(clock_timestamp() - %s::interval, 1, 2, 1, 0, 0, 0, false)", (age,))
    assert db.one("SELECT expire_trust_runs(most => 2)") == 2
    assert db.one("SELECT max(clock_timestamp() - started_at) < '32 days' FROM trust_recompute_runs")
    assert db.one("SELECT expire_trust_runs()") == 1
    assert db.one("SELECT expire_trust_runs(keep => '1 day')") == 1
    with db.connect() as connection:
        for arguments in ("0", "1000001", "10, '-1 s'", "10, '1001 years'"):
            refused(connection, f"SELECT expire_trust_runs({arguments})", "22023")
        for arguments in ("NULL", "10, NULL"):
            refused(connection, f"SELECT expire_trust_runs({arguments})", "22004")
        refused(connection, "SELECT record_trust_run(now(), 1, NULL, 1, 1, 0, 0, false)", "22004")
        before = connection.execute("SELECT * FROM vw_trust_metrics WHERE kind <> 'gauge'").fetchall()
        for nonsense in ("now(), 'NaN', 1, 1, 1, 0, 0, false", "now(), 'Infinity', 1, 1, 1, 0, 0, false", "now(), -1, 1, 1, 1, 0, 0, false", "now(), 1, -50, 1, 1, 0, 0, false",
                         "'infinity', 1, 1, 1, 1, 0, 0, false", "now() + interval '1 day', 1, 1, 1, 1, 0, 0, false", "now(), 1, 1, 1, 1, 0, 'NaN', false"):
            refused(connection, f"SELECT record_trust_run({nonsense})", "22023")
        assert connection.execute("SELECT * FROM vw_trust_metrics WHERE kind <> 'gauge'").fetchall() == before
    assert db.one("SELECT count(*) FROM trust_recompute_runs") == 1


def test_workers_expire_runs(db, worker):
    for age in ("1 hour", "31 days"):
        db.run("SELECT record_trust_run(clock_timestamp() - %s::interval, 1, 2, 1, 0, 0, 0, false)", (age,))
    process = worker("--expire-interval", "0.2")
    line = logged(process, "deleted what was older than it is kept")
    assert (line["of"], line["deleted"]) == ("trust runs", 1)
    assert db.one("SELECT count(*) FROM trust_recompute_runs") == 1


def test_who_may_see_and_record(db):
    add_scenes(db, 3)
    for role, may_read, may_work in (("steward_app", False, False), ("steward_readonly", True, False), ("steward_worker", True, True), ("steward_admin", True, True)):
        with db.connect(role) as connection:
            for view in ("vw_trust_metrics", "vw_trust_slo", "vw_trust_timeouts", "steward_health"):
                if may_read:
                    assert connection.execute(f"SELECT * FROM {view}").fetchall()
                else:
                    refused(connection, f"SELECT * FROM {view}", "42501", hint=False)
            for call in ("expire_trust_runs()", "record_trust_run(now(), 1, 1, 1, 0, 0, 0, false)"):
                if may_work:
                    connection.execute(f"SELECT {call}")
                else:
                    refused(connection, f"SELECT {call}", "42501", hint=False)
    assert db.one("SELECT value FROM vw_trust_metrics WHERE metric = 'trust_recompute_total'") == 2


def trust_samples(samples):
    return {name for name in samples if name.startswith("trust_")}


def test_a_database_that_hangs_or_is_gone(db, worker):
    process = worker(*FREE_PORT)
    named = described(fetch(process)[1])
    with db.connect(autocommit=False) as blocker:
        blocker.execute("LOCK TABLE trust_tally IN ACCESS EXCLUSIVE MODE")
        time.sleep(1.1)  # what was answered before is good for a second
        asking = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%vw_trust_metrics%%' AND wait_event_type = 'Lock' AND datname = current_database()"
        began = time.monotonic()
        most = []
        answers = in_parallel(*[lambda: fetch(process)] * 8, lambda: most.append(wait_until(lambda: db.one(asking), 5, "the question")))
        assert time.monotonic() - began < 4, "within 1.7 s each, at the same time"
        assert most == [1], "one asks for all"
        for status, text in answers[:8]:
            assert status == 200 and "pgsteward_database_up 0" in text and described(text) == named
            assert not [line for line in text.splitlines() if line.startswith("trust_")], "no old numbers"
    wait_until(lambda: scrape(process)["pgsteward_database_up"] == 1, 30, "the database's answer")
    assert trust_samples(scrape(process))
    with psycopg.connect(db.cluster.url("postgres"), autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{db.name}" ALLOW_CONNECTIONS false')
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (db.name,))
        wait_until(lambda: scrape(process)["pgsteward_database_up"] == 0, 10, "the loss")
        text = fetch(process)[1]
        assert described(text) == named and "pgsteward_worker_up 1" in text and "\ntrust_recompute_total" not in text
        connection.execute(f'ALTER DATABASE "{db.name}" ALLOW_CONNECTIONS true')
    wait_until(lambda: scrape(process)["pgsteward_database_up"] == 1, 30, "the return")


def test_a_port_in_use(db, worker, pgsteward):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = pgsteward("run", "--until-empty", PGSTEWARD_METRICS_LISTEN=address)
        assert done.returncode == 2 and address in done.stderr and "PGSTEWARD_METRICS_LISTEN" in done.stderr and "in use" in done.stderr
    done = pgsteward("run", "--until-empty", "--metrics-listen", "nowhere")
    assert done.returncode == 2 and "--metrics-listen" in done.stderr
    assert worker("--until-empty", "--metrics-listen", "off").wait() == 0
