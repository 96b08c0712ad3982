"""What a gateway logs of requests names them and says what became of them: nothing of what is in them."""

from __future__ import annotations

import json
import logging

import pytest

from serve.gateway.test_guarding import ATTACK, TOKEN, guard
from serve.gateway.world import World, until
from tuneloop.registry.guard_policy import OutputGuards
from tuneloop.registry.logs import JsonLines

TEXT = "Does Zanzibar trade in cloves?"
CONTENT = ("zanzibar", "cloves", "ignore all previous", TOKEN.lower(), "ada@example.com")


def test_no_line_of_the_log_holds_content(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Not of a question, an answer, an engine's error that quotes them, a find of the guards or feedback."""
    caplog.set_level(logging.DEBUG)
    world.engine("e1", "bot@1", fault="status_500", quotes=f", while it read: {TEXT}")
    world.engine("e2", "bot@1", says=("Zanzibar", f" does; {TOKEN}"))
    world.route((1, 10_000))
    gateway = world.gateway(record_text="redacted", guard_workers=1, drain_s=30.0)
    guard(world, gateway, output=OutputGuards())
    for stream in (False, True):
        assert gateway.chat(text=f"{TEXT} ada@example.com", stream=stream).status == 200
    assert gateway.chat(text=f"{ATTACK} {TEXT}").error["code"] == "guard_blocked"
    for model in ("bot", "Zanzibar"):
        assert gateway.call("/v1/chat/completions", {"model": model, "messages": TEXT}).status in {400, 404}
    engine, _ = world.engines["e2"]
    engine.fault, engine.quotes = "status_500", f" of {TEXT}"
    failed = gateway.chat(text=TEXT, unit="cloves")
    assert failed.status == 502
    told = {"request_id": failed.headers["x-request-id"], "comment": TEXT, "score": 0.0}
    assert gateway.call("/v1/feedback", told).status == 201
    until(lambda: len(world.registry.traffic.window("bot")) >= 4, 60)
    world.stack.close()  # what is logged at the end, too
    form = logging.Formatter("%(levelname)s %(name)s %(message)s")
    lines = [form.format(record) for record in caplog.records if record.name.startswith(("tuneloop", "uvicorn"))]
    assert any("goes to" in line and "e1 answered 500" in line for line in lines)
    assert not [line for line in lines if any(text in line.lower() for text in CONTENT)]
    objects = [JsonLines({"gateway_id": "gw"}).format(record) for record in caplog.records]
    assert not [line for line in objects if any(text in line.lower() for text in CONTENT)]
    retried = [one for one in map(json.loads, objects) if "goes to" in one["message"]]
    assert retried
    assert all(one["gateway_id"] == "gw" and one["request_id"] in one["message"] for one in retried)
