"""`tuneloop guard policy`: a model's guards are declared, shown and on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tuneloop.cli import main as front_door
from tuneloop.registry import Registry
from tuneloop.registry.guard_policy import GuardPolicy, current_guards
from tuneloop.registry.nouns import Arm
from tuneloop.registry.settings import RegistrySettings

WHO = ("--by", "ada", "--reason", "public from today")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with one routed model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path))
    with Registry.open(RegistrySettings(home=tmp_path)) as registry:
        arm = Arm(version=1, weight_bp=10_000)
        registry.routes.write("bot", [arm], by="ada", reason="test", expected_revision=0)
    return tmp_path


def policy(*arguments: str) -> Result:
    return CliRunner().invoke(front_door.build(), ["guard", "policy", "bot", *arguments], standalone_mode=False)


def test_a_policy_is_set_shown_and_audited_and_a_wrong_one_changes_nothing(home: Path) -> None:
    assert "no guard policy" in policy().output
    assert json.loads(policy("--json").output) is None
    file = home / "guards.yaml"
    file.write_text("secrets: block\noutput: {personal: off}\nkeys: {key_1: {injection: flag}}\n", encoding="utf-8")
    assert policy("--set", str(file)).exception is not None  # nobody says why
    shown = json.loads(policy("--set", str(file), *WHO, "--json").output)
    assert (shown["secrets"], shown["output"]["personal"], shown["keys"]["key_1"]["injection"]) == (
        "block",
        "off",
        "flag",
    )
    file.write_text("secret: block\noutput: {personal: block}\nbanned_parameters: [messages]\n", encoding="utf-8")
    wrong = str(policy("--set", str(file), *WHO).exception)
    assert [line.split(":")[1] for line in wrong.splitlines()] == ["1", "2", "3"]
    with Registry.open(RegistrySettings(home=home)) as registry:
        kept = current_guards(registry.database)["bot"]
        assert (kept.secrets, kept.of_key("key_1").injection, kept.of_key("key_2").injection) == (
            "block",
            "flag",
            "block",
        )
        entries = [entry for entry in registry.audit.entries() if entry.action == "policy.guard"]
        assert [(entry.actor, entry.subject, entry.detail["reason"]) for entry in entries] == [("ada", "bot", WHO[3])]
        assert GuardPolicy.model_validate(entries[0].detail["policy"]) == kept
