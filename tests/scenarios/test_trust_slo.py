"""Service levels of the recompute, advice as it grows, and what its symptoms come from."""

import re

import pytest
from conftest import ROOT, refused
from observed import add_runs, add_scenes, break_scenes, slow_down


def verdicts(db):
    return {row.metric: row.verdict for row in db.run("SELECT * FROM vw_trust_slo")}


def after(db, *runs):
    """The service levels after just these runs."""
    db.run("DELETE FROM trust_recompute_runs")
    add_runs(db, runs)
    return {row.metric: row for row in db.run("SELECT * FROM vw_trust_slo")}


def test_targets_and_thresholds_of_the_document(db):
    found = [(row.metric, row.target, row.critical_threshold, row.unit, row.current_value, row.verdict) for row in db.run("SELECT * FROM vw_trust_slo")]
    assert found == [("p95_duration", 2, 5, "seconds", None, "no data"), ("p99_duration", 5, 10, "seconds", None, "no data"),
                     ("error_rate", 0.001, 0.01, "ratio", None, "no data"), ("throughput", 100, 50, "scenes/s", None, "no data")]
    assert db.run("SELECT FROM steward_health WHERE check_name = 'trust.slo' AND level <> 'ok'") == []


def test_verdict_of_the_p95_duration(db):
    for duration_ms, verdict, level in ((1900, "ok", "ok"), (2000, "warning", "warn"), (4900, "warning", "warn"), (6000, "critical", "error")):
        row = after(db, *[{"duration_ms": duration_ms, "processed": 9000}] * 20)["p95_duration"]
        assert (row.current_value, row.verdict) == (duration_ms / 1000, verdict)
        assert db.one("SELECT level FROM steward_health WHERE check_name = 'trust.slo' AND subject = 'p95_duration'") == level
    assert after(db, *[{"duration_ms": 100}] * 99, {"duration_ms": 60000, "timed_out": True})["p95_duration"].verdict == "ok"


def test_verdict_of_the_p99_duration(db):
    for duration_ms, verdict in ((4900, "ok"), (5000, "warning"), (9900, "warning"), (11000, "critical")):
        row = after(db, *[{"duration_ms": 100, "processed": 9000}] * 18, *[{"duration_ms": duration_ms, "processed": 9000}] * 2)["p99_duration"]
        assert (row.current_value, row.verdict) == (pytest.approx(duration_ms / 1000), verdict)


def test_verdict_of_the_error_rate(db):
    for failed, verdict in ((5, "ok"), (10, "warning"), (20, "warning"), (100, "critical"), (150, "critical")):
        row = after(db, *[{"processed": 1000}] * 9, {"processed": 1000 - failed, "failed": failed})["error_rate"]
        assert (row.current_value, row.verdict) == (pytest.approx(failed / 10000), verdict)


def test_verdict_of_the_throughput(db):
    for processed, verdict in ((1010, "ok"), (1000, "warning"), (510, "warning"), (400, "critical")):
        row = after(db, {"duration_ms": 10000, "processed": processed})["throughput"]
        assert (row.current_value, row.verdict) == (processed / 10, verdict)
    idle = after(db, {"duration_ms": 1000, "processed": 200}, {"duration_ms": 60000, "processed": 0, "error": "no connection"})
    assert idle["throughput"].current_value == 200, "a cycle without scenes says nothing about their pace"
    assert after(db, {"duration_ms": 40, "processed": 1})["throughput"].verdict == "no data", "nor does one with a single scene"
    assert after(db, {"duration_ms": 1000, "processed": 40})["throughput"].verdict == "critical"


def test_errors_are_timeouts_and_failures_of_the_database(db):
    add_scenes(db, 20)
    first = db.one("SELECT md5('1')::uuid")
    break_scenes(db, [first])
    (run,) = db.run("SELECT * FROM trust_recompute()")
    assert (run.processed, run.failed) == (19, 1)
    break_scenes(db, [])
    slow_down(db, 0.2)
    db.run("UPDATE trust_scores SET score = 0.9")
    db.run("SELECT trust_mark_all_dirty()")
    slowed = db.run("SELECT * FROM trust_recompute(timeout => '300 ms')")[0]
    assert slowed.timed_out and slowed.failed == 0
    (row,) = db.run("SELECT * FROM vw_trust_slo WHERE metric = 'error_rate'")
    assert row.detail == f"2 errors in {19 + 1 + slowed.processed + 1} attempts" and row.verdict == "critical"
    db.run("SELECT record_trust_run(clock_timestamp(), 10, 0, 0, 0, 20, 0, false, 'canceling statement due to user request')")
    (row,) = db.run("SELECT * FROM vw_trust_slo WHERE metric = 'error_rate'")
    assert row.detail.startswith("3 errors in ")


def test_cycles_of_ten_thousand_scenes_reach_the_targets(db):
    add_scenes(db, 9999)
    for weight in range(1, 9):
        db.run("UPDATE memberships SET trust_weight = %s", (weight / 20,))
        (run,) = db.run("SELECT * FROM trust_recompute()")
        assert (run.processed, run.changed, run.remaining) == (9999, 9999, 0)
    assert verdicts(db) == dict.fromkeys(("p95_duration", "p99_duration", "error_rate", "throughput"), "ok")
    assert db.one("SELECT detail FROM vw_trust_slo WHERE metric = 'p95_duration'") == "of 8 cycles"


def beat(db, worker, timeout_sec, callers=1):
    db.run("SELECT worker_beat(%s, 'host', 1, '0.1.0', now(), 'running', false, 0, 0, NULL, 1, 0, 0, 5, %s, %s)", (worker, timeout_sec, callers))


def test_advice_at_each_step_of_growth(db):
    def steps():
        return [row.subject for row in db.run("SELECT subject FROM steward_health WHERE check_name = 'trust.scaling' ORDER BY value, threshold")]

    def reached():
        return db.one("SELECT detail FROM steward_health WHERE check_name = 'trust.scenes'")

    db.run("ALTER TABLE scenes DISABLE TRIGGER USER")
    add = "INSERT INTO scenes (name, owner_did) SELECT 'scene ' || i, 'did:' || i FROM generate_series(%s::int, %s) i"
    db.run(add, (1, 9999))
    assert steps() == [] and reached() == "9999 scenes"
    db.run(add, (10000, 10001))
    assert steps() == ["10k"] and reached() == "10001 scenes, the 10k step is reached"
    (row,) = db.run("SELECT * FROM steward_health WHERE check_name = 'trust.scaling'")
    assert "TRUST_RECOMPUTE_TIMEOUT_SEC=60" in row.hint and "index" in row.hint and row.value == 10001
    db.run(f"ALTER DATABASE \"{db.name}\" SET pgsteward.trust_recompute_timeout = '60s'")
    assert steps() == []
    beat(db, "a", 30)
    assert steps() == ["10k"], "the worker's own timeout counts"
    beat(db, "a", 60)
    assert steps() == []
    db.run(add, (10002, 50000))
    assert steps() == ["50k"] and "50k" in reached()
    beat(db, "a", 60, callers=2)
    assert steps() == []
    db.run(add, (50001, 100000))
    assert steps() == ["100k"] and "100k" in reached()
    beat(db, "b", 120)
    assert steps() == []


def test_sporadic_or_consistent_timeouts(db):
    def verdict():
        return db.one("SELECT verdict FROM vw_trust_timeouts")

    assert verdict() == "no data"
    for timed_out, wanted in ((0, "none"), (2, "sporadic"), (24, "sporadic"), (25, "consistent"), (45, "consistent")):
        after(db, *[{"timed_out": n % 50 < timed_out} for n in range(50)])
        (row,) = db.run("SELECT * FROM vw_trust_timeouts")
        assert (row.cycles, row.timed_out, row.verdict) == (50, timed_out, wanted)
    assert "TRUST_RECOMPUTE_TIMEOUT_SEC" in row.advice
    add_runs(db, [{}] * 50)
    assert verdict() == "none", "what was mended is over"


def test_a_longer_timeout_ends_consistent_timeouts(db):
    add_scenes(db, 30)
    slow_down(db, 0.02)
    for _ in range(3):
        db.run("DELETE FROM trust_scores")
        db.run("SELECT trust_mark_all_dirty()")
        assert db.one("SELECT timed_out FROM trust_recompute(timeout => '100 ms')")
    assert db.one("SELECT verdict FROM vw_trust_timeouts") == "consistent"
    assert db.one("SELECT level FROM steward_health WHERE check_name = 'trust.timeout'") == "warn"
    (run,) = db.run("SELECT * FROM trust_recompute(timeout => '60 s')")
    assert not run.timed_out and run.remaining == 0 and run.processed > 0
    assert db.one("SELECT level FROM steward_health WHERE check_name = 'trust.timeout'") == "ok"


def explained():
    """The EXPLAIN statements of the trust page."""
    blocks = re.findall(r"```sql[^\n]*\n(.*?)```", (ROOT / "docs/trust.md").read_text(), re.S)
    return [statement for block in blocks for statement in re.findall(r"EXPLAIN .*?;", block, re.S)]


def test_few_dirty_scenes_are_read_by_index(db):
    add_scenes(db, 10000)
    db.run("INSERT INTO alliances (from_scene_id, to_scene_id) SELECT md5(i::text)::uuid, md5((i + 1)::text)::uuid FROM generate_series(1, 9999) i")
    db.run("SELECT * FROM trust_recompute()")
    db.run("ANALYZE scenes, memberships, alliances, trust_scores, trust_dirty")
    db.run("UPDATE memberships SET trust_weight = 0.7 WHERE scene_id = md5('7')::uuid")
    plans = {}
    for statement in explained():
        plan = "\n".join(row[0] for row in db.run(statement))
        plans[re.search(r"\bFROM (\w+)", statement)[1]] = plan
        assert not re.search(r"Seq Scan on (memberships|alliances|scenes|trust_scores)", plan), plan
    assert {"memberships", "alliances", "trust_scores"} <= plans.keys()
    assert "memberships_scene" in plans["memberships"] and "alliances_from_idx" in plans["alliances"] and "trust_scores_pkey" in plans["trust_scores"]


def test_a_dropped_index_is_named(db):
    for index in ("memberships_scene_status_idx", "alliances_from_idx", "trust_recompute_runs_started_idx"):
        db.run(f"DROP INDEX {index}")
    faults = {row.object for row in db.run("SELECT object FROM steward_schema_validate() WHERE kind = 'index'")}
    assert {name.split(".")[1] for name in faults} == {"memberships_scene_status_idx", "alliances_from_idx", "trust_recompute_runs_started_idx"}


def test_arguments_of_a_beat_keep_the_old_call(db):
    """A beat without the newer arguments is a worker of which no more is known."""
    db.run("SELECT worker_beat('old', 'host', 1, '0.0.9', now(), 'running', true, 0, 120)")
    assert db.run("SELECT pool_max, trust_callers FROM vw_worker_health") == [(None, None)]
    assert db.run("SELECT FROM steward_health WHERE check_name = 'worker.pool'") == []
    with db.connect() as connection:
        refused(connection, "SELECT worker_beat('old', 'host', 1, '0.0.9', now(), 'confused', true, 0, 120)", "23514", hint=False)
