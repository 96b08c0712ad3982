"""Tokens and their roles: kept as digests, found by the secret alone, on record; approvals by role. Both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from registry.verbs import WHO, Verb
from tests_support import Clock
from tuneloop.registry import Registry
from tuneloop.registry import database as migrations_home
from tuneloop.registry.access.keys import key_digest
from tuneloop.registry.access.roles import MEANINGS, ROLES, Permission, Role, holders
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Refused
from tuneloop.registry.nouns import Check, GateReport
from tuneloop.registry.policies import GatePolicy
from tuneloop.registry.tables import tokens


def test_a_token_is_found_by_its_secret_alone_which_is_not_kept(registries: Registry) -> None:
    secret, made = registries.tokens.new("ada", Role.APPROVER, by="root", reason="she approves")
    assert registries.tokens.holder(secret) == made
    assert made.actor == "token:ada"
    with registries.database.reading() as connection:
        row = connection.execute(sa.select(tokens)).mappings().one()
    assert row["digest"] == key_digest(secret)
    assert secret not in str(dict(row))
    for wrong in ("", "tlt-", secret[:-1], secret + "a", secret.upper(), row["digest"], "tlt-" + "a" * 43):
        assert registries.tokens.holder(wrong) is None


def test_a_token_ends_when_it_expires_or_is_revoked(registries: Registry, clock: Clock) -> None:
    short, _ = registries.tokens.new("short", Role.VIEWER, by="root", reason="r", ttl_s=60)
    long, _ = registries.tokens.new("long", Role.VIEWER, by="root", reason="r")
    clock.advance(59)
    assert registries.tokens.holder(short) is not None
    clock.advance(1)
    assert registries.tokens.holder(short) is None
    revoked = registries.tokens.revoke("long", by="root", reason="leaked")
    assert registries.tokens.holder(long) is None
    clock.advance(1)
    assert registries.tokens.revoke("long", by="root", reason="again") == revoked
    entries = registries.audit.entries()
    assert [(e.action, e.actor, e.subject) for e in entries] == [
        ("token.revoke", "root", "token:long"),
        ("token.new", "root", "token:long"),
        ("token.new", "root", "token:short"),
    ]
    assert entries[0].detail == {"reason": "leaked"}
    assert entries[1].detail == {"reason": "r", "role": "viewer"}


def test_a_name_is_one_tokens_for_ever(registries: Registry) -> None:
    registries.tokens.new("ada", Role.VIEWER, by="root", reason="r")
    registries.tokens.revoke("ada", by="root", reason="r")
    with pytest.raises(Conflict, match="for ever"):
        registries.tokens.new("ada", Role.ADMIN, by="root", reason="r")
    assert len(registries.audit.entries()) == 2


@pytest.mark.parametrize("name", ["", "Ada", "-a", "a b", "a\n", "ä", "a" * 64, "token:ada"])
def test_a_name_that_is_none_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidInput, match="no name for a token"):
        registry.tokens.new(name, Role.VIEWER, by="root", reason="r")


def test_revoking_what_is_not_there_changes_nothing(registries: Registry) -> None:
    with pytest.raises(NotFound, match="tuneloop token list"):
        registries.tokens.revoke("nobody", by="root", reason="r")
    assert registries.audit.entries() == []


def test_no_single_role_but_admin_brings_a_version_to_the_public() -> None:
    for role in set(Role) - {Role.ADMIN}:
        assert not {Permission.APPROVE, Permission.ROUTE} <= ROLES[role]
        assert not {Permission.FORCE, Permission.POLICY, Permission.TOKENS} & ROLES[role]
    assert ROLES[Role.ADMIN] == set(Permission) == MEANINGS.keys()
    assert all(Permission.READ in ROLES[role] for role in Role)
    assert holders(Permission.APPROVE) == (Role.APPROVER, Role.ADMIN)


def test_a_policy_can_ask_for_approvals_by_a_tokens_role(registries: Registry, clock: Clock) -> None:
    gates = registries.gates
    gates.approve("bot", 1, by="ada", reason="on the command line")
    gates.approve("bot", 2, by="token:eva", reason="through the api", role=Role.APPROVER)
    assert [d.role for d in (*gates.decisions("bot", 1), *gates.decisions("bot", 2))] == [None, Role.APPROVER]
    registries.policies.set("bot", GatePolicy(approver_role=True), by="ada", reason="r")
    assert gates.approver("bot", 1) is None
    assert "the approval by ada does not count" in gates.why_not("bot", 1)
    assert gates.approver("bot", 2) == "token:eva"
    with pytest.raises(Refused, match=r"bot@1 cannot be approved here.*through the control plane"):
        gates.approve("bot", 1, by="ada", reason="once more")
    gates.revoke("bot", 2, by="ada", reason="anybody may say no")
    assert gates.approver("bot", 2) is None
    assert "revoked by ada" in gates.why_not("bot", 2)
    gates.approve("bot", 2, by="token:eva", reason="for a while", role=Role.ADMIN, ttl_s=60)
    assert gates.approver("bot", 2) == "token:eva"
    clock.advance(60)
    assert gates.approver("bot", 2) is None, "the revocation counts again"
    registries.policies.set("bot", GatePolicy(), by="ada", reason="r")
    assert gates.approver("bot", 1) == "ada"


def test_an_approval_that_does_not_count_lifts_no_revocation(registries: Registry) -> None:
    gates = registries.gates
    gates.revoke("bot", 1, by="token:eva", reason="bad", role=Role.APPROVER)
    gates.approve("bot", 1, by="ada", reason="before the policy")
    registries.policies.set("bot", GatePolicy(approver_role=True), by="ada", reason="r")
    assert gates.approver("bot", 1) is None


def test_where_approvals_need_a_role_a_passing_gate_still_lets_in_unless_a_person_is_asked_for(
    registries: Registry, clock: Clock
) -> None:
    check = Check(name="perplexity", verdict="pass", detail="fine")
    registries.gates.record(GateReport(model="bot", version=1, champion=None, at=clock(), checks=(check,)))
    registries.policies.set("bot", GatePolicy(approver_role=True), by="ada", reason="r")
    assert registries.gates.approver("bot", 1) == "gate"
    registries.policies.set("bot", GatePolicy(approver_role=True, person=True), by="ada", reason="r")
    assert registries.gates.approver("bot", 1) is None


def test_approvals_survive_the_older_schema_without_their_role(registries: Registry) -> None:
    registries.gates.approve("bot", 1, by="token:eva", reason="r", role=Role.APPROVER)
    registries.tokens.new("eva", Role.APPROVER, by="root", reason="r")
    config = Config()
    config.set_main_option("script_location", str(Path(migrations_home.__file__).parent / "migrations"))
    with registries.database.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
    registries.database.upgrade()
    assert [(d.by, d.role) for d in registries.gates.decisions("bot", 1)] == [("token:eva", None)]
    secret, _ = registries.tokens.new("eva", Role.VIEWER, by="root", reason="r")
    assert registries.tokens.holder(secret) is not None


def test_the_first_token_is_made_on_the_command_line(registry: Registry, verb: Verb) -> None:
    code, out, _ = verb("token", "new", "ada", "--role", "admin", "--days", "30", *WHO)
    assert code == 0
    held = registry.tokens.holder(out.strip())
    assert held is not None
    assert held.role == Role.ADMIN
    assert verb("token", "list")[1].splitlines()[1].split()[:2] == ["ada", "admin"]
    assert out.strip() not in verb("token", "list", "--json")[1]
    assert verb("token", "revoke", "ada", *WHO)[0] == 0
    assert registry.tokens.holder(out.strip()) is None
    assert verb("token", "revoke", "eva", *WHO)[0] == 2
    assert verb("token", "new", "ada", "--role", "viewer", *WHO)[0] == 1


def test_nobody_on_the_command_line_goes_by_a_tokens_name(registry: Registry, verb: Verb) -> None:
    code, _, err = verb("approve", "bot@1", "--by", " token:ada", "--reason", "r")
    assert code == 2
    assert "control plane" in err
    assert registry.audit.entries() == []
