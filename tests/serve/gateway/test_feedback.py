"""Feedback by a client's own id of its request, through a gateway."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from serve.gateway.world import Address, World, until
from tuneloop.registry.client_ids import client_id
from tuneloop.registry.nouns import utc_now


def answered(gateway: Address, **headers: str) -> str:
    """The gateway's id of a request that was sent with these headers."""
    body = {"model": "bot", "messages": [{"role": "user", "content": "Hello?"}], "user": "ada"}
    return gateway.call("/v1/chat/completions", body, **headers).headers["x-request-id"]


def say(gateway: Address, *, key: str | None = None, **said: Any) -> Any:
    return gateway.call("/v1/feedback", {"score": 1.0} | said, key=key)


@pytest.fixture
def gateway(world: World) -> Address:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    return world.gateway()


@pytest.mark.parametrize("header", ["x_request_id", "x_client_request_id"])
def test_feedback_by_the_clients_own_id_is_of_its_request_and_of_nobody_elses(
    world: World, gateway: Address, header: str
) -> None:
    others, _ = world.registry.keys.new("others", by="test")
    until(lambda: gateway.call("/v1/models", key=others).status == 200)
    mine = answered(gateway, **{header: "order 17/ä", "x_proxy": "1"})
    theirs = answered(Address(gateway.url, others), **{header: "order 17/ä"})
    assert mine.startswith("req_"), "what a client calls it is not how it is called here"
    told = say(gateway, client_request_id="order 17/ä")
    assert (told.status, told.json["request_id"], told.json["client_request_id"]) == (201, None, "order 17/ä")

    def opinions() -> dict[str, list[Any]]:
        return world.registry.traffic.feedback_for([mine, theirs])

    found = until(opinions)
    assert {request: [item.id for item in items] for request, items in found.items()} == {mine: [told.json["id"]]}
    record = world.registry.traffic.request(mine)
    assert record.client_id is not None
    assert record.client_id == client_id(record.api_key or "", "order 17/ä"), "no client's text is kept"


def test_the_header_that_openais_clients_know_comes_before_what_a_proxy_may_have_set(
    world: World, gateway: Address
) -> None:
    request_id = answered(gateway, x_request_id="of the proxy", x_client_request_id="mine")
    say(gateway, client_request_id="of the proxy")
    told = say(gateway, client_request_id="mine").json
    found = until(lambda: world.registry.traffic.feedback_for([request_id]))
    assert [item.id for item in found[request_id]] == [told["id"]]


@pytest.mark.parametrize("names", [{}, {"request_id": "req_" + "0" * 24, "client_request_id": "mine"}])
def test_feedback_names_its_request_in_one_way(gateway: Address, names: dict[str, str]) -> None:
    refused = say(gateway, **names)
    assert (refused.status, refused.error["param"]) == (400, "request_id")
    assert "client_request_id" in refused.error["message"]


def test_feedback_on_a_request_that_was_deleted_with_its_user_is_refused(world: World, gateway: Address) -> None:
    """By the client's own id that is said until the deletion alone: another user's request may have the id now."""
    request_id = answered(gateway, x_request_id="mine")
    until(lambda: any(record.id == request_id for record in world.registry.traffic.window("bot")))
    by_own_id = {"client_request_id": "mine"}
    world.registry.traffic.forget("ada", at=utc_now() + timedelta(minutes=1), by="t", reason="t")
    for names in ({"request_id": request_id}, by_own_id):
        refused = say(gateway, **names)
        assert (refused.status, refused.error["code"]) == (404, "request_deleted")
    assert not world.registry.traffic.feedback_for([request_id])


def test_feedback_by_an_id_that_a_forgotten_user_had_too_is_of_the_living_request(
    world: World, gateway: Address
) -> None:
    adas = answered(gateway, x_request_id="mine")
    until(lambda: any(record.id == adas for record in world.registry.traffic.window("bot")))
    world.registry.traffic.forget("ada", at=utc_now(), by="t", reason="t")
    told = say(gateway, client_request_id="mine")  # before the request is on record
    bobs = answered(gateway, x_request_id="mine", x_tuneloop_unit="bob")
    assert told.status == 201
    found = until(lambda: world.registry.traffic.feedback_for([adas, bobs]))
    assert {request: [item.id for item in items] for request, items in found.items()} == {bobs: [told.json["id"]]}
