"""Objectives become rules: globally and by model, for errors and latency, and Prometheus' own tool agrees."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tuneloop.monitor import slo
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.slo import Slo
from tuneloop.monitor.verbs_alert import alert
from tuneloop.registry.errors import InvalidInput
from tuneloop.serve.gateway.tally import SECONDS

OURS = {
    "*": Slo(latency=0.9, latency_s=2.5),
    "bot": Slo(errors=0.99, latency=0.99, latency_s=1.0),
    "c++.v2": Slo(errors=None),
}


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def answers(model: str, good_per_m: int, all_per_m: int, bound: str) -> list[dict[str, str]]:
    """The histogram of a gateway, as far as the rules read it."""
    labels = f'model="{model}", version="1"'
    return [
        {"series": f'tuneloop_request_seconds_bucket{{{labels}, le="{bound}"}}', "values": f"0+{good_per_m}x120"},
        {"series": f"tuneloop_request_seconds_count{{{labels}}}", "values": f"0+{all_per_m}x120"},
    ]


def requests(model: str, good_per_m: int, failed_per_m: int) -> list[dict[str, str]]:
    return [
        {"series": f'tuneloop_requests_total{{model="{model}", status="200"}}', "values": f"0+{good_per_m}x120"},
        {"series": f'tuneloop_requests_total{{model="{model}", status="500"}}', "values": f"0+{failed_per_m}x120"},
    ]


def expected(name: str, **models: tuple[dict[str, str], str, str]) -> dict[str, Any]:
    """An alert after an hour, of these models."""
    found = [
        {
            "exp_labels": {"severity": "page", "model": model.replace("_", " "), **labels},
            "exp_annotations": {"summary": summary, "runbook": f"docs/runbooks/{runbook}.md"},
        }
        for model, (labels, summary, runbook) in models.items()
    ]
    return {"eval_time": "1h", "alertname": name, "exp_alerts": found}


def test_each_model_is_held_to_its_own_objective_and_every_other_to_the_global_one(tmp_path: Path) -> None:
    (tmp_path / "slo.yml").write_text(slo.rules(OURS), encoding="utf-8")
    checked = promtool("check", "rules", tmp_path / "slo.yml")
    assert checked.returncode == 0, checked.stderr
    kit_fails: tuple[dict[str, str], str, str] = ({}, "10% of the requests to kit fail", "error_ratio")
    bot_late = ({"bound": "1"}, "50% of the answers of bot are later than 1 s", "latency_slo")
    test = {
        "interval": "1m",
        "input_series": [
            *requests("bot", 95, 5),  # 5 %: under 6 times its 1 %
            *requests("kit", 90, 10),
            *requests("c++.v2", 0, 100),  # promises nothing
            *requests("cxxxv2", 100, 0),
            *answers("bot", 50, 100, "1.0"),  # 50 %: over 14.4 times its 1 %
            *answers("kit", 50, 100, "2.5"),  # 50 %: under 6 times the global 10 %
            *answers("c++.v2", 0, 100, "2.5"),
        ],
        "alert_rule_test": [
            expected("ErrorRatioFast", kit=kit_fails),
            expected("LatencyFast", bot=bot_late),
            {"eval_time": "1h", "alertname": "LatencySlow", "exp_alerts": []},
        ],
        "promql_expr_test": [
            {
                "expr": 'model:tuneloop_late:ratio_rate1h{model="kit"}',
                "eval_time": "1h",
                "exp_samples": [{"labels": 'model:tuneloop_late:ratio_rate1h{model="kit", bound="2.5"}', "value": 0.5}],
            }
        ],
    }
    cases = {"rule_files": ["slo.yml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases), encoding="utf-8")
    ran = promtool("test", "rules", tmp_path / "cases.yml")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_factors_and_windows_are_the_workbooks() -> None:
    (fast, slow) = (r for r in yaml.safe_load(slo.rules({}))["groups"][0]["rules"] if "alert" in r)
    for part in ("ratio_rate1h > 14.4 * 0.001", "ratio_rate5m > 14.4 *", "ratio_rate6h > 6 *", "ratio_rate30m > 6 *"):
        assert part in fast["expr"]
    for part in ("ratio_rate3d > 1 * 0.001", "ratio_rate6h > 1 *"):
        assert part in slow["expr"]


def test_a_latency_can_be_promised_only_where_the_gateway_counts_it() -> None:
    assert slo.LATENCY_BOUNDS_S == SECONDS, "the gateway's histogram"
    with pytest.raises(ValueError, match=r"3 s is no bound of the gateway's histogram; choose one of 0\.005"):
        Slo(latency=0.9, latency_s=3.0)
    with pytest.raises(ValueError, match="go together"):
        Slo(latency=0.9)


def test_objectives_come_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuneloop.toml").write_text(
        '[monitor.slo."*"]\nerrors = 0.995\n[monitor.slo.bot]\nlatency = 0.95\nlatency_s = 5.0\n'
    )
    settings = MonitorSettings.load()
    assert settings.slo == {"*": Slo(errors=0.995), "bot": Slo(latency=0.95, latency_s=5.0)}
    assert (settings.paging("bot"), settings.paging("kit")) == (
        ("injections", "served_model_change"),
        ("latency", "injections", "served_model_change"),
    )
    done = CliRunner().invoke(alert, ["rules", "--out", "rules.yml"], catch_exceptions=False)
    assert done.output == "rules.yml\n"
    assert (tmp_path / "rules.yml").read_text() == slo.rules(settings.slo)
    monkeypatch.setenv("TUNELOOP_MONITOR_SLO", '{"*": {"errors": 0.9}}')
    assert MonitorSettings.load().slo == {"*": Slo(errors=0.9)}
    monkeypatch.setenv("TUNELOOP_MONITOR_SLO", "not json")
    with pytest.raises(InvalidInput, match=r"\[monitor\] slo"):
        MonitorSettings.load()
