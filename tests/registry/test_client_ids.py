"""Feedback finds its request by the id that the client gave it, whichever of the two is stored first, and stays away
from requests that were deleted with their users."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from tests_support import Clock, request_record
from tuneloop.registry import Registry
from tuneloop.registry.client_ids import WAITING, client_id, waiting_for
from tuneloop.registry.nouns import Feedback, RequestRecord
from tuneloop.registry.paging import Ask
from tuneloop.registry.routes.assignment import key_hash
from tuneloop.registry.tables import feedback, forgotten_requests

ADA = key_hash("ada")
WHO: dict[str, Any] = {"by": "grace", "reason": "she asked for it"}


def request(number: int, clock: Clock, own: str = "mine", *, api_key: str = "key_1", **changes: Any) -> RequestRecord:
    return request_record(number, clock(), client_id=client_id(api_key, own), api_key=api_key, **changes)


def said(number: int, clock: Clock, own: str = "mine", *, api_key: str = "key_1") -> Feedback:
    (names,) = waiting_for([client_id(api_key, own)])
    return Feedback(id=f"fb-{number}", request_id=names, at=clock(), score=0.5, api_key=api_key)


def of(registry: Registry, number: int) -> list[str]:
    return [item.id for item in registry.traffic.feedback_page(f"req-{number}", Ask(10)).items]


def stored(registry: Registry, column: sa.Column[str]) -> list[str]:
    with registry.database.reading() as connection:
        return sorted(connection.execute(sa.select(column)).scalars())


def test_feedback_finds_its_request_whichever_comes_first(registries: Registry, clock: Clock) -> None:
    traffic = registries.traffic
    traffic.add_requests([request(1, clock), request(2, clock, "other")])
    assert traffic.add_feedback([said(1, clock)]) == set()
    traffic.add_feedback([said(2, clock, "later"), said(3, clock, "later"), said(4, clock, "never")])
    traffic.add_requests([request(3, clock, "later"), request_record(4, clock())])
    assert [of(registries, number) for number in (1, 2, 3, 4)] == [["fb-1"], [], ["fb-2", "fb-3"], []]
    assert [one for one in stored(registries, feedback.c.request_id) if one.startswith(WAITING)] == waiting_for(
        [client_id("key_1", "never")]
    )


def test_an_id_is_its_keys_and_of_several_requests_the_newest_is_meant(registries: Registry, clock: Clock) -> None:
    traffic = registries.traffic
    traffic.add_requests([request(1, clock, api_key="key_1"), request(2, clock, api_key="key_2")])
    traffic.add_feedback([said(1, clock, api_key="key_1"), said(2, clock, api_key="key_3")])
    assert [of(registries, number) for number in (1, 2)] == [["fb-1"], []]
    clock.advance(1)
    traffic.add_requests([request(3, clock)])
    traffic.add_feedback([said(3, clock)])
    assert [of(registries, number) for number in (1, 3)] == [["fb-1"], ["fb-3"]], "what was said of one stays with it"
    traffic.add_feedback([said(4, clock, "twice")])
    newer = request(5, clock, "twice")
    clock.advance(-1)
    traffic.add_requests([newer, request(4, clock, "twice")])
    assert [of(registries, number) for number in (4, 5)] == [[], ["fb-4"]]
    for secret in ("mine", "key_1"):
        assert secret not in client_id("key_1", "mine")


def test_of_a_request_that_was_tried_again_with_its_id_the_answered_one_is_meant(
    registries: Registry, clock: Clock
) -> None:
    """As OpenAI's clients try again after a 502; of an id of which none was answered what is said waits."""
    traffic = registries.traffic
    failed, again = (request(number, clock, status=status) for number, status in ((1, 502), (2, 200)))
    traffic.add_requests([failed])
    traffic.add_feedback([said(1, clock)])
    assert of(registries, 1) == []
    traffic.add_requests([again])
    assert (of(registries, 1), of(registries, 2)) == ([], ["fb-1"])
    clock.advance(1)
    traffic.add_requests([request(3, clock, status=429)])
    traffic.add_feedback([said(2, clock)])
    assert of(registries, 2) == ["fb-1", "fb-2"], "the newest failed"
    traffic.add_feedback([said(3, clock, "batch")])
    traffic.add_requests([request(4, clock, "batch"), request(5, clock, "batch", status=502)])
    assert (of(registries, 4), of(registries, 5)) == (["fb-3"], [])


@pytest.mark.parametrize("first", ["feedback", "request"])
def test_what_a_user_stopped_or_was_refused_is_meant_too(registries: Registry, clock: Clock, first: str) -> None:
    """Nobody tries these again: a stream that its client left or that broke off, a question that a guard blocked."""
    parts: dict[int, dict[str, Any]] = {
        1: {"status": 499, "ttft_ms": 9.0},
        2: {"status": 502, "ttft_ms": 9.0},
        3: {"status": 400},
    }
    made = [request(number, clock, f"own-{number}", **fields) for number, fields in parts.items()]
    told = [said(number, clock, f"own-{number}") for number in parts]
    for act in sorted(("feedback", "request"), key=lambda one: one != first):
        registries.traffic.add_feedback(told) if act == "feedback" else registries.traffic.add_requests(made)
    assert [of(registries, number) for number in parts] == [["fb-1"], ["fb-2"], ["fb-3"]]


def test_what_was_said_by_an_id_of_two_users_is_not_lost_when_one_of_them_is_forgotten(
    registries: Registry, clock: Clock
) -> None:
    """Not what came after the deletion: it may be of the other's request, which is not on record yet."""
    traffic = registries.traffic
    early, late = (request(number, clock, f"own-{number}", key_hash=ADA) for number in (1, 2))
    traffic.add_requests([early])
    before = said(1, clock, "own-1"), said(2, clock, "own-2")
    traffic.add_feedback([before[1]])
    clock.advance(1)
    traffic.forget("ada", at=clock(), **WHO)
    clock.advance(1)
    after = said(3, clock, "own-1"), said(4, clock, "own-2")
    assert traffic.add_feedback([before[0], *after]) == {"fb-1"}
    traffic.add_requests([late])
    assert stored(registries, feedback.c.id) == ["fb-3", "fb-4"]
    traffic.add_requests([request(number + 2, clock, f"own-{number}", key_hash=key_hash("bob")) for number in (1, 2)])
    assert [of(registries, number) for number in (3, 4)] == [["fb-3"], ["fb-4"]]
    clock.advance(1)
    traffic.forget("ada", at=clock(), **WHO)
    assert stored(registries, feedback.c.id) == ["fb-3", "fb-4"]


def test_what_waits_for_an_answer_goes_with_its_user(registries: Registry, clock: Clock) -> None:
    traffic = registries.traffic
    traffic.add_requests([request(1, clock, key_hash=ADA, status=502)])
    traffic.add_feedback([said(1, clock)])
    clock.advance(1)
    assert traffic.forget("ada", at=clock(), **WHO).feedback == 1
    clock.advance(1)
    traffic.add_requests([request(2, clock, key_hash=ADA)])
    traffic.add_feedback([said(2, clock)])
    assert of(registries, 2) == ["fb-2"]
    clock.advance(1)
    assert traffic.forget("ada", at=clock(), **WHO).feedback == 1
    assert traffic.add_feedback([said(3, clock)]) == {"fb-3"}, "the id is known by its newest deletion"


@pytest.mark.parametrize("by_own_id", [False, True])
def test_feedback_on_what_was_deleted_with_its_user_is_not_stored(
    registries: Registry, clock: Clock, *, by_own_id: bool
) -> None:
    traffic = registries.traffic
    early, late = (request(number, clock, f"own-{number}", key_hash=ADA) for number in (1, 2))
    kept = request(3, clock, "own-3", key_hash=key_hash("bob"))
    traffic.add_requests([early, kept])

    def on(number: int) -> Feedback:
        opinion = said(number, clock, f"own-{number}")
        return opinion if by_own_id else opinion.model_copy(update={"request_id": f"req-{number}"})

    clock.advance(1)
    traffic.forget("ada", at=clock(), **WHO)
    assert traffic.add_feedback([on(1), on(2), on(3)]) == {"fb-1"}, "of the second nobody knows yet"
    assert stored(registries, feedback.c.id) == ["fb-2", "fb-3"]
    traffic.add_requests([late])  # from a gateway's disk
    assert stored(registries, feedback.c.id) == ["fb-3"]
    again = on(2).model_copy(update={"id": "fb-9"})
    assert traffic.add_feedback([again]) == {"fb-9"}
    traffic.forget("ada", at=clock(), **WHO)
    assert len(stored(registries, forgotten_requests.c.id)) == 4, "each by both its ids, once"


def test_an_id_of_a_deleted_request_is_the_next_ones_from_the_deletion_on(registries: Registry, clock: Clock) -> None:
    traffic = registries.traffic
    traffic.add_requests([request(1, clock, key_hash=ADA)])
    clock.advance(1)
    traffic.forget("ada", at=clock(), **WHO)
    clock.advance(1)
    assert traffic.add_feedback([said(1, clock)]) == set(), "said after the deletion, so on a request to come"
    traffic.add_requests([request(2, clock, key_hash=ADA)])
    assert traffic.add_feedback([said(2, clock)]) == set()
    assert of(registries, 2) == ["fb-1", "fb-2"]


def test_no_feedback_is_left_waiting_for_a_request_that_is_stored_at_the_same_time(
    registries: Registry, clock: Clock
) -> None:
    """Two processes; neither sees what the other has not committed."""
    count, begin = 30, threading.Barrier(2)

    def store() -> None:
        with Registry.open(registries.settings, clock=clock) as other:
            for number in range(count):
                begin.wait(30)
                other.traffic.add_requests([request(number, clock, f"own-{number}")])

    storing = threading.Thread(target=store)
    storing.start()
    for number in range(count):
        begin.wait(30)
        registries.traffic.add_feedback([said(number, clock, f"own-{number}")])
    storing.join()
    assert not [one for one in stored(registries, feedback.c.request_id) if one.startswith(WAITING)]
