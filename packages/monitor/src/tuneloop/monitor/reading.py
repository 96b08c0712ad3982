"""Reading texts on an engine: the log-probability of every token of a text that nobody asked for, off the request path.

Canaries and bias templates are read so. vLLM is asked as the scorer asks it (`prompt_logprobs: 0` with one generated
token: a whole prefill, never the prefix cache), a few texts at once. What it costs: one short prefill a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from tuneloop.monitor.scorer import MAX_NATS, Stopped
from tuneloop.registry.errors import Unavailable

IDLE_S = 4.0  # vLLM closes what is idle at 5 s


def engine_client(timeout_s: float) -> httpx.Client:
    """What asks engines: they are private addresses, so that no proxy of the environment stands between."""
    limits = httpx.Limits(keepalive_expiry=IDLE_S)
    return httpx.Client(timeout=timeout_s, trust_env=False, limits=limits)


@dataclass(frozen=True)
class Token:
    """A token of a text as the engine read it."""

    text: str
    logprob: float  # nats, given all tokens before it; never below -MAX_NATS


def read_texts(
    client: httpx.Client,
    url: str,
    name: str,
    texts: Sequence[str],
    *,
    concurrency: int,
    stopping: Callable[[], bool] = lambda: False,
) -> list[tuple[Token, ...]]:
    """Every text's tokens but for its first, which has no log-probability (engines add none before it).

    Args:
        client: to ask with.
        url: of the engine.
        name: what it serves the version under, `model@version`.
        texts: as plain prompts, without a chat template.
        concurrency: texts read at once.
        stopping: asked before every text.

    Raises:
        Unavailable: the engine failed; the message names it.
        Stopped: `stopping` said so.
    """

    def read(text: str) -> tuple[Token, ...]:
        if stopping():
            raise Stopped
        body = {"model": name, "prompt": text, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        try:
            response = client.post(url.rstrip("/") + "/v1/completions", json=body)
            response.raise_for_status()
            return _tokens(response.json()["choices"][0]["prompt_logprobs"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError, IndexError) as error:
            raise Unavailable(f"{url} cannot read a text as {name}: {type(error).__name__}: {error}") from error

    with ThreadPoolExecutor(concurrency) as pool:
        waiting = [pool.submit(read, text) for text in texts]
        try:
            return [future.result() for future in waiting]
        except (Unavailable, Stopped):
            pool.shutdown(cancel_futures=True)
            raise


def _tokens(positions: Sequence[dict[str, Any] | None]) -> tuple[Token, ...]:
    entries = [next(iter(position.values())) for position in positions[1:] if position]
    if len(entries) != len(positions) - 1:
        raise ValueError("HTTP 200 with a token that has no log-probability")
    return tuple(Token(entry["decoded_token"] or "", max(float(entry["logprob"]), -MAX_NATS)) for entry in entries)
