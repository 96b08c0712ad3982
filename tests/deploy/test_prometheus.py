"""The scrape file and the alert rules, by Prometheus' own tool and against the code's own metrics."""

from __future__ import annotations

import pytest
import yaml

from deploy.deployed import DEPLOY, RECORDED, ROOT, exported_metrics, metrics_in, rules, run
from tuneloop.monitor import slo

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
TESTS = ("rules_test.yml", "slo_test.yml")


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
