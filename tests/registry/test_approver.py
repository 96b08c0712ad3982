"""Who may answer for a version: where the policy says so, somebody other than who trained it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.verbs import WHO, Verb
from tests_support import beat_engine, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import Refused
from tuneloop.registry.policies import GatePolicy
from tuneloop.registry.routes.promotion import Change, promote


def ask_for_another(registry: Registry) -> None:
    registry.policies.set("bot", GatePolicy(approver="other than the trainer"), by="ada", reason="two pairs of eyes")


def test_the_trainer_cannot_approve_and_somebody_else_can(registries: Registry) -> None:
    ask_for_another(registries)
    gates = registries.gates
    for same in ("ada", " Ada", "token:ada", "token:Ada", "ada\u200b", "\uff41da"):
        with pytest.raises(Refused, match="asks for an approver other than the trainer, and ada trained bot@1: "):
            gates.approve("bot", 1, by=same, reason="mine", trained_by="ada")
    assert (gates.approver("bot", 1), list(gates.decisions("bot", 1))) == (None, [])
    gates.approve("bot", 1, by="grace", reason="looked", trained_by="ada")
    assert gates.approver("bot", 1) == "grace"
    gates.approve("bot", 2, by="ada", reason="a retraining", trained_by="worker")
    assert gates.approver("bot", 2) == "ada"


def test_an_approval_from_before_the_policy_is_asked_again(registries: Registry) -> None:
    gates = registries.gates
    gates.approve("bot", 1, by="ada", reason="mine", trained_by="ada")
    gates.approve("bot", 2, by="ada", reason="old: nobody noted who trained it")
    assert (gates.approver("bot", 1), gates.approver("bot", 2)) == ("ada", "ada")
    ask_for_another(registries)
    assert (gates.approver("bot", 1), gates.approver("bot", 2)) == (None, None)
    assert "ada trained bot@1: somebody else must approve it" in gates.why_not("bot", 1)
    assert "approve it anew, or, where `tuneloop show bot@2` names nobody" in gates.why_not("bot", 2)
    with pytest.raises(Refused, match="who trained bot@2 was not noted"):
        gates.approve("bot", 2, by="grace", reason="looked")
    gates.revoke("bot", 1, by="ada", reason="the trainer may always take it back")
    assert "was revoked by ada" in gates.why_not("bot", 1)


def test_promotion_asks_again_and_says_why(registry: Registry, tmp_path: Path) -> None:
    made = publish_version(registry, tmp_path / "v1", trained_by="ada")
    assert registry.versions.get("bot", 1).trained_by == "ada"
    registry.gates.approve("bot", 1, by="ada", reason="mine", trained_by=made.trained_by)
    ask_for_another(registry)
    beat_engine(registry, "bot@1")
    with pytest.raises(Refused, match=r"bot@1 is not approved \(the gate policy of bot asks for an approver other"):
        promote(registry, "bot", 1, Change("ada", "now"))
    registry.gates.approve("bot", 1, by="grace", reason="looked", trained_by=made.trained_by)
    assert promote(registry, "bot", 1, Change("ada", "now")).champion == 1


def test_the_verb_takes_the_trainer_from_the_version(registry: Registry, tmp_path: Path, verb: Verb) -> None:
    publish_version(registry, tmp_path / "v1", trained_by="ada")
    path = tmp_path / "gate.yaml"
    path.write_text("approver: other than the trainer\n")
    assert json.loads(verb("gate", "bot", "--set", str(path), *WHO, "--json")[1])["approver"] == path.read_text()[10:-1]
    code, _, err = verb("approve", "bot@1", *WHO)
    assert (code, "ada trained bot@1: somebody else must approve it" in err) == (3, True)
    assert verb("approve", "bot@1", "--by", "grace", "--reason", "looked")[0] == 0
    assert "trained_by" in verb("compare", "bot@1", "bot@1")[1]
