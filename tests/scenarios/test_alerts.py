"""The alert rules and the dashboard as files: valid, tested in both directions, with a way to what to do."""

import json
import re

import pytest
from conftest import ROOT
from devkit.prometheus import promtool
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

RULES = ROOT / "docs/prometheus/trust.rules.yml"
TESTS = ROOT / "tests/prometheus/trust.test.yml"
DASHBOARD = ROOT / "docs/grafana/trust-recompute.json"
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text())
QUANTILE = "histogram_quantile({}, sum by (job, le) (rate(trust_recompute_duration_seconds_bucket[5m])))"
PANELS = {  # of the source document
    "Recompute Latency": ("timeseries", [QUANTILE.format(0.5), QUANTILE.format(0.95), QUANTILE.format(0.99)]),
    "Recompute Rate": ("timeseries", ["rate(trust_recompute_total[1m])"]),
    "Error Rate": ("timeseries", ["rate(trust_recompute_errors_total[1m])"]),
    "Scene Count": ("timeseries", ["trust_last_recompute_scene_count"]),
    "Average Variance": ("stat", ["max by (job) (trust_avg_weight_variance)"]),
}

DOCUMENT = ROOT.parent / "shared/seeds/0-trust-operations.md"
OF_THE_DOCUMENT = {  # threshold, duration, severity, description
    "TrustRecomputeHighLatency": ("2", "5m", "warning", "Trust recompute p95 latency ({{ $value }}s) exceeds SLO target of 2s"),
    "TrustRecomputeCriticalLatency": ("5", "5m", "critical", "Trust recompute p95 latency ({{ $value }}s) exceeds critical threshold of 5s"),
    "TrustRecomputeHighErrorRate": ("0.01", "5m", "critical", "Trust recompute error rate ({{ $value | humanizePercentage }}) exceeds 1%"),
    "TrustRecomputeStale": ("300", "5m", "warning", "Trust recompute hasn't run successfully in {{ $value | humanizeDuration }}"),
    "TrustRecomputeLargeBatch": ("1000", "5m", "info", "Trust recompute processing unusually large batch ({{ $value }} scenes)"),
}


def told(text):
    """Threshold, duration, severity and description of each alert in a text."""
    fields = r"alert: (\w+)\s+expr: .*?> ([\d.]+)\s.*?for: (\w+)\n.*?severity: (\w+)\n.*?description: \"(.*?)\"\n"
    return {found[1]: found.groups()[1:] for found in re.finditer(fields, text, re.S)}


def panels():
    return json.loads(DASHBOARD.read_text())["panels"]


def test_the_rules_are_valid():
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0 and f"{len(ALERTS)} rules found" in done.stdout, done.stdout + done.stderr


def test_the_documented_configuration_is_valid(tmp_path):
    (configuration,) = re.findall(r"In `prometheus.yml`.*?```yaml\n(.*?)```", (ROOT / "docs/monitoring.md").read_text(), re.S)
    (tmp_path / "prometheus.yml").write_text(configuration)
    assert promtool("check", "config", tmp_path / "prometheus.yml").returncode != 0  # the rule file is missing
    (tmp_path / RULES.name).write_text(RULES.read_text())
    done = promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_when_they_should_and_only_then():
    done = promtool("test", "rules", TESTS)
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


def test_the_alerts_are_the_documents():
    """Against the document itself where it is at hand."""
    if DOCUMENT.exists():
        assert told(DOCUMENT.read_text()) == OF_THE_DOCUMENT
    rules = told(RULES.read_text())
    assert {name: rules[name] for name in OF_THE_DOCUMENT} == OF_THE_DOCUMENT


@pytest.mark.parametrize("broken", [
    ("> 300", "> > 300"),  # no expression
    ("rate(", "rat("),  # no function
    ("for: 5m", "for: 5 minutes"),  # no duration
    ("{{ $value }}", "{{ $value "),  # no template
    ("        labels:\n          severity: info\n", "        severity: info\n"),  # a field that rules do not have
])
def test_a_broken_rule_file_is_refused(broken, tmp_path):
    right, wrong = broken
    assert right in RULES.read_text()
    (tmp_path / "wrong.rules.yml").write_text(RULES.read_text().replace(right, wrong))
    assert promtool("check", "rules", tmp_path / "wrong.rules.yml").returncode != 0


def failures(folder, pattern, replacement):
    """What the tests of the alerts complain about when every rule is changed: (alert, what it should say is empty, what it says is empty)."""
    rules, count = re.subn(pattern, replacement, RULES.read_text(), flags=re.M | re.S)
    assert count == len(ALERTS)
    (folder / "changed.rules.yml").write_text(rules)
    (folder / "changed.test.yml").write_text(re.sub(r"^rule_files: .*$", "rule_files: [changed.rules.yml]", TESTS.read_text(), flags=re.M))
    done = promtool("test", "rules", folder / "changed.test.yml")
    assert done.returncode != 0
    return [(name, expected == "[]", got == "[]") for name, expected, got in re.findall(
        r"alertname: (\w+), time: \S+\s+exp:(\[\]|\[.*?\n\s+\]),\s+got:(\[\]|\[.*?\n\s+\])\s*$", done.stdout + done.stderr, re.M | re.S)]


@pytest.mark.parametrize("pattern, replacement, too_often", [
    (r"expr: .*?(?=\n        for:)", "expr: vector(0) > 1", False),  # never holds
    (r"expr: .*?(?=\n        for:)", "expr: vector(1)", True),  # always holds
    (r"for: 5m$", "for: 4m", True),
    (r"for: 5m$", "for: 5m30s", False),
])
def test_every_alert_is_tested_in_both_directions(pattern, replacement, too_often, tmp_path):
    """Whatever is wrong with any alert, its tests fail: it fires though it should not, or it does not though it should."""
    found = failures(tmp_path, pattern, replacement)
    wrong = {name for name, silence_expected, silence_found in found if (silence_expected if too_often else silence_found)}
    assert wrong == set(ALERTS)


def anchors(page):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_alert_leads_to_what_to_do():
    links = dict(re.findall(r"- alert: (\w+).*?runbook_url: (\S+)", RULES.read_text(), re.S))
    assert list(links) == ALERTS
    for name, link in links.items():
        page, anchor = link.split("#")
        assert anchor == name.lower() and anchor in anchors(ROOT / page), link
        section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", (ROOT / page).read_text(), re.M | re.S)[1]
        assert section.count("```sql") == 1, f"{name} has one statement to run"


def lost(given, kept, where=""):
    """What of a JSON document is missing or different in another."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [fault for key in given for fault in (lost(given[key], kept[key], f"{where}.{key}") if key in kept else [f"{where}.{key}"])]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [fault for number, pair in enumerate(zip(given, kept)) for fault in lost(*pair, f"{where}[{number}]")]
    return [] if given == kept else [where]


def not_grafanas(dashboard):
    """The fields that Grafana's own types of a dashboard do not know; annotations may have some of their data source."""
    plugins.register_default_plugins()
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    return [field for field in lost(dashboard, kept) if not re.search(r"^\.annotations\.list\[\d\]\.titleFormat$", field)]


def test_the_dashboard_is_one():
    dashboard = json.loads(DASHBOARD.read_text())
    assert not_grafanas(dashboard) == []
    assert dashboard["schemaVersion"] >= 36 and dashboard["uid"] and dashboard["refresh"] and dashboard["time"]["to"] == "now"
    assert [(variable["name"], variable["type"], variable["query"]) for variable in dashboard["templating"]["list"]] == [("datasource", "datasource", "prometheus")]
    assert len({panel["id"] for panel in panels()}) == len({panel["title"] for panel in panels()}) == len(panels())
    cells = [(x, y) for panel in panels() for grid in [panel["gridPos"]]
             for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24, "panels overlap or stand out"
    for panel in panels():
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"] and panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for part in [panel, *panel["targets"]]:
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert all(target["expr"] for target in panel["targets"])


def test_the_check_of_the_dashboard_can_fail():
    dashboard = json.loads(DASHBOARD.read_text())
    dashboard["panels"][0]["gridpos"] = {}
    dashboard["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    dashboard["panels"][2]["targets"][0]["expression"] = "up"
    assert not_grafanas(dashboard) == [".panels[0].gridpos", ".panels[1].fieldConfig.defaults.units", ".panels[2].targets[0].expression"]


def test_the_dashboard_has_the_panels_of_the_document():
    found = {panel["title"]: (panel["type"], [target["expr"] for target in panel["targets"]]) for panel in panels()}
    assert {title: found.get(title) for title in PANELS} == PANELS


def thresholds(title):
    (panel,) = [panel for panel in panels() if panel["title"] == title]
    return [(step["color"], step["value"]) for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]


def test_thresholds_are_those_of_the_objectives():
    assert thresholds("Recompute Latency") == [("green", None), ("orange", 2), ("red", 5)]
    assert thresholds("Failed Share") == [("green", None), ("orange", 0.001), ("red", 0.01)]
    assert thresholds("Throughput") == [("red", None), ("orange", 50), ("green", 100)]
    assert thresholds("Scene Count")[-1][1] == 1000 and thresholds("Last Success")[-1][1] == 300
