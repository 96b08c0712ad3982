"""The dashboards: written by the code, over series that exist, in PromQL that Prometheus takes.

`test_stack` puts every query to a real Prometheus on real exporters; `test_dashboard_schema` holds them against
Grafana's own types. vLLM is not started here: its series are read from its source.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from deploy.deployed import (
    DASHBOARDS,
    RECORDED,
    compose,
    dashboards,
    exported_metrics,
    metrics_in,
    panels,
    queries,
    rules,
    run,
    vllm_metrics,
)
from tuneloop.monitor import boards
from tuneloop.monitor.signals import DETECTORS, DETECTORS_OF_TRIALS
from tuneloop.monitor.slo import Slo
from tuneloop.monitor.verbs_alert import alert

# Series that no board draws, and why. Each is there: a name that is not exported any more fails the test too.
LEFT_OUT: dict[str, str] = {}
BOARDS = dashboards()
QUERIES = queries()
OF_PROMETHEUS = {"job", "instance"}


def test_the_dashboards_are_those_the_verb_writes() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in DASHBOARDS.iterdir()}
    assert written == boards.dashboards({}), (
        "write them anew: tuneloop alert dashboards --out deploy/grafana/dashboards"
    )


def test_the_verb_writes_what_the_settings_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuneloop.toml").write_text("[monitor.slo.bot]\nerrors = 0.99\nlatency = 0.9\nlatency_s = 5.0\n")
    done = CliRunner().invoke(alert, ["dashboards", "--out", "made"], catch_exceptions=False)
    assert done.output.split() == ["made/on-call.json", "made/model-owner.json", "made/capacity.json"]
    objectives = {"bot": Slo(errors=0.99, latency=0.9, latency_s=5.0)}
    made = {path.name: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert made == boards.dashboards(objectives)
    assert 'ratio_rate1h{model=~\\"$model\\", model=\\"bot\\"} / 0.01' in made["on-call.json"]
    assert 'ratio_rate1h{model=~\\"$model\\", model!~\\"bot\\"} / 0.001' in made["on-call.json"]
    assert 'model=\\"bot\\", bound=\\"5\\"} / 0.1' in made["on-call.json"]


def test_grafana_is_given_the_folder_they_are_in() -> None:
    provider = yaml.safe_load((DASHBOARDS.parent / "provisioning" / "dashboards" / "tuneloop.yml").read_text())
    path = provider["providers"][0]["options"]["path"]
    assert f"./grafana/dashboards:{path}:ro" in compose()["services"]["grafana"]["volumes"]


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_reads_series_that_exist(name: str) -> None:
    there = exported_metrics() | RECORDED | vllm_metrics().keys()
    missing = {
        (asked.panel, gone) for asked in QUERIES if asked.board == name for gone in metrics_in(asked.expr) - there
    }
    assert not missing


def test_what_engines_are_asked_by_they_tell() -> None:
    labels = vllm_metrics()
    for asked in (asked for asked in QUERIES if asked.is_of_vllm):
        read = metrics_in(asked.expr)
        assert "{" not in asked.expr, "a matcher would be checked here"
        assert asked.called_by <= OF_PROMETHEUS | set.intersection(*(labels[name] for name in read))


def test_prometheus_can_parse_every_query(tmp_path: Path) -> None:
    as_rules = [{"record": f"query:{number}", "expr": asked.expr} for number, asked in enumerate(QUERIES)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": as_rules}]}))
    assert f"{len(as_rules)} rules found" in run("promtool", "check", "rules", file)


def test_every_exported_metric_is_drawn_or_left_out_by_name() -> None:
    drawn = set().union(*(metrics_in(asked.expr) for asked in QUERIES))
    for rule in rules():
        if "record" in rule and rule["record"] in drawn:
            drawn |= metrics_in(rule["expr"])
    families = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported_metrics()}
    unseen = {name for name in families if not any(used.startswith(name) for used in drawn)}
    assert unseen == LEFT_OUT.keys()


def test_every_signal_has_a_panel_of_the_model_owner() -> None:
    titles = {panel["title"] for panel in panels(BOARDS["model-owner.json"])}
    assert DETECTORS.keys() | DETECTORS_OF_TRIALS.keys() <= titles


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_is_whole(name: str) -> None:
    ids = [panel["id"] for panel in BOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(BOARDS[name])]
    assert len(set(titles)) == len(titles)
    for panel in panels(BOARDS[name]):
        assert panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], "every axis has a unit"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        if len(panel["targets"]) > 1:
            assert all(target["legendFormat"] for target in panel["targets"]), "several series are told apart"


@pytest.mark.parametrize("name", BOARDS)
def test_no_panel_covers_another(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in BOARDS[name]["panels"]:
        box = panel["gridPos"]
        assert box["x"] + box["w"] <= 24
        for x in range(box["x"], box["x"] + box["w"]):
            for y in range(box["y"], box["y"] + box["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_the_dashboards_are_told_apart() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len({board["title"] for board in BOARDS.values()}) == 3
