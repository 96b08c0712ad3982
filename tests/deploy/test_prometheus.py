"""The scrape file, the alert rules and the dashboard, by Prometheus' own tool and against the code's own metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.deployed import (
    DEPLOY,
    ROOT,
    dashboard,
    exported_metrics,
    metrics_in,
    panels,
    queries,
    rules,
    run,
    vllm_metrics,
)
from tuneloop.monitor import slo

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
TESTS = ("rules_test.yml", "slo_test.yml")
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def test_prometheus_takes_the_scrape_file_and_the_rules() -> None:
    run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_alertmanager_takes_its_file() -> None:
    run("amtool", "check-config", DEPLOY / "prometheus" / "alertmanager.yml")


def test_the_rules_of_objectives_are_those_the_verb_writes() -> None:
    written = (DEPLOY / "prometheus" / "slo.yml").read_text(encoding="utf-8")
    assert written == slo.rules({}), "write them anew: tuneloop alert rules --out deploy/prometheus/slo.yml"


@pytest.mark.parametrize("name", TESTS)
def test_every_alert_fires_and_stays_silent_when_it_should(name: str) -> None:
    run("promtool", "test", "rules", DEPLOY / "prometheus" / name)


def test_every_alert_has_a_test_that_fires_it_and_one_that_does_not() -> None:
    files = [yaml.safe_load((DEPLOY / "prometheus" / name).read_text(encoding="utf-8")) for name in TESTS]
    cases = [case for file in files for test in file["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == ALERTS.keys()
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == ALERTS.keys() - {"Watchdog"}, "it barks"


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_is_wrong_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    runbook = ROOT / alert["annotations"]["runbook"]
    assert runbook.is_file()
    assert name in runbook.read_text(encoding="utf-8"), "the runbook names the alert that leads to it"
    assert alert["annotations"]["summary"]
    severity = alert.get("labels", {}).get("severity")
    assert (
        severity in {"page", "ticket"}
        or name == "EpisodeOpen"  # an episode brings its own
        or (name, severity) == ("Watchdog", "none")
    )


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_rule_reads_metrics_that_exist(rule: dict[str, str]) -> None:
    read = metrics_in(rule["expr"])
    assert read or "up{" in rule["expr"] or rule.get("alert") == "Watchdog"
    assert read <= exported_metrics() | RECORDED


@pytest.mark.parametrize("query", queries())
def test_every_query_of_the_dashboard_reads_metrics_that_exist(query: str) -> None:
    ours = {name for name in metrics_in(query) if not name.startswith("vllm:")}
    assert ours <= exported_metrics() | RECORDED
    assert metrics_in(query) - ours <= vllm_metrics()


def test_prometheus_can_parse_every_query_of_the_dashboard(tmp_path: Path) -> None:
    as_rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": as_rules}]}))
    assert f"{len(as_rules)} rules found" in run("promtool", "check", "rules", file)


def test_every_exported_metric_is_drawn_or_alerts() -> None:
    seen = set().union(*(metrics_in(text) for text in [*queries(), *(rule["expr"] for rule in rules())]))
    families = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported_metrics()}
    unseen = {name for name in families if not any(used.startswith(name) for used in seen)}
    assert unseen == set()


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = dashboard()
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= board.keys()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], "every axis has a unit"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_no_panel_covers_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        box = panel["gridPos"]
        assert box["x"] + box["w"] <= 24
        for x in range(box["x"], box["x"] + box["w"]):
            for y in range(box["y"], box["y"] + box["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]
