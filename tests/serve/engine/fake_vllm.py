"""A small HTTP server that loads, unloads and answers as vLLM does, and the versions it is asked for; what a real vLLM
does is in test_live_engine.py."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests_support import free_port
from tuneloop.registry.nouns import Version
from tuneloop.registry.versions.adapters import Base

BASE = Base("tiny", "sha256:base", "sha256:template")


class FakeVllm:
    """Lists, loads and unloads adapters; does not load `refused`, answers for `faulty` with 500, and is dead once
    `deadly` was asked."""

    def __init__(self, *, refused: str = "", faulty: str = "", deadly: str = "") -> None:
        self.refused, self.faulty, self.deadly = refused, faulty, deadly
        self.loads: list[dict[str, Any]] = []  # the bodies, as they came
        self.connections: set[object] = set()  # over which models were asked for
        self.adapters: list[str] = []
        self.dead = False
        self.asked = 0  # for a token

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its URL, for as long as the block runs."""
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
        await runner.cleanup()

    def restart(self) -> None:
        """Another life, with nothing loaded."""
        self.dead, self.adapters = False, []

    async def _models(self, request: web.Request) -> web.Response:
        self.connections.add(request.transport)
        return web.json_response({"data": [{"id": name} for name in ("tiny", *self.adapters)]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.dead else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text="vllm:iteration_tokens_total_sum 1\n")

    async def _load(self, request: web.Request) -> web.Response:
        self.loads.append(await request.json())
        name = self.loads[-1]["lora_name"]
        if name == self.refused:
            return _error(400, "InvalidUserInput", f"Invalid rank of '{name}': 64 > 16")
        self.adapters.append(name)
        return web.Response()

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        self.adapters.remove(name)
        return web.Response()

    async def _complete(self, request: web.Request) -> web.Response:
        self.asked += 1
        name = (await request.json())["model"]
        self.dead = self.dead or name == self.deadly
        wrong = self.dead or name == self.faulty
        return web.Response(status=500 if wrong else 200, text='{"message":"shapes differ","code":500}')


def _error(status: int, kind: str, message: str) -> web.Response:
    said = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return web.Response(status=status, text=json.dumps(said, separators=(",", ":")), content_type="application/json")


def version(number: int) -> Version:
    """`m@number`, an adapter on `BASE`."""
    return Version(
        model="m",
        version=number,
        kind="adapter",
        base=BASE.name,
        base_digest=BASE.digest,
        template_digest=BASE.template_digest,
        data_digest="d",
        data_rows=1,
        recipe_digest="r",
        code_commit="c",
        run_id="run",
        artifact_digest=f"sha256:{number}",
        artifact_bytes=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
