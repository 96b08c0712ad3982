"""`tuneloop show` and `card`: what is known of a version, and what is said where something is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from registry.verbs import Verb
from tests_support import beat_engine, beat_gateway, publish_version, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Check, GateReport, RetrainingState
from tuneloop.registry.routes.promotion import Change, override, promote, set_route
from tuneloop.registry.tables import gate_reports, routes


def keep(registry: Registry, run_id: str, folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    registry.versions.log_file(run_id, path)


def test_a_version_is_told_with_its_request_its_intervals_and_where_it_serves(
    registry: Registry, tmp_path: Path, verb: Verb
) -> None:
    queue = registry.retraining
    publish_version(registry, tmp_path / "v1")
    queue.file(retraining_request(registry.clock(), id="rt_1"), by="monitor")
    queue.approve("rt_1", by="grace", reason="yes")
    claimed = queue.claim("w", lease_s=60)
    assert claimed is not None
    metrics = {"perplexity.old": 12.0, "loss": 1.0}
    made = publish_version(registry, tmp_path / "v2", parent=1, request_id="rt_1", trained_by="worker", metrics=metrics)
    registry.versions.log_metrics(made.run_id, {"perplexity.old.low": 11.0, "perplexity.old.high": 13.5})
    data = {"sets": {"old": {"rows": 60, "digest": "sha256:old"}}, "fresh_rows": 30, "dropped": {"long": 2}}
    keep(registry, made.run_id, tmp_path, "data.json", json.dumps(data))
    queue.finish(claimed, RetrainingState.GATED, by="w", outcome="pass", result_version=2)
    for number in (1, 2):
        registry.gates.approve("bot", number, by="ada", reason="looked")
    promote(registry, "bot", 1, Change("ada", "first"))
    beat_engine(registry, "bot@1", "bot@2")
    set_route(registry, "bot", {2: 1_000, 1: 9_000}, Change("ada", "canary"))
    route = override(registry, "bot", {"tester": 2}, Change("ada", "tester"))
    beat_gateway(registry, {"bot": route.revision})

    told = json.loads(verb("show", "bot@2", "--json")[1])
    assert told["measures"] == [
        {"name": "loss", "value": 1.0, "low": None, "high": None},
        {"name": "perplexity.old", "value": 12.0, "low": 11.0, "high": 13.5},
    ]
    assert (told["request_approved_by"], told["request"]["state"], told["approver"]) == ("grace", "gated", "ada")
    assert told["serving"] == {
        "revision": 3,
        "share_bp": 1000,
        "champion": False,
        "overrides": 1,
        "engines": {"e1": "ready"},
        "gateways": ["g1"],
    }
    text = verb("show", "bot@2")[1]
    for said in (
        "rt_1, gated, approved by grace: prompt drift",
        "held out: old  60 rows sha256:old",
        "fresh          30",
        "[11, 13.5]",
        "10 % by revision 3, a challenger, keys that were given it: 1; engines: e1 ready",
    ):
        assert " ".join(said.split()) in " ".join(text.split()), said
    assert verb("show", "bot@9")[0] == 2


def test_what_a_run_does_not_keep_is_left_out_or_named(registry: Registry, tmp_path: Path, verb: Verb) -> None:
    made = publish_version(registry, tmp_path / "v1", request_id="rt_gone")
    code, out, err = verb("show", "bot@1")
    assert (code, "retraining request: no retraining request 'rt_gone'" in err, "rt_gone" in out) == (0, True, True)
    code, _, err = verb("card", "bot@1")
    assert (code, "bot@1 was published without a model card" in err) == (2, True)
    keep(registry, made.run_id, tmp_path, "data.json", "{nonsense")
    code, _, err = verb("show", "bot@1")
    assert (code, "lineage/data.json is damaged" in err) == (0, True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.json", '{"sets": [1]}'),
        ("data.json", '{"sets": {"old": {"rows": 60}}}'),
        ("data.json", '{"dropped": {"long": "many"}}'),
        ("data.json", "[1]"),
        ("environment.json", '{"packages": ["torch"]}'),
    ],
)
def test_a_file_that_training_did_not_write_is_named_and_the_rest_stands(
    registry: Registry, tmp_path: Path, verb: Verb, name: str, text: str
) -> None:
    made = publish_version(registry, tmp_path / "v1")
    keep(registry, made.run_id, tmp_path, name, text)
    code, out, err = verb("show", "bot@1")
    assert (code, made.data_digest in out, "no gate has judged it" in out) == (0, True, True)
    assert f"{made.run_id}: lineage/{name} is not what training writes" in err
    told = json.loads(verb("show", "bot@1", "--json")[1])
    assert (told["version"]["run_id"], told["why_not"]) == (made.run_id, "no gate has judged it")
    [missing] = told["not_known"]
    assert f"lineage/{name} is not what training writes" in missing


def test_rows_that_cannot_be_read_are_named_and_the_rest_stands(registry: Registry, tmp_path: Path, verb: Verb) -> None:
    made = publish_version(registry, tmp_path / "v1")
    check = Check(name="old", verdict="pass", detail="good")
    registry.gates.record(GateReport(model="bot", version=1, champion=None, at=registry.clock(), checks=(check,)))
    promote(registry, "bot", 1, Change("ada", "first"))
    beat_engine(registry, "bot@1")
    with registry.database.writing() as connection:
        connection.execute(sa.update(gate_reports).values(checks=[{"name": "old"}]))
    code, out, err = verb("show", "bot@1")
    assert (code, made.data_digest in out, "may get a share: not known" in out) == (0, True, True)
    assert "100 % by revision" in out
    assert err.count("the database's GateReport 1 cannot be read") == 2, "the gate, and whether it may get a share"
    told = json.loads(verb("show", "bot@1", "--json")[1])
    assert (told["gate"], told["approver"], told["why_not"], told["serving"]["champion"]) == (None, None, None, True)
    assert [line.partition(":")[0] for line in told["not_known"]] == ["whether it may get a share", "gate"]

    with registry.database.writing() as connection:
        connection.execute(sa.update(routes).values(arms=[{"version": "x"}]))
    told = json.loads(verb("show", "bot@1", "--json")[1])
    assert (told["serving"], told["routed"], told["not_known"][0].partition(":")[0]) == (None, None, "serves")
    assert "serves: not known" in verb("show", "bot@1")[1]


def test_the_card_is_what_was_published(registry: Registry, tmp_path: Path, verb: Verb) -> None:
    folder = tmp_path / "v1"
    folder.mkdir()
    (folder / "README.md").write_text("# bot\n\nIt answers.\n")
    publish_version(registry, folder)
    assert verb("card", "bot@1")[1] == "# bot\n\nIt answers.\n"
    assert json.loads(verb("card", "bot@1", "--json")[1])["card"] == "# bot\n\nIt answers.\n"


def test_what_a_check_for_bias_found_and_the_intervals_are_shown_and_compared(
    registry: Registry, tmp_path: Path, verb: Verb
) -> None:
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2" / "README.md").write_text("# bot\n")
    made = [publish_version(registry, tmp_path / f"v{n}", metrics={"loss": float(n)}) for n in (1, 2)]
    registry.versions.log_metrics(made[1].run_id, {"loss.low": 1.5, "loss.high": 2.5})
    keep(registry, made[1].run_id, tmp_path, "environment.json", '{"python": "3.12.1", "packages": {"torch": "2.9"}}')
    gap = {"estimate": 0.25, "low": 0.125, "high": 0.5}
    alone, champion = {"verdict": "more", "gap": gap}, {"verdict": "no more", "gap": None}
    found = {"attribute": "gender", "readings": 96, "alone": alone, "champion": champion}
    (tmp_path / "bias.json").write_text(
        json.dumps({"at": "2026-11-30T00:00:00Z", "champion": "bot@1", "why_alone": "", "attributes": [found]})
    )
    registry.versions.log_file(made[1].run_id, tmp_path / "bias.json", "bias")
    said = "more (+0.250 [+0.125, +0.500] nats per token); than the champion's: no more; 96 readings"
    shown = verb("show", "bot@2")[1]
    assert f"bias, checked 2026-11-30 00:00 against bot@1\n  gender: {said}" in shown
    told = f"# bot\n\n## Bias\n\nChecked 2026-11-30 00:00 against bot@1.\n\n- gender: {said}\n"
    assert verb("card", "bot@2")[1] == told
    lines = {line.split("  ")[0]: line for line in verb("compare", "bot@1", "bot@2")[1].splitlines()}
    assert lines["bias, gender"].endswith(said)
    assert lines["loss"].endswith("2 [1.5, 2.5]")
    assert "Python 3.12.1, torch 2.9" in lines["environment"]
    assert lines["files"].count("MB") == 2
    before, after = json.loads(verb("compare", "bot@1", "bot@2", "--json")[1])
    assert (before["bias"]["at"], after["bias"]["attributes"][0]["champion"]["verdict"]) == (None, "no more")
    assert (after["version"], after["measures"][0]["low"]) == (2, 1.5)
