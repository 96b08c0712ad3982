"""A client that takes down when each event came and reads what it says only afterwards, so that reading costs no pace.

An event is what vLLM sent at once: a token, or several where its API server had fallen behind; tokens are counted by
the usage at the end. Gaps between events are the inter-token latency that a user sees.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

_DONE = b"data: [DONE]"


@dataclass(frozen=True)
class Target:
    """Whom to ask, and for what model."""

    url: str
    model: str
    key: str = "none"


@dataclass(frozen=True)
class Asked:
    """One question and the exact length of its answer."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Answer:
    """A streamed answer: when it was asked for, when each event with text came (monotonic seconds), what it says."""

    asked: Asked
    began: float
    events: tuple[float, ...]
    text: str
    tokens: int
    finish: str | None
    whole: bool  # [DONE] came
    status: int
    version: str = ""  # which one answered, as a gateway says

    @property
    def broken(self) -> bool:
        """Whether anything is missing of it."""
        whole = self.status == 200 and self.whole and self.finish == "length" and self.tokens == self.asked.tokens
        return not whole

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.events[0] - self.began if self.events else float("inf")

    def gaps(self) -> Iterable[tuple[float, float]]:
        """The times of each event and the one after it."""
        return zip(self.events, self.events[1:], strict=False)


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections without a limit of their own; nothing waits for more than two minutes."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as opened:
        yield opened


async def ask(opened: aiohttp.ClientSession, target: Target, asked: Asked) -> Answer:
    """One chat answer as a stream, greedy, of exactly the tokens asked for."""
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": asked.text}],
        "max_tokens": asked.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"authorization": f"Bearer {target.key}"}
    began, lines, status, version = time.monotonic(), [], 0, ""
    try:
        async with opened.post(f"{target.url}/v1/chat/completions", json=body, headers=headers) as response:
            status, version = response.status, response.headers.get("x-tuneloop-version", "")
            async for line in response.content:
                if line != b"\n":
                    lines.append((time.monotonic(), line))  # noqa: PERF401 (what came before it breaks off counts)
    except (TimeoutError, aiohttp.ClientError) as error:
        lines.append((time.monotonic(), str(error).encode()))  # it stays without its end, which counts as broken
    return _read(asked, began, lines, status, version)


def _read(asked: Asked, began: float, lines: Sequence[tuple[float, bytes]], status: int, version: str) -> Answer:
    events: list[float] = []
    said: list[str] = []
    tokens, finish, whole = 0, None, False
    for at, line in lines:
        if line.startswith(_DONE):
            whole = True
        elif status == 200 and line.startswith(b"data: {"):
            event: Mapping[str, Any] = json.loads(line[6:])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event.get("choices", ()):
                finish = choice.get("finish_reason") or finish
                if "role" not in choice["delta"]:
                    events.append(at)
                said.append(choice["delta"].get("content") or "")
    return Answer(asked, began, tuple(events), "".join(said), tokens, finish, whole, status, version)


async def together(
    opened: aiohttp.ClientSession, work: Sequence[tuple[Target, Asked]], users: int
) -> tuple[float, list[Answer]]:
    """So many users work it off, each asking when it has its last answer; (seconds, answers)."""
    left, found = iter(work), []

    async def user() -> None:
        for target, asked in left:
            found.append(await ask(opened, target, asked))

    began = time.monotonic()
    await asyncio.gather(*(user() for _ in range(users)))
    return time.monotonic() - began, found


def quantiles_ms(seconds: Iterable[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    found = 1e3 * np.quantile(np.fromiter(seconds, float), (0.5, 0.99))
    return {"p50_ms": round(float(found[0]), 2), "p99_ms": round(float(found[1]), 2)}
