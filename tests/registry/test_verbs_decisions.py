"""The verbs by which people decide: policies, gates, approvals, signatures, testers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.verbs import WHO, Verb
from tuneloop.registry import Registry
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import Check, GateReport
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.routes.assignment import key_hash


def test_a_share_of_the_keys_is_held_out_and_given_back(lived_in: Registry, verb: Verb) -> None:
    lived_in.fleet.forget_gateway("g1")
    code, out, _ = verb("route", "holdout", "bot", "--share", "250", *WHO)
    assert (code, out) == (0, "bot revision 3: 2=1000 1=9000, 2.5 % of the keys held out (by ada: test)\n")
    assert json.loads(verb("route", "show", "bot", "--json")[1])["holdout_bp"] == 250
    assert verb("route", "holdout", "bot", "--share", "10000", *WHO)[0] == 2
    assert verb("route", "holdout", "bot", "--share", "0", *WHO)[1] == "bot revision 4: 2=1000 1=9000 (by ada: test)\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("min_row: 5\n", ":1: min_row: unknown key; did you mean 'min_rows'?"),
        ("min_rows: none\ncooldown_s: -1\n", ":1: min_rows: input should be a valid integer"),
        ("min_rows: none\ncooldown_s: -1\n", ":2: cooldown_s: input should be greater than or equal to 0"),
        ("min_rows: [5\n", "policy.yaml:2: not valid YAML"),
        ("cooldown_s: .inf\n", "cooldown_s"),
        ("min_rows: 5\nmin_rows: 500\n", ":2: min_rows: stands twice"),
        ("signals: [promt_drift]\n", ":1: signals.0: input should be 'prompt_drift', 'perplexity'"),
        ("recipe: none/recipe.yaml\n", "recipe 'none/recipe.yaml' is no file"),
        ("recipe: bot@77\n", "bot@77 does not exist"),
        (f"recipe: {'a' * 300}\n", "is no file"),
        ("min_rows: 010\n", ":1: min_rows: YAML reads 010 in base 2, 8, 16 or 60; write it in base 10"),
        ("min_rows: 1:30\n", ":1: min_rows: YAML reads 1:30 in base 2, 8, 16 or 60"),
        ("min_rows: !!bool x\n", ":1: min_rows: 'x' is no bool"),
        ("<<: [&a {min_rows: 5}, *a]\n", "merge keys (<<) are not read"),
        ("auto_approve: 'yes'\n", ":1: auto_approve: input should be a valid boolean"),
        ("min_rows: yes\n", ":1: min_rows: "),
        ('min_rows: "60"\n', ":1: min_rows: "),
        ("cooldown_s: no\n", ":1: cooldown_s: "),
        ("enabled: 1\n", ":1: enabled: "),
        ("signals: []\n", ":1: signals: tuple should have at least 1 item"),
        (
            "recipe: !!python/object:os.system {}\n",
            ":1: recipe: the tag !!python/object:os.system is not read",
        ),
        ("recipe: 2026-13-45\n", ":1: recipe: 2026-13-45 is read as a date; put it in quotes"),
        ("recipe: caf\xe9\n", "it is not UTF-8 text; give --set a YAML file"),
        ("[" * 5_000, ":1: is nested more than 20 levels deep"),
        ("- 5\n", ":1: is not a policy: a mapping of keys"),
        ("", ":1: is not a policy: a mapping of keys"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_with_every_error(
    shared: Registry, verb_there: Verb, tmp_path: Path, body: str, message: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(body, encoding="latin-1")
    code, _, err = verb_there("retraining", "policy", "bot", "--set", str(path), *WHO)
    assert (code, message in err) == (2, True), err
    assert str(path) in err or message.startswith("bot@77")
    assert verb_there("retraining", "policy", "bot", "--set", str(tmp_path / "none.yaml"), *WHO)[0] == 2
    assert not any(entry.action == "policy.retraining" for entry in shared.audit.entries())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("marging: 0.1\n", ":1: marging: unknown key; did you mean 'margin'?"),
        ("margin: 0\n", ":1: margin: input should be greater than 0"),
        ("margins: {old: -1}\n", ":1: margins.old: "),
        ("metrics:\n  bleu.old: {mini: 5}\n", ":2: metrics.bleu.old.mini: unknown key; did you mean 'min'?"),
        ("metrics:\n  bleu.old: {}\n", ":2: metrics.bleu.old: give min, max or both"),
        ("metrics:\n  bleu.old: {min: 9, max: 5}\n", "nothing lies between min 9 and max 5"),
        ("metrics: {bleu.old: 5}\n", ":1: metrics.bleu.old: "),
        ("metrics: {bleu.old: {min: .nan}}\n", ":1: metrics.bleu.old.min: "),
        ("person: 1\n", ":1: person: "),
        ("margins: {fresh: 0.1}\n", "margins.fresh is not read: on users' corrections a version must be better"),
    ],
)
def test_a_gate_that_is_wrong_is_refused(
    shared: Registry, verb_there: Verb, tmp_path: Path, body: str, message: str
) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(body)
    code, _, err = verb_there("gate", "bot", "--set", str(path), *WHO)
    assert (code, message in err) == (2, True), err
    assert not any(entry.action == "policy.gate" for entry in shared.audit.entries())


def test_a_models_gate_is_set_on_record_and_can_ask_for_a_person(
    lived_in: Registry, verb: Verb, tmp_path: Path
) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("margins: {old: 0.5}\nmetrics:\n  bleu.old: {min: 5}\nperson: true\n")
    check = Check(name="perplexity", verdict="pass", detail="")
    report = GateReport(model="bot", version=3, champion=1, at=lived_in.clock(), checks=(check,))
    lived_in.gates.record(report)
    assert lived_in.gates.approver("bot", 3) == "gate"
    assert verb("gate", "bot", "--set", str(path))[0] == 2
    assert verb("gate", "bot@3", "--set", str(path), *WHO)[0] == 2
    assert verb("gate", "nobody", "--set", str(path), *WHO)[0] == 2
    said = json.loads(verb("gate", "bot", "--set", str(path), *WHO, "--json")[1])
    assert (said["person"], said["metrics"], said["margin"]) == (True, {"bleu.old": {"min": 5.0, "max": None}}, None)
    shown = verb("gate", "bot")[1]
    assert {"margins: {old: 0.5}", "person: true", "leakage: null"} <= set(shown.splitlines())
    path.write_text(shown)
    assert json.loads(verb("gate", "bot", "--set", str(path), *WHO, "--json")[1]) == said, "what is shown can be set"
    assert lived_in.gates.approver("bot", 3) is None
    code, _, err = verb("route", "set", "bot", "3=10000", *WHO)
    assert (code, "its gate says pass, and the gate policy of bot asks for a person too" in err) == (3, True)
    lived_in.gates.approve("bot", 3, by="ada", reason="looked")
    assert lived_in.gates.approver("bot", 3) == "ada"
    assert lived_in.audit.entries("bot", action="policy.gate")[0].actor == "ada"


def test_a_policy_is_set_with_a_name_and_a_reason(lived_in: Registry, verb: Verb, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("min_rows: 5\nsignals: [perplexity]\n")
    code, _, err = verb("retraining", "policy", "bot", "--set", str(path))
    assert (code, "needs --by and --reason" in err) == (2, True)
    assert json.loads(verb("retraining", "policy", "bot", "--set", str(path), *WHO, "--json")[1])["min_rows"] == 5
    assert lived_in.policies.get("bot", RetrainingPolicy).signals == ("perplexity",)


def test_a_version_is_signed_anew_on_record(lived_in: Registry, verb: Verb) -> None:
    code, out, _ = verb("sign", "bot@1", *WHO)
    assert (code, f"bot@1 is signed by key {lived_in.versions.get('bot', 1).signed_by}; " in out) == (0, True)
    assert lived_in.audit.entries("bot@1", limit=1)[0].action == "version.sign"
    assert verb("sign", "bot@9", *WHO)[0] == 2


def test_revoking_waits_for_no_mlflow(lived_in: Registry, verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_asked: object) -> None:
        raise Unavailable("MLflow does not answer")

    monkeypatch.setattr("tuneloop.registry.versions.store.Versions.get", away)
    code, out, err = verb("approve", "bot@2", *WHO, "--revoke")
    assert (code, "not looked up: MLflow does not answer" in err, "it still serves 10 %" in out) == (0, True, True)
    assert lived_in.gates.approver("bot", 2) is None


def test_testers_get_a_version_of_their_own(lived_in: Registry, verb: Verb) -> None:
    lived_in.fleet.forget_gateway("g1")  # which would be waited for
    verb("route", "override", "bot", "tester=7=2", *WHO)
    assert lived_in.routes.current("bot").overrides == {key_hash("tester=7"): 2}
    assert "1 key has a version of their own" in verb("route", "show", "bot")[1]
    verb("route", "override", "bot", "tester=7=", *WHO)
    assert lived_in.routes.current("bot").overrides == {}
    for wrong in ("tester", "=2", "tester=x", "tester=9"):
        assert verb("route", "override", "bot", wrong, *WHO)[0] == 2
    assert verb("route", "override", "bot", "a=1", "a=2", *WHO)[0] == 2
    assert verb("route", "override", "nobody", "a=1", *WHO)[0] == 2


def test_an_approval_ends_by_itself_or_is_revoked(lived_in: Registry, verb: Verb) -> None:
    code, out, _ = verb("approve", "bot@3", *WHO, "--days", "2")
    assert (code, "bot@3 is approved by ada until 20" in out) == (0, True)
    shown = verb("gate", "bot@3")[1]
    assert "ada     approved" in shown
    assert shown.endswith("may get a share: yes, approved by ada\n")
    code, out, _ = verb("approve", "bot@2", "--by", "grace", "--reason", "it answers in riddles", "--revoke")
    assert (code, "it still serves 10 %: `tuneloop rollback bot` takes that back" in out) == (0, True)
    assert "keys that may pin it, or were given it, still reach it" in out
    out = verb("approve", "bot@1", *WHO, "--revoke")[1]
    assert "it is the champion, and serves 90 % on: promote another version" in out
    assert "rollback" not in out, "which would give the champion even more"
    assert "may get a share: no, its approval was revoked by grace" in verb("gate", "bot@2")[1]
    code, _, err = verb("promote", "bot@2", *WHO)
    assert (code, "its approval was revoked by grace: it answers in riddles" in err) == (3, True)
    assert verb("approve", "bot@3", *WHO, "--days", "0")[0] == 2
    assert verb("approve", "bot@3", *WHO, "--days", "nan")[0] == 2
    assert verb("approve", "bot@3", *WHO, "--days", "1", "--revoke")[0] == 2
    lived_in.fleet.forget_gateway("g1")  # which would be waited for
    assert verb("rollback", "bot", *WHO)[0] == 0
    assert lived_in.routes.current("bot").split[2] == 0
    code, out, _ = verb("approve", "bot@2", *WHO, "--revoke")
    assert (code, "still serves" in out) == (0, False)


@pytest.mark.parametrize(
    "name", ["gate", "Gate", "token:ada", "TOKEN:ada", "\uff54oken:ada", "ada\u200b", "\u202eada", "x" * 201]
)
def test_nobody_takes_the_name_of_a_part_or_one_that_cannot_be_read(
    name: str, shared: Registry, verb_there: Verb
) -> None:
    code, _, errors = verb_there("approve", "bot@3", "--by", name, "--reason", "r")
    assert code == 2
    assert "--by" in errors
    assert shared.gates.approver("bot", 3) is None
