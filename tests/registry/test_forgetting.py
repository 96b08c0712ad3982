"""A user is forgotten: all that is on record of them goes, nothing else does, and what comes late is not stored."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from registry.verbs import Verb
from tests_support import Clock, alert_episode, request_record, window_score
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.forgetting import ACTION, MOST_BYTES
from tuneloop.registry.nouns import Feedback
from tuneloop.registry.routes.assignment import key_hash
from tuneloop.registry.tables import BLANK, feedback, requests, shadow_requests

ADA, BOB = key_hash("ada"), key_hash("bob")
WHO: dict[str, Any] = {"by": "grace", "reason": "she asked for it"}


def said(number: int, request_id: str, clock: Clock) -> Feedback:
    return Feedback(id=f"fb-{number}", request_id=request_id, at=clock(), comment="of mine", api_key="key_1")


def left(registry: Registry) -> dict[str, list[str]]:
    with registry.database.reading() as connection:
        return {
            table.name: sorted(connection.execute(sa.select(table.c.id)).scalars())
            for table in (requests, shadow_requests, feedback)
        }


def test_all_that_is_on_record_of_a_user_goes_and_nothing_of_others(registries: Registry, clock: Clock) -> None:
    traffic = registries.traffic
    mine = [request_record(n, clock(), key_hash=ADA, model=model) for n, model in enumerate(("bot", "bot", "cat"))]
    theirs = request_record(3, clock(), key_hash=BOB)
    copies = [
        request_record(n + 10, clock(), key_hash=one.key_hash, shadow_of=one.id)
        for n, one in enumerate([*mine, theirs])
    ]
    traffic.add_requests([*mine, theirs, *copies])
    traffic.add_feedback([said(n, f"req-{n}", clock) for n in range(4)])
    usage = registries.usage.month(clock(), keys=["key_1"])

    found = traffic.forget("ada", at=clock(), model="cat", **WHO)
    assert (found.requests, found.copies, found.feedback) == (1, 0, 1), "its copy was asked of another model"
    found = traffic.forget(ADA, at=clock(), hashed=True, **WHO)
    assert (found.key_hash, found.requests, found.copies, found.feedback) == (ADA, 2, 3, 2)
    assert left(registries) == {"requests": ["req-3"], "shadow_requests": ["req-13"], "feedback": ["fb-3"]}
    again = traffic.forget("ada", at=clock(), **WHO)
    assert (again.requests, again.copies, again.feedback) == (0, 0, 0)
    assert registries.usage.month(clock(), keys=["key_1"]) == usage

    entries = [entry for entry in registries.audit.entries(limit=10) if entry.action == ACTION]
    assert [(entry.actor, entry.subject, entry.detail["requests"]) for entry in entries] == [
        ("grace", f"user:{ADA}", n) for n in (0, 2, 1)
    ]
    assert "'ada'" not in str(entries), "the log keeps no more than the records did"
    assert not registries.audit.verify().faults


def test_what_is_brought_in_late_is_not_stored_and_what_is_new_is(registries: Registry, clock: Clock) -> None:
    late, early = (request_record(n, clock(), key_hash=ADA) for n in (1, 2))
    registries.traffic.add_feedback([said(1, late.id, clock)])  # before its request is on record
    registries.traffic.add_requests([early])
    clock.advance(5)
    registries.traffic.forget("ada", at=clock(), **WHO)
    copy = request_record(3, early.at, key_hash=ADA, shadow_of=late.id)
    other = request_record(4, early.at, key_hash=BOB)
    registries.traffic.add_requests([late, early, copy, other])  # from a gateway's disk
    assert left(registries) == {"requests": ["req-4"], "shadow_requests": [], "feedback": []}
    clock.advance(1)
    registries.traffic.add_requests([request_record(5, clock(), key_hash=ADA)])
    assert left(registries)["requests"] == ["req-4", "req-5"]


def test_the_monitors_examples_of_them_are_blanked_and_those_of_others_stay(registries: Registry, clock: Clock) -> None:
    registries.traffic.add_requests(
        [request_record(1, clock(), key_hash=ADA), request_record(2, clock(), key_hash=BOB)]
    )
    examples = [{"request_id": f"req-{n}", "question": f"my name is {n}", "weight": 1.0} for n in (1, 2)]
    detail = {"examples": examples, "mean_run_length": 10_000.0, "reference": {}}
    registries.episodes.add_score(window_score(clock(), detail=detail))
    evidence = {"signals": {"prompt_drift": {"examples": examples, "last": {"examples": examples[:1]}}}}
    registries.episodes.open(alert_episode(clock(), evidence=evidence))
    registries.traffic.forget("ada", at=clock(), **WHO)
    for shown in (registries.episodes.score("w1").detail, registries.episodes.get("ep1").evidence):
        assert "my name is 1" not in str(shown)
        assert "my name is 2" in str(shown)
        assert BLANK in str(shown)


def test_what_is_stored_while_somebody_is_forgotten_is_not_left(registries: Registry, clock: Clock) -> None:
    """A record waits until the deletion has ended, and is then found to be late; or is there before it begins."""
    at = clock()
    registries.traffic.forget("bob", at=at, **WHO)  # so that something is known already
    clock.advance(1)

    def store() -> None:
        with Registry.open(registries.settings, clock=clock) as other:
            for number in range(20):
                other.traffic.add_requests([request_record(number, at, key_hash=ADA)])

    storing = threading.Thread(target=store)
    storing.start()
    for _ in range(5):
        registries.traffic.forget("ada", at=clock(), **WHO)
    storing.join()
    assert left(registries)["requests"] == []


@pytest.mark.parametrize("said", [{"user": ""}, {"user": "x" * (MOST_BYTES + 1)}, {"user": "ada", "hashed": True}])
def test_a_key_that_no_record_can_have_is_refused(registry: Registry, clock: Clock, said: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        registry.traffic.forget(at=clock(), **said, **WHO)


def test_the_verb_tells_how_many_and_a_model_nobody_knows_is_refused(verb: Verb, registry: Registry) -> None:
    registry.traffic.add_requests([request_record(1, registry.clock(), key_hash=ADA)])
    who = ("--by", "grace", "--reason", "she asked for it")
    assert verb("forget", "ada", "--model", "bott", *who)[0] == 2
    code, text, _ = verb("forget", "ada", *who)
    assert (code, text.strip()) == (0, f"deleted of user {ADA}: 1 requests, 0 copies of shadows, 0 feedback")
    assert json.loads(verb("forget", ADA, "--hashed", "--json", *who)[1])["requests"] == 0
