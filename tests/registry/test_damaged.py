"""A row that nobody can read holds nothing up for ever: it is ended by a verb, on record, and every error names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from registry.experiment_traffic import NO_PLAN, declared
from registry.verbs import WHO, Verb
from tests_support import retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.access.roles import Role
from tuneloop.registry.damaged import end
from tuneloop.registry.errors import Conflict, NotFound, Refused, Unreadable
from tuneloop.registry.nouns import Arm
from tuneloop.registry.retraining.budgets import Estimate
from tuneloop.registry.rollouts.rollout import Rollout, RolloutPlan
from tuneloop.registry.rollouts.steering import abort, declare
from tuneloop.registry.routes.promotion import Change
from tuneloop.registry.tables import api_keys, experiments, retraining, rollouts, tokens

CHANGE = Change("ada", "test")
ARMS = [Arm(version=2, weight_bp=1_000), Arm(version=1, weight_bp=9_000)]


def spoil(registry: Registry, table: sa.Table, **values: object) -> None:
    """What somebody wrote into every row of a table by hand."""
    with registry.database.writing() as connection:
        connection.execute(sa.update(table).values(**values))


def ended(registry: Registry, kind: str, name: str) -> None:
    """It is ended once, by this verb alone, and that is on record."""
    with pytest.raises(NotFound, match=f"the database has no {kind} 'nobody'"):
        end(registry, kind, "nobody", by="ada", reason="test")
    assert "cannot be read" in end(registry, kind, name, by="ada", reason="test")
    [entry] = registry.audit.entries(name, action=f"{kind}.end_damaged")
    assert (entry.actor, entry.detail["reason"]) == ("ada", "test")
    assert "cannot be read" in entry.detail["damage"]
    with pytest.raises(Refused, match=r"has ended: it holds nothing up|can be read"):
        end(registry, kind, name, by="ada", reason="test")


def rolled_out(registry: Registry) -> Rollout:
    registry.routes.write("bot", ARMS, by="ada", reason="r", expected_revision=0)
    registry.gates.approve("bot", 2, by="ada", reason="r")
    return declare(registry, "bot", 2, RolloutPlan(), CHANGE)


def test_a_rollout_that_cannot_be_read_is_ended_and_another_may_be_declared(registries: Registry) -> None:
    found = rolled_out(registries)
    held = registries.rollouts.claim(found.id, "c1", 15)
    assert held is not None
    with pytest.raises(Refused, match="can be read: `tuneloop rollout abort MODEL` is for that"):
        end(registries, "rollout", found.id, by="ada", reason="test")
    spoil(registries, rollouts, plan=[])
    with pytest.raises(Unreadable, match=f"or end it as it is: `tuneloop db end rollout {found.id} --by YOU"):
        abort(registries, "bot", CHANGE)
    before = registries.routes.current("bot")
    ended(registries, "rollout", found.id)
    assert registries.routes.current("bot") == before
    assert registries.rollouts.open("bot") is None
    assert declare(registries, "bot", 2, RolloutPlan(), CHANGE) == registries.rollouts.open("bot")


def test_a_request_that_cannot_be_read_is_ended_with_its_run_and_its_lease(registries: Registry) -> None:
    queue = registries.retraining
    request = queue.file(retraining_request(registries.clock()), by="monitor")
    queue.approve(request.id, by="ada", reason="yes")
    claimed = queue.claim("w", lease_s=60)
    assert claimed is not None
    queue.begin(claimed, Estimate(1.0, 1, None, "the plan"), by="w")
    spoil(registries, retraining, state="stalled")
    with pytest.raises(Unreadable, match=f"tuneloop db end retraining {request.id}"):
        queue.get(request.id)
    ended(registries, "retraining", request.id)
    assert (queue.get(request.id).state, queue.get(request.id).outcome) == ("cancelled", "ada: test")
    [run] = queue.runs("bot")
    assert (run.end, run.ended_at) == ("cancelled", registries.clock())
    with pytest.raises(Conflict):
        queue.renew(claimed, 60)


def test_an_experiment_that_cannot_be_read_is_ended_and_another_may_start(registries: Registry, tmp_path: Path) -> None:
    arms = [Arm(version=2, weight_bp=5_000), Arm(version=1, weight_bp=5_000)]
    registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=0)
    first, second = (registries.experiments.new(declared(tmp_path), NO_PLAN, by="ada", reason="r").id for _ in range(2))
    registries.experiments.start(first, revision=1, by="ada", reason="r")
    with registries.database.writing() as connection:
        connection.execute(sa.update(experiments).where(experiments.c.id == first).values(plan=[]))
    with pytest.raises(Unreadable, match=f"tuneloop db end experiment {first}"):
        registries.experiments.stop(first, by="ada", reason="r")
    ended(registries, "experiment", first)
    assert registries.experiments.running("bot") is None
    assert registries.experiments.start(second, revision=1, by="ada", reason="r").id == second


def test_a_token_and_a_key_that_cannot_be_read_are_ended(registries: Registry) -> None:
    secret, token = registries.tokens.new("ada", Role.ADMIN, by="ada", reason="r")
    _, key = registries.keys.new("team", by="ada")
    spoil(registries, tokens, role="king")
    spoil(registries, api_keys, models=3)
    with pytest.raises(Unreadable, match=r"Token ada cannot be read.*tuneloop db end token ada"):
        registries.tokens.revoke(token.name, by="ada", reason="r")
    with pytest.raises(Unreadable, match=f"tuneloop db end key {key.id}"):
        registries.keys.revoke(key.id, by="ada")
    ended(registries, "token", "ada")
    ended(registries, "key", key.id)
    spoil(registries, tokens, role="admin")
    assert registries.tokens.holder(secret) is None, "it is revoked, whoever mends the row"


def test_the_verb_ends_it_and_says_what_was_wrong_and_what_stays(registry: Registry, verb: Verb) -> None:
    found = rolled_out(registry)
    spoil(registry, rollouts, plan=[])
    code, _, err = verb("rollout", "abort", "bot", *WHO)
    assert (code, "Traceback" in err, "tuneloop db end rollout" in err) == (1, False, True)
    code, out, _ = verb("db", "end", "rollout", found.id, *WHO)
    assert code == 0
    assert out.startswith(f"rollout {found.id} is ended. It could not be read: the database's Rollout {found.id}")
    assert "the model's route is as it was" in out
    assert verb("db", "end", "route", "bot", *WHO)[0] == 2
    assert registry.routes.current("bot").split == {2: 1_000, 1: 9_000}
    assert verb("rollout", "abort", "bot", *WHO)[0] == 2, "none is open any more"
    assert verb("rollback", "bot", *WHO)[0] == 0
    assert registry.routes.current("bot").split == {2: 0, 1: 10_000}, "what it had given is taken back as ever"
