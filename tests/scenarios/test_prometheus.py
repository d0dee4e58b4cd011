"""A real Prometheus scrapes the real worker: every rule and every panel gets its numbers."""

import json
import math
import re
import uuid
from types import SimpleNamespace

import pytest
from conftest import Worker, create_database, drop_database, wait_until
from devkit.prometheus import Prometheus
from devkit.say import DevError
from observed import add_scenes, break_scenes, lines, logged
from test_alerts import ALERTS, DASHBOARD, PANELS, QUANTILE, RULES, panels

SCENES = 50
NAMES = re.compile(r"\b(?:trust|pgsteward)_[a-z_]+\b")


def completed(worker):
    """What the log says of the last cycle that completed with scenes."""
    return ([line for line in lines(worker, "trust recompute completed") if line["scenes_processed"]] or [None])[-1]


@pytest.fixture(scope="module")
def scraped(cluster, template):
    """A worker that has failed at one scene, then recomputed all of them in one cycle, and a Prometheus that looked on."""
    name = f"p_{uuid.uuid4().hex[:12]}"
    db = create_database(cluster, name, template)
    add_scenes(db, SCENES)
    db.run("SELECT * FROM trust_recompute()")
    worker = Worker(db.url, environment={"PGSTEWARD_METRICS_LISTEN": "127.0.0.1:0", "TRUST_RECOMPUTE_INTERVAL_SEC": "3600"})
    prometheus = None
    try:
        prometheus = Prometheus(cluster, [logged(worker, "serving metrics")["address"]], [RULES])
        wait_until(lambda: prometheus.query("trust_recompute_total"), what="the first scrape")
        break_scenes(db, [db.one("SELECT md5('13')::uuid")])
        db.run("UPDATE memberships SET trust_weight = 0.75")
        wait_until(lambda: (completed(worker) or {}).get("scenes_failed") == 1, what="a cycle with a failure")
        wait_until(lambda: [value for _, value in prometheus.query("trust_recompute_errors_total")] == [1], what="the failure in Prometheus")
        break_scenes(db, [])
        db.run("UPDATE memberships SET trust_weight = 0.8 + ascii(right(scene_id::text, 1)) / 1000.0")
        wait_until(lambda: completed(worker)["scenes_processed"] == SCENES, what="a cycle of all scenes")
        wait_until(lambda: [value for _, value in prometheus.query("trust_last_recompute_scene_count")] == [SCENES], what="that cycle in Prometheus")
        yield SimpleNamespace(db=db, worker=worker, prometheus=prometheus)
    finally:
        if prometheus:
            prometheus.stop()
        worker.stop()
        drop_database(cluster, name)


def values(scraped, expression):
    """The values of an expression, of which there must be some, and numbers."""
    found = [value for _, value in scraped.prometheus.query(expression)]
    assert found and not any(math.isnan(value) for value in found), f"{expression}: {found}"
    return found


def panel(title):
    """The queries of a panel."""
    (found,) = [panel for panel in panels() if panel["title"] == title]
    return [target["expr"] for target in found["targets"]]


def test_prometheus_understands_what_the_worker_exports(scraped):
    (target,) = scraped.prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    kinds = {name: {entry["type"] for entry in told} for name, told in scraped.prometheus.ask("metadata").items()}
    assert kinds["trust_recompute_total"] == kinds["trust_recompute_errors_total"] == {"counter"}
    assert kinds["trust_recompute_duration_seconds"] == {"histogram"}
    assert kinds["trust_last_recompute_timestamp"] == kinds["trust_last_recompute_scene_count"] == {"gauge"}
    bounds = {labels["le"] for labels, _ in scraped.prometheus.query("trust_recompute_duration_seconds_bucket")}
    assert sorted(map(float, bounds)) == [0.1, 0.25, 0.5, 1, 2, 5, 10, math.inf]


def test_rules_and_panels_name_only_what_is_exported(scraped):
    exported = set(scraped.prometheus.ask("label/__name__/values"))
    rules = re.findall(r"expr: (.*?)(?=\n        for:)", RULES.read_text(), re.S)
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert len(rules) == len(ALERTS)
    for expression in [*rules, *queries]:
        assert NAMES.findall(expression) and set(NAMES.findall(expression)) <= exported, expression


def test_prometheus_evaluates_every_rule(scraped):
    def evaluated():
        rules = [rule for group in scraped.prometheus.ask("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = wait_until(evaluated, what="the rules' first evaluation")
    assert [(rule["name"], rule["health"]) for rule in rules] == [(name, "ok") for name in ALERTS]
    assert {rule["state"] for rule in rules} <= {"inactive", "pending"}  # 1 failure in 100 attempts is on the edge


def test_every_panel_has_data(scraped):
    for target in [target for panel in panels() for target in panel["targets"]]:
        values(scraped, target["expr"])
    for annotation in json.loads(DASHBOARD.read_text())["annotations"]["list"]:
        assert "expr" not in annotation or scraped.prometheus.query(annotation["expr"]) == []  # nothing fires


def test_a_wrong_query_is_refused(scraped):
    with pytest.raises(DevError, match="parse error"):
        scraped.prometheus.query("rate(trust_recompute_total[1m]")
    assert scraped.prometheus.query("trust_recompute_totals") == []


def test_panel_recompute_latency(scraped):
    assert panel("Recompute Latency") == PANELS["Recompute Latency"][1] == [QUANTILE.format(q) for q in (0.5, 0.95, 0.99)]
    p50, p95, p99 = [value for query in panel("Recompute Latency") for value in values(scraped, query)]
    assert 0 < p50 <= p95 <= p99 <= 10


def test_panel_recompute_rate(scraped):
    assert panel("Recompute Rate") == ["rate(trust_recompute_total[1m])"]
    assert values(scraped, panel("Recompute Rate")[0])[0] > 0


def test_panel_error_rate_after_a_failure(scraped):
    assert panel("Error Rate") == ["rate(trust_recompute_errors_total[1m])"]
    assert values(scraped, panel("Error Rate")[0])[0] > 0
    (share,) = values(scraped, panel("Failed Share")[0])
    assert share == pytest.approx(1 / (2 * SCENES), rel=0.5)  # rates are extrapolated


def test_panel_scene_count_after_a_cycle_of_50_scenes(scraped):
    assert panel("Scene Count") == ["trust_last_recompute_scene_count"]
    assert values(scraped, panel("Scene Count")[0]) == [50]


def test_panel_average_variance_is_that_of_the_log(scraped):
    logged = completed(scraped.worker)["avg_weight_variance"]
    assert values(scraped, panel("Average Variance")[0]) == [pytest.approx(logged, abs=1e-12)] and logged > 0
