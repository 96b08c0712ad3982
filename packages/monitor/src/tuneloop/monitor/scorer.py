"""Perplexity off the request path: an engine that serves the version reads the stored prompt again.

Nats per token *of the question*: minus the mean log-probability, under the version, of those prompt tokens that
spell the last user turn, given the template and the turns before it. Template tokens are left out: they are the same
in every prompt and would hide the question. Prompts are the stored ones, so redacted where storage redacts: the same
in reference and window.

What it can tell: strange language, garbled input, a wrong template. What it cannot: a new topic in familiar words.
Measured on SmolLM2-135M-Instruct through vLLM 0.32: standard-library questions 4.65 nats per token (deviation 1.15),
NumPy questions 4.31 (1.05), double spaces and stray special tokens 12 to 14; 60 questions in 8 s on two busy cores.

vLLM is asked for `prompt_logprobs: 0`, the prompt's own tokens and no others, with one generated token. Two prompts
at once, since each costs a whole prefill beside live traffic and ignores the prefix cache.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from tuneloop.registry.errors import Unavailable
from tuneloop.registry.fleet import Fleet
from tuneloop.registry.nouns import EngineState, RequestRecord

_REMEMBERED = 50_000
_MAX_NATS = 30.0  # a token the model deems impossible arrives as 9999 nats; one such token must not be the whole mean
_SPACE = re.compile(r"\s+")


class Stopped(Exception):
    """Scoring was broken off; nothing may be concluded from what is missing."""


@dataclass(frozen=True)
class Scored:
    """Nats per token of one record's question, or why there is no such number."""

    nats: float | None
    reason: str = ""


class Scorer:
    """Scores records once each: results are remembered by version and request id."""

    def __init__(
        self,
        fleet: Fleet,
        client: httpx.Client,
        *,
        concurrency: int,
        max_tokens: int,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fleet = fleet
        self._stopping = stopping
        self._client = client
        self._concurrency = concurrency
        self._max_tokens = max_tokens
        self._known: OrderedDict[tuple[str, str], Scored] = OrderedDict()

    def remember(self, name: str, nats: dict[str, float]) -> None:
        """Take over what an earlier process scored."""
        for request_id, value in nats.items():
            self._known[name, request_id] = Scored(value)

    def score(self, name: str, records: Sequence[RequestRecord]) -> dict[str, Scored]:
        """Request id → its score under the version `name`.

        Raises:
            Unavailable: no live engine serves the version, or all that do failed; what was scored is kept.
            Stopped: `stopping` said so.
        """
        missing = [record for record in records if (name, record.id) not in self._known]
        if missing:
            engines = self._fleet.serving(name)
            if not engines:
                raise Unavailable(f"no live engine serves {name}; `tuneloop status` shows the engines")
            with ThreadPoolExecutor(self._concurrency) as pool:
                waiting = [pool.submit(self._one, engines, name, record) for record in missing]
                try:
                    for record, future in zip(missing, waiting, strict=True):
                        self._known[name, record.id] = future.result()
                except (Unavailable, Stopped):
                    pool.shutdown(cancel_futures=True)
                    raise
        found = {record.id: self._known[name, record.id] for record in records}
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _one(self, engines: Sequence[EngineState], name: str, record: RequestRecord) -> Scored:
        if self._stopping():
            raise Stopped
        if (record.prompt_tokens or 0) > self._max_tokens:
            return Scored(None, f"longer than scorer_max_tokens ({self._max_tokens})")
        failures: list[str] = []
        for engine in engines:
            try:
                return self._ask(engine, name, record)
            except (
                httpx.HTTPError,
                ValueError,
                LookupError,
                TypeError,
            ) as error:  # away, or not answering as vLLM does
                failures.append(f"{engine.id}: {error or type(error).__name__}")
        raise Unavailable(f"no engine could score {name}: {'; '.join(failures)}")

    def _ask(self, engine: EngineState, name: str, record: RequestRecord) -> Scored:
        path, body = probe(name, record)
        response = self._client.post(engine.url.rstrip("/") + path, json=body)
        if response.status_code == 400:  # this prompt, not this engine: too long, or a role the template does not know
            return Scored(None, f"the engine refuses the prompt: {response.text[:200]}")
        response.raise_for_status()
        answer = response.json()
        holder = answer if record.endpoint == "chat" else answer["choices"][0]
        positions = holder.get("prompt_logprobs")
        if positions is None:
            raise ValueError(f"HTTP 200 without prompt_logprobs: {response.text[:200]}")
        return question_nats(positions, record.question)


def probe(name: str, record: RequestRecord) -> tuple[str, dict[str, Any]]:
    """The engine path and body that make it read this record's prompt."""
    body: dict[str, Any] = {"model": name, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
    if record.endpoint == "completion":
        return "/v1/completions", body | {"prompt": record.question}
    turns = [{"role": message.role, "content": message.content} for message in record.messages]
    return "/v1/chat/completions", body | {"messages": turns}


def question_nats(positions: Sequence[dict[str, Any] | None], question: str) -> Scored:
    """Mean nats of the tokens that spell the question's last occurrence in the prompt.

    Args:
        positions: vLLM's `prompt_logprobs`: one entry per prompt token, None for the first, else
            `{token id: {"logprob", "rank", "decoded_token"}}` with the prompt's own token first.
        question: the text to find. White space is ignored on both sides: templates trim it, some tokenizers drop it.
    """
    wanted = _SPACE.sub("", question)
    spelled, owners, nats = "", [], []
    for index, position in enumerate(positions):
        entry = next(iter(position.values())) if position else None
        nats.append(min(-entry["logprob"], _MAX_NATS) if entry else None)
        letters = _SPACE.sub("", (entry["decoded_token"] or "") if entry else "")
        spelled += letters
        owners += [index] * len(letters)
    at = spelled.rfind(wanted)
    if at < 0 and len(wanted) > 1:  # a bare completion's first token has no log-probability and no text
        at = 0 if spelled and wanted.endswith(spelled) else at
    if at < 0 or not wanted:
        return Scored(None, "the question is not in the prompt the engine read")
    tokens = sorted(set(owners[at : at + len(wanted)]))
    known = [value for token in tokens if (value := nats[token]) is not None]
    return Scored(sum(known) / len(known)) if known else Scored(None, "the question is a single token")
