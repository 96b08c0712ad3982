"""Perplexity off the request path: an engine that serves the version reads the stored conversation again.

Nats per token *of the question*: minus the mean log-probability, under the version, of those prompt tokens that
spell the last user turn, given the template and the turns before it; and, where a user said how the answer should have
read, the same *of that correction*, given the question. One reading gives both. Template tokens are left out: they are
the same in every prompt and would hide the text. Texts are the stored ones, so redacted where storage redacts: the
same in reference and window.

What the question's can tell: strange language, garbled input, a wrong template. What it cannot: a new topic in familiar
words; that shows in the corrections, if the version does not know the answers. Measured on SmolLM2-135M-Instruct after
some steps on the standard library (float through transformers, 260 rows each, deviation 0.8 to 0.9): questions about
the standard library and SQLAlchemy 4.22 and 4.24 nats per token, their true answers 2.60 and 3.09. Double spaces and
stray special tokens bring a question to 12 to 14. 60 readings take 8 s on two busy cores.

vLLM is asked for `prompt_logprobs: 0`, the prompt's own tokens and no others, with one generated token. Two prompts
at once, since each costs a whole prefill beside live traffic and ignores the prefix cache.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import httpx

from tuneloop.registry.errors import Unavailable
from tuneloop.registry.fleet import Fleet
from tuneloop.registry.nouns import EngineState, RequestRecord

_REMEMBERED = 50_000
MAX_NATS = 30.0  # a token the model deems impossible arrives as 9999 nats; one such token must not be the whole mean
_CHARS_PER_TOKEN = 4  # of English text, roughly
_SPACE = re.compile(r"\s+")


class Stopped(Exception):
    """Scoring was broken off; nothing may be concluded from what is missing."""


@dataclass(frozen=True)
class Scored:
    """Nats per token of one record's question and of its correction, or why the question has no such number."""

    nats: float | None
    reason: str = ""
    correction_nats: float | None = None  # None also without a correction


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
        self._known: OrderedDict[tuple[str, str, str], Scored] = (
            OrderedDict()
        )  # by version, request, correction's digest

    def remember(self, name: str, nats: Mapping[str, float]) -> None:
        """Take over what an earlier process scored of requests that nobody corrected."""
        for request_id, value in nats.items():
            self._known[name, request_id, _digest("")] = Scored(value)

    def score(self, name: str, records: Sequence[RequestRecord], corrections: Mapping[str, str]) -> dict[str, Scored]:
        """Request id → its score under the version `name`.

        Args:
            name: `model@version`.
            records: what was asked.
            corrections: request id → how the answer should have read, where a user said so.

        Raises:
            Unavailable: no live engine serves the version, or all that do failed; what was scored is kept.
            Stopped: `stopping` said so.
        """
        keys = {record.id: (name, record.id, _digest(corrections.get(record.id, ""))) for record in records}
        missing = [record for record in records if keys[record.id] not in self._known]
        if missing:
            engines = self._fleet.serving(name)
            if not engines:
                raise Unavailable(f"no live engine serves {name}; `tuneloop status` shows the engines")
            with ThreadPoolExecutor(self._concurrency) as pool:
                waiting = [
                    pool.submit(self._one, engines, name, record, corrections.get(record.id, "")) for record in missing
                ]
                try:
                    for record, future in zip(missing, waiting, strict=True):
                        self._known[keys[record.id]] = future.result()
                except (Unavailable, Stopped):
                    pool.shutdown(cancel_futures=True)
                    raise
        found = {record.id: self._known[keys[record.id]] for record in records}
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _one(self, engines: Sequence[EngineState], name: str, record: RequestRecord, correction: str) -> Scored:
        if self._stopping():
            raise Stopped
        if record.endpoint == "embedding":
            return Scored(None, "an embeddings request: its model writes no text")
        if (record.prompt_tokens or 0) > self._max_tokens:
            return Scored(None, f"longer than scorer_max_tokens ({self._max_tokens})")
        if (record.prompt_tokens or 0) + len(correction) / _CHARS_PER_TOKEN > self._max_tokens:
            correction = ""  # too long to be read; the question is not to go unread for it
        failures: list[str] = []
        for engine in engines:
            try:
                return self._ask(engine, name, record, correction)
            except (
                httpx.HTTPError,
                ValueError,
                LookupError,
                TypeError,
            ) as error:  # away, or not answering as vLLM does
                failures.append(f"{engine.id}: {error or type(error).__name__}")
        raise Unavailable(f"no engine could score {name}: {'; '.join(failures)}")

    def _ask(self, engine: EngineState, name: str, record: RequestRecord, correction: str) -> Scored:
        path, body = probe(name, record, correction)
        response = self._client.post(engine.url.rstrip("/") + path, json=body)
        if response.status_code == 400 and correction:  # the question alone may still be read
            return self._ask(engine, name, record, "")
        if response.status_code == 400:  # this prompt, not this engine: too long, or a role the template does not know
            return Scored(None, f"the engine refuses the prompt: {response.text[:200]}")
        response.raise_for_status()
        answer = response.json()
        holder = answer["choices"][0] if record.endpoint == "completion" else answer
        positions = holder.get("prompt_logprobs")
        if positions is None:
            raise ValueError(f"HTTP 200 without prompt_logprobs: {response.text[:200]}")
        return text_nats(positions, record.question, correction)


def probe(name: str, record: RequestRecord, correction: str = "") -> tuple[str, dict[str, Any]]:
    """The engine path and body that make it read this record's prompt, and the correction where the answer stood."""
    body: dict[str, Any] = {"model": name, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
    if record.endpoint == "completion":
        return "/v1/completions", body | {"prompt": record.question + correction}
    turns = [{"role": message.role, "content": message.content} for message in record.messages]
    if correction:
        turns.append({"role": "assistant", "content": correction})
        body["add_generation_prompt"] = False
    return "/v1/chat/completions", body | {"messages": turns}


def text_nats(positions: Sequence[dict[str, Any] | None], question: str, correction: str = "") -> Scored:
    """Mean nats of the tokens that spell the correction, and of the question's last occurrence before it.

    Args:
        positions: vLLM's `prompt_logprobs`: one entry per prompt token, None for the first, else
            `{token id: {"logprob", "rank", "decoded_token"}}` with the prompt's own token first.
        question: the text to find. White space is ignored on both sides: templates trim it, some tokenizers drop it.
        correction: the text at the prompt's end; empty when there is none.
    """
    question, correction = _SPACE.sub("", question), _SPACE.sub("", correction)
    spelled, owners, nats = "", [], []
    for index, position in enumerate(positions):
        entry = next(iter(position.values())) if position else None
        nats.append(min(-entry["logprob"], MAX_NATS) if entry else None)
        letters = _SPACE.sub("", (entry["decoded_token"] or "") if entry else "")
        spelled += letters
        owners += [index] * len(letters)
    answered = spelled.rfind(correction) if correction else -1
    corrected = _mean_nats(owners[answered : answered + len(correction)], nats) if answered >= 0 else None
    before = spelled if answered < 0 else spelled[:answered]
    at = before.rfind(question)
    if at < 0 and len(question) > 1:  # a bare completion's first token has no log-probability and no text
        at = 0 if before and question.endswith(before) else at
    if at < 0 or not question:
        return Scored(None, "the question is not in the prompt the engine read", corrected)
    asked = _mean_nats(owners[at : min(at + len(question), len(before))], nats)
    return Scored(asked, "" if asked is not None else "the question is a single token", corrected)


def _digest(correction: str) -> str:
    return sha256(correction.encode()).hexdigest()


def _mean_nats(owners: Sequence[int], nats: Sequence[float | None]) -> float | None:
    known = [value for token in sorted(set(owners)) if (value := nats[token]) is not None]
    return sum(known) / len(known) if known else None
