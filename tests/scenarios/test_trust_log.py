"""What a worker says about its recomputes, in its log and in its heartbeat."""

import json
import signal

import pytest
from conftest import wait_until
from observed import add_scenes, break_scenes, lines, logged, scrape, slow_down

BUSY = """SELECT pid FROM pg_stat_activity
           WHERE query LIKE '%%trust_recompute(%%' AND wait_event = 'PgSleep' AND datname = current_database() AND pid <> pg_backend_pid()"""


def test_the_timeout_is_read_from_the_environment(pgsteward, worker):
    def shown(**environment):
        rows = json.loads(pgsteward("config", "--json", **environment).stdout)
        return next((row["value"], row["source"]) for row in rows if row["setting"] == "trust_recompute_timeout")

    assert shown() == ("30", "the default")
    for value in ("7", "60", "120"):
        assert shown(TRUST_RECOMPUTE_TIMEOUT_SEC=value) == (value, "the environment variable TRUST_RECOMPUTE_TIMEOUT_SEC")
        process = worker("--until-empty", TRUST_RECOMPUTE_TIMEOUT_SEC=value)
        assert process.wait() == 0 and logged(process, "worker started")["trust_recompute_timeout"] == f"{value}s"
    for value in ("0", "-1", "abc"):
        done = pgsteward("run", TRUST_RECOMPUTE_TIMEOUT_SEC=value)
        assert done.returncode == 2 and "TRUST_RECOMPUTE_TIMEOUT_SEC" in done.stderr and f'"{value}"' in done.stderr and "Give " in done.stderr


def test_a_timeout_from_the_environment(db, worker):
    add_scenes(db, 150)
    slow_down(db, 0.02)
    process = worker(TRUST_RECOMPUTE_TIMEOUT_SEC="1", TRUST_RECOMPUTE_INTERVAL_SEC="3600")
    line = logged(process, "trust recompute timeout exceeded")
    (run,) = db.run("SELECT processed, timed_out FROM trust_recompute_runs ORDER BY id LIMIT 1")
    assert (line["level"], line["timeout"], line["total"], line["processed"]) == ("ERROR", "1s", 150, run.processed)
    assert run.timed_out and 0 < run.processed < 150
    slow_down(db, 0)
    process.stop()
    process = worker("--until-empty", TRUST_RECOMPUTE_TIMEOUT_SEC="60")
    assert process.wait() == 0 and lines(process, "trust recompute timeout exceeded") == []
    assert db.one("SELECT count(*) FROM trust_dirty") == 0


def test_a_cycle_in_the_log(db, worker):
    add_scenes(db, 150)
    db.run("SELECT * FROM trust_recompute()")
    db.run("UPDATE memberships SET trust_weight = 0.501 + ('x' || left(md5(user_did), 2))::bit(8)::int / 1000.0")
    before = dict(db.run("SELECT scene_id, score FROM trust_scores"))
    process = worker("--until-empty")
    assert process.wait() == 0
    (started,), (completed,) = lines(process, "recomputing trust scores"), lines(process, "trust recompute completed")
    assert (started["level"], started["dirty_count"]) == ("INFO", 150) and started["time"] <= completed["time"]
    messages = [json.loads(line)["msg"] for line in process.log if line.startswith("{")]
    assert messages.index("recomputing trust scores") < messages.index("trust recompute completed")
    assert (completed["level"], completed["scenes_processed"], completed["scenes_failed"]) == ("INFO", 150, 0)
    changes = [abs(score - before[scene]) for scene, score in db.run("SELECT scene_id, score FROM trust_scores")]
    assert completed["avg_weight_variance"] == pytest.approx(sum(changes) / 150, abs=1e-9) and completed["avg_weight_variance"] > 0
    assert isinstance(completed["duration_seconds"], float)
    assert lines(process, "recompute progress") == lines(process, "trust score recomputed") == []


def test_progress_and_scores_at_debug_level(db, worker):
    add_scenes(db, 150)
    first = db.one("SELECT md5('1')::uuid")
    db.run("INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) SELECT %s, 'did:more ' || i, 'member', 'active', 0.8 FROM generate_series(1, 4) i", (first,))
    db.run("INSERT INTO alliances (from_scene_id, to_scene_id, weight) SELECT %s, md5(i::text)::uuid, 0.9 FROM generate_series(2, 4) i", (first,))
    process = worker("--until-empty", "--log-level", "debug")
    assert process.wait() == 0, process.output
    logged_lines = [json.loads(line) for line in process.log if line.startswith("{")]
    assert all(line["level"] and line["msg"] for line in logged_lines)
    progress = lines(process, "recompute progress")
    assert [(line["level"], line["processed"], line["total"]) for line in progress] == [("DEBUG", 10 * n, 150) for n in range(1, 16)]
    scenes = lines(process, "trust score recomputed")
    assert {line["level"] for line in scenes} == {"DEBUG"} and len(scenes) == len({line["scene_id"] for line in scenes}) == 150
    (line,) = [line for line in scenes if line["scene_id"] == str(first)]
    stored = db.one("SELECT score FROM trust_scores WHERE scene_id = %s", (first,))
    assert (line["memberships"], line["alliances"], line["score"]) == (5, 3, pytest.approx(stored, abs=1e-12))
    messages = [line["msg"] for line in logged_lines]
    assert messages.index("recomputing trust scores") < messages.index("recompute progress") < messages.index("trust recompute completed")
    with_info = [line for line in logged_lines if line["msg"] == "trust recompute completed"]
    assert [line["scenes_processed"] for line in with_info] == [150]


def test_one_of_twenty_scenes_fails(db, worker):
    add_scenes(db, 20)
    third = db.one("SELECT md5('3')::uuid")
    break_scenes(db, [third])
    process = worker(TRUST_RECOMPUTE_INTERVAL_SEC="3600")
    logged(process, "trust recompute completed")
    (line,) = lines(process, "failed to recompute trust score")
    assert (line["level"], line["scene_id"]) == ("ERROR", str(third)) and "no room for this scene" in line["error"]
    completed = lines(process, "trust recompute completed")[0]
    assert (completed["scenes_processed"], completed["scenes_failed"]) == (19, 1)


def test_why_a_recompute_stopped(db, worker):
    """Cancelled, its session ended, and told to stop: three reasons in the log, in the heartbeat and among the runs."""
    add_scenes(db, 40)
    slow_down(db, 0.25)
    process = worker("--heartbeat-interval", "0.2", "--metrics-listen", "127.0.0.1:0")
    reasons = {"pg_cancel_backend": "statement cancelled", "pg_terminate_backend": "session terminated by an administrator"}
    for function, reason in reasons.items():
        db.run(f"SELECT {function}(pid) FROM ({wait_and_return_busy(db)}) AS busy")
        line = logged(process, f"trust recompute job stopping due to {reason}")
        assert line["level"] == "INFO" and "SQLSTATE 57" in line["error"]
        wait_until(lambda: db.one("SELECT trust_stop FROM vw_worker_health") == reason, 10, f"the reason {reason} in the heartbeat")
    wait_until(lambda: db.one("SELECT count(*) FROM trust_recompute_runs WHERE error IS NOT NULL") == 2, 20, "both broken calls among the runs")
    assert scrape(process)["trust_recompute_errors_total"] >= 2 or wait_until(lambda: scrape(process)["trust_recompute_errors_total"] >= 2, 10)
    slow_down(db, 0)
    process.process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    assert [line["level"] for line in lines(process, "trust recompute job stopping due to stop signal")] == ["INFO"]
    (row,) = db.run("SELECT trust_stop, trust_stopped_at > now() - interval '1 minute' AS lately FROM vw_worker_health")
    assert row == ("stop signal", True)
    detail = db.one("SELECT detail FROM steward_health WHERE check_name = 'worker.alive'")
    assert detail.startswith("0 workers alive; the last, ") and "trust recompute stopped: stop signal" in detail


def wait_and_return_busy(db):
    """The statement that finds the session of a recompute, once there is one."""
    wait_until(lambda: db.run(BUSY), what="a busy recompute")
    return BUSY


def test_a_start_that_fails_is_an_error_in_the_log(db, worker, pgsteward):
    stopped = worker("--until-empty")
    assert stopped.wait() == 0
    if not db.run("SELECT FROM pg_roles WHERE rolname = 'test_login'"):
        db.run("CREATE ROLE test_login LOGIN PASSWORD 'secret pass/word'")
    done = pgsteward("run", url=f"postgresql://test_login:wrong@127.0.0.1:{db.cluster.port}/{db.name}")
    last = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == 1 and last["level"] == "ERROR" and "test_login" in last["msg"] and "DATABASE_URL" in last["hint"]
    (row,) = db.run("SELECT level, detail, hint FROM steward_health WHERE check_name = 'worker.alive'")
    assert row.level == "warn" and "trust recompute stopped: nothing left to do" in row.detail and "ERROR" in row.hint


def test_a_worker_of_one_region(db, worker):
    add_scenes(db, 60)
    db.run("UPDATE scenes SET coarse_geohash = CASE WHEN owner_did > 'did:3' THEN 'u33db' ELSE 'gcpvj' END")
    ours = db.one("SELECT count(*) FROM scenes WHERE coarse_geohash LIKE 'u%'")
    process = worker("--until-empty", TRUST_REGION="u33")
    assert process.wait() == 0 and logged(process, "recomputing trust scores")["dirty_count"] == ours
    assert db.run("SELECT s.coarse_geohash, count(*) FROM trust_scores t JOIN scenes s ON s.id = t.scene_id GROUP BY 1") == [("u33db", ours)]
    assert worker("--until-empty", TRUST_REGION="g").wait() == 0
    assert db.one("SELECT count(*) FROM trust_scores") == 60 and db.one("SELECT count(*) FROM trust_dirty") == 0


def test_recomputes_that_wait_for_connections(db, worker):
    """Eight recomputes at the same time warn with two connections, and do not with ten."""
    add_scenes(db, 400)
    slow_down(db, 0.05)
    flags = ("--queue-concurrency", "1", "--trust-recompute-concurrency", "8", "--trust-recompute-batch-size", "1", "--heartbeat-interval", "0.1", "--metrics-listen", "127.0.0.1:0")
    health = "SELECT h.level, h.detail FROM steward_health h JOIN vw_worker_health w ON w.worker_id = h.subject WHERE h.check_name = 'worker.pool' AND w.alive"
    process = worker(*flags, "--pool-size", "2", TRUST_RECOMPUTE_INTERVAL_SEC="1")
    wait_until(lambda: [row for row in db.run(health) if row.level == "warn" and "2 of 2 connections in use" in row.detail], what="the warning")
    samples = wait_until(lambda: {name: value for name, value in scrape(process).items() if value and name == "pgsteward_pool_waiting"} and scrape(process), what="waiting tasks")
    assert samples["pgsteward_pool_max"] == 2 and samples["pgsteward_database_up"] == 1
    process.kill()
    db.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsteward%%' AND datname = current_database()")
    wait_until(lambda: db.run(BUSY) == [], what="the end of its sessions")
    db.run("DELETE FROM trust_scores")
    db.run("SELECT trust_mark_all_dirty()")
    process = worker(*flags, "--pool-size", "10", TRUST_RECOMPUTE_INTERVAL_SEC="1")
    wait_until(lambda: db.one(f"SELECT count(*) FROM ({BUSY}) AS busy") >= 8, what="eight recomputes at the same time")
    alive = "SELECT count(*) FROM vw_worker_health WHERE alive AND pool_max = 10 AND pool_in_use >= 8"
    wait_until(lambda: db.one(alive) == 1, 10, "a heartbeat meanwhile")
    assert {row.level for row in db.run(health + " AND w.pool_max = 10")} == {"ok"}
