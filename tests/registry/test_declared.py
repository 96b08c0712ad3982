"""What a gate declares beside the comparison: judged by what is on record, and without a record not passed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from registry.verbs import WHO, Verb
from tests_support import publish_version, request_record
from tuneloop.registry import Registry
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.gates.declared import Found, judge_again, judge_declared, latency, leakage
from tuneloop.registry.gates.verdicts import within
from tuneloop.registry.nouns import Check, GateReport
from tuneloop.registry.policies import GatePolicy, Threshold


@pytest.mark.parametrize(
    ("times_ms", "verdict"),
    [
        ([], "inconclusive"),
        ([10.0] * 71, "inconclusive"),  # fast, and too few to say so
        ([10.0] * 72, "pass"),
        ([10.0] * 190 + [99.0] * 10, "inconclusive"),  # the limit lies inside
        ([10.0] * 160 + [99.0] * 40, "fail"),
        ([99.0] * 20, "fail"),  # too few to bound it from above, enough from below
    ],
)
def test_latency_passes_only_with_its_whole_interval(times_ms: list[float], verdict: str) -> None:
    assert latency(times_ms, 50.0).verdict == verdict


def found(check: str, rows: int, dropped: int, action: str = "warn") -> Found:
    return Found(check=check, action=action, rows=rows, dropped=dropped)


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], "inconclusive"),
        ([found("leakage", 0, 0)], "inconclusive"),
        ([found("leakage", 0, 0), found("near_leakage", 0, 0, "off")], "inconclusive"),
        ([found("leakage", 0, 0), found("near_leakage", 0, 0)], "pass"),
        ([found("leakage", 3, 3, "drop"), found("near_leakage", 2, 2, "drop")], "pass"),
        ([found("leakage", 3, 3, "drop"), found("near_leakage", 2, 0)], "fail"),
    ],
)
def test_leakage_is_what_was_found_and_not_left_out(findings: list[Found], verdict: str) -> None:
    assert leakage(findings).verdict == verdict


@pytest.mark.parametrize(
    ("value", "bounds", "verdict"),
    [
        (4.9, Threshold(min=5), "fail"),
        (20.0, Threshold(min=1, max=20), "pass"),
        (20.1, Threshold(min=1, max=20), "fail"),
        (math.nan, Threshold(min=1), "fail"),
        (None, Threshold(max=1), "inconclusive"),
    ],
)
def test_a_measure_must_lie_where_the_policy_says(value: float | None, bounds: Threshold, verdict: str) -> None:
    check = within("bleu.old", value, bounds)
    assert (check.name, check.verdict) == ("bleu.old", verdict)
    assert "is asked for" in check.detail


def test_only_answers_of_the_version_itself_count(registries: Registry) -> None:
    now = registries.clock()
    others: list[dict[str, Any]] = [
        {"served_version": 1},
        {"model": "other", "served_version": 2},
        {"served_version": 2, "status": 502},
        {"served_version": 2, "error": "engine died"},
        {"served_version": None, "assigned_version": 2},
    ]
    records = [request_record(n, now, total_ms=9e9, **changes) for n, changes in enumerate(others)]
    records += [request_record(100 + n, now, served_version=2, total_ms=float(n)) for n in range(3)]
    registries.traffic.add_requests(records)
    assert sorted(registries.traffic.answered_ms("bot", 2, newest=10)) == [0.0, 1.0, 2.0]
    assert len(registries.traffic.answered_ms("bot", 2, newest=2)) == 2


def test_a_version_is_judged_again_when_testers_have_asked_it(registry: Registry, tmp_path: Path, verb: Verb) -> None:
    for number in (1, 2):
        made = publish_version(registry, tmp_path / f"v{number}")
    quality = [{"check": name, "action": "refuse", "rows": 0, "dropped": 0} for name in ("leakage", "near_leakage")]
    (tmp_path / "data.json").write_text(json.dumps({"quality": quality}))
    registry.versions.log_file(made.run_id, tmp_path / "data.json")
    better = Check(name="better on fresh", verdict="pass", detail="it is")
    registry.gates.record(GateReport(model="bot", version=2, champion=1, at=registry.clock(), checks=(better,)))
    assert registry.gates.approver("bot", 2) == "gate"
    path = tmp_path / "gate.yaml"
    path.write_text("latency_p95_ms: 500\nleakage: refuse\nsigned: true\n")
    assert verb("gate", "bot", "--set", str(path), *WHO)[0] == 0

    said = verb("gate", "bot@2", "--judge", *WHO)[1]
    assert "nothing it answered is on record; at most 500 ms is asked for" in said
    assert registry.gates.approver("bot", 2) is None
    now = registry.clock()
    registry.traffic.add_requests([request_record(n, now, served_version=2, assigned_version=None) for n in range(80)])
    judged = json.loads(verb("gate", "bot@2", "--judge", *WHO, "--json")[1])
    assert {check["name"]: check["verdict"] for check in judged["checks"]} == {
        "better on fresh": "pass",
        "latency p95": "pass",
        "leakage": "pass",
        "signed": "pass",
    }
    assert (judged["champion"], registry.gates.approver("bot", 2)) == (1, "gate")
    assert verb("gate", "bot", "--judge")[0] == 2
    noted = [(entry.actor, entry.detail.get("reason")) for entry in registry.audit.entries(action="gate.judge")]
    assert noted == [("ada", "test"), ("ada", "test"), ("gate", None)]
    code, _, err = verb("gate", "bot@2", "--judge", "--by", "ada")
    assert (code, "judging a version again needs --by and --reason" in err) == (2, True)


def test_what_is_declared_alone_never_lets_a_first_version_in(registry: Registry, tmp_path: Path) -> None:
    made = publish_version(registry, tmp_path / "v1")
    registry.policies.set("bot", GatePolicy(signed=True), by="ada", reason="r")
    report = judge_again(registry, made)
    assert [(check.name, check.verdict) for check in report.checks] == [
        ("compared with a champion", "inconclusive"),
        ("signed", "pass"),
    ]
    assert judge_again(registry, made).checks == report.checks
    assert registry.gates.approver("bot", 1) is None
    unsigned = judge_declared(registry, made.model_copy(update={"signed_by": None}), GatePolicy(signed=True))
    assert [check.verdict for check in unsigned] == ["fail"]


def test_signed_is_what_verifies_as_mlflow_has_it_now_whatever_was_fetched_before(
    registry: Registry, tmp_path: Path
) -> None:
    home, policy = registry.settings.home, GatePolicy(signed=True)
    made = publish_version(registry, tmp_path / "v1")
    assert [(check.verdict, check.detail) for check in judge_declared(registry, made, policy)] == [
        ("pass", f"by key {made.signed_by}")
    ]
    registry.versions.fetch(made, home / "adapters")
    [weights] = (home / "artifacts").rglob("adapter_model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    [check] = judge_declared(registry, made, policy)
    assert (check.verdict, "fetched files have digest" in check.detail) == ("fail", True)
    weights.write_bytes(whole)
    (home / "artifacts").rename(home / "away")
    [check] = judge_declared(registry, made, policy)
    assert (check.verdict, "could not be verified" in check.detail) == ("inconclusive", True)
    (home / "away").rename(home / "artifacts")
    [key] = (home / "signing" / "trusted").iterdir()
    key.unlink()
    (home / "signing" / "key.pem").unlink()
    [check] = judge_declared(registry, made, policy)
    assert (check.verdict, "which is not trusted here" in check.detail) == ("fail", True)


def test_findings_that_training_did_not_write_are_unreadable(registry: Registry, tmp_path: Path) -> None:
    made = publish_version(registry, tmp_path / "v1")
    (tmp_path / "data.json").write_text('{"quality": [{"check": "leakage", "rows": "none"}]}')
    registry.versions.log_file(made.run_id, tmp_path / "data.json")
    with pytest.raises(Unreadable, match=r"quality findings in lineage/data\.json are not what training writes"):
        judge_declared(registry, made, GatePolicy(leakage="refuse"))
