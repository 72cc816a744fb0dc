"""Alert rules and the dashboard: well formed, each alert fires when it should, and what they ask for is there."""
import json
import re
import subprocess

import pytest
import servers
import yaml

TOP = servers.REPOSITORY
ALERTS = TOP / "deploy/prometheus/alerts.yml"
ALERT_TESTS = TOP / "tests/deploy/alerts_test.yml"
DASHBOARD = TOP / "deploy/grafana/imapmux.json"
METRIC = re.compile(r"\b((?:imapmux|process)_[a-z_]+[a-z])\b")


def rules():
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def known_metrics():
    sources = [path.read_text() for path in (TOP / "proxy").rglob("*.[cd]*")]
    return {name for text in sources for name in METRIC.findall(text)}


@pytest.mark.parametrize("words", [["check", "rules", ALERTS], ["check", "config", "deploy/prometheus/prometheus.yml"],
                                   ["test", "rules", ALERT_TESTS]], ids=lambda words: " ".join(words[:2]))
def test_promtool_finds_nothing(words):
    checked = subprocess.run(["promtool", *words], cwd=TOP, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_alert_is_seen_firing_and_silent():
    cases = [case for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    for wanted in (True, False):
        seen = {case["alertname"] for case in cases if bool(case["exp_alerts"]) == wanted}
        assert seen == {rule["alert"] for rule in rules()}


def test_each_alert_leads_to_a_page():
    titles = re.findall(r"^#+ (.*)$", (TOP / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    anchors = {"troubleshooting.md#" + title.lower().replace(" ", "-") for title in titles}
    assert {rule["annotations"]["runbook"] for rule in rules()} <= anchors


def test_the_page_has_each_alert():
    page = (ALERTS.parent / "README.md").read_text()
    assert re.findall(r"^\| (Imapmux\w+)", page, re.MULTILINE) == [rule["alert"] for rule in rules()]


def test_alerts_ask_for_metrics_that_are_there():
    asked = {re.sub("_bucket$", "", name) for rule in rules() for name in METRIC.findall(rule["expr"])}
    assert len(asked) > 10 and asked - known_metrics() == set()


def test_the_dashboard_asks_for_metrics_that_are_there():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    asked = {re.sub("_bucket$", "", name) for query in queries for name in METRIC.findall(query)}
    assert len(asked) > 40 and asked - known_metrics() == set()


def test_the_queries_of_the_dashboard_are_well_formed(tmp_path):
    """As rules, which promtool can parse, with Grafana's variables filled in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
               for panel in panels for target in panel.get("targets", [])]
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    checked = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_the_panels_do_not_overlap():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
