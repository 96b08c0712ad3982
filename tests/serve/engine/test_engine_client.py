"""What the agent says to its vLLM, over a real connection to a server that answers as vLLM does."""

from __future__ import annotations

import asyncio

import pytest

from serve.engine.fake_vllm import FakeVllm
from tuneloop.serve.engine.client import IDLE_S, EngineClient


def test_a_connection_that_vllm_may_be_closing_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm, now = FakeVllm(), [0.0]
    monkeypatch.setattr("aiohttp.connector.monotonic", lambda: now[0])

    async def act() -> None:
        async with vllm.serving() as url, EngineClient(url) as client:
            for now[0], connections in ((0.0, 1), (IDLE_S - 0.1, 1), (2 * IDLE_S, 2)):
                await client.models()
                assert len(vllm.connections) == connections

    asyncio.run(act())


def test_a_name_that_vllm_does_not_know_is_forgotten_already() -> None:
    vllm = FakeVllm()

    async def act() -> None:
        async with vllm.serving() as url, EngineClient(url) as client:
            await client.unload("m@1")
            assert await client.models() == {"tiny": ""}

    asyncio.run(act())
