"""What a key of some scopes opens, through a gateway."""

from __future__ import annotations

from typing import get_args

from serve.gateway.world import Address, World, until
from tuneloop.registry.nouns.access import Scope

MESSAGES = [{"role": "user", "content": "Hello?"}]
ASKED: dict[Scope, tuple[str, dict[str, object] | None]] = {
    "chat": ("/v1/chat/completions", {"model": "bot", "messages": MESSAGES}),
    "completions": ("/v1/completions", {"model": "bot", "prompt": "Hello?"}),
    "responses": ("/v1/responses", {"model": "bot", "input": "Hello?"}),
    "embeddings": ("/v1/embeddings", {"model": "bot", "input": "Hello?"}),
    "feedback": ("/v1/feedback", {"request_id": "req_1", "score": 1.0}),
    "models": ("/v1/models", None),
}


def lacking(gateway: Address, secret: str) -> set[str]:
    """The scopes whose endpoints that key does not open."""
    found = set[str]()
    for scope, (path, body) in ASKED.items():
        got = gateway.call(path, body, key=secret)
        if got.status == 403:
            assert (got.error["code"], got.error["type"]) == ("scope_not_allowed", "invalid_request_error")
            assert repr(scope) in got.error["message"]
            found.add(scope)
    return found


def test_a_key_opens_the_endpoints_of_its_scopes_and_no_other(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    secrets = {scope: world.registry.keys.new("page", by="test", scopes=[scope])[0] for scope in get_args(Scope)}
    every, _ = world.registry.keys.new("team", by="test")
    until(lambda: gateway.call("/v1/models", key=every).status == 200)
    assert set(ASKED) == set(secrets)
    assert lacking(gateway, every) == set()
    for scope, secret in secrets.items():
        assert lacking(gateway, secret) == ASKED.keys() - {scope}
    assert gateway.call("/v1/models/bot", key=secrets["chat"]).status == 403
    asked = len(world.engines["e1"][0].seen)
    gateway.call(*ASKED["chat"], key=secrets["feedback"])
    assert len(world.engines["e1"][0].seen) == asked, "an engine was asked all the same"
