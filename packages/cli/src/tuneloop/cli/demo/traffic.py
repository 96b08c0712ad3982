"""Simulated users: they ask through an unchanged `openai` client, compare the answer with what they know, and say so.

A user is a sticky key. Half of the requests stream. The score is the token F1 against the true answer; where the answer
was poor, the user sends the true one as a correction.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from openai import AsyncOpenAI, OpenAIError

USERS = 200
USERS_AT_ONCE = 8
CORRECT_BELOW = 0.9


@dataclass(frozen=True)
class Question:
    """A question and the answer the user knows to be true."""

    text: str
    truth: str

    @staticmethod
    def read(path: Path) -> list[Question]:
        """The questions of a JSONL file of instruction/output pairs."""
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Question(row["instruction"], row["output"]) for row in rows]


@dataclass(frozen=True)
class Stream:
    """One streamed answer, from its headers to its end."""

    opened_at: datetime
    ended_at: datetime
    broken: bool


@dataclass
class Tally:
    """What the users saw, all in all."""

    sent: int = 0
    failed: int = 0
    corrections: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    streams: list[Stream] = field(default_factory=list)
    last_answered: dict[str, str] = field(default_factory=dict)  # name of a version → id of its last answer

    def streams_at(self, at: datetime, window_s: float) -> tuple[int, int]:
        """(streams open at that moment, streams among them and those begun within `window_s` that broke)."""
        until = at + timedelta(seconds=window_s)
        open_then = [stream for stream in self.streams if stream.opened_at <= at <= stream.ended_at]
        touched = [stream for stream in self.streams if stream.opened_at <= until and stream.ended_at >= at]
        return len(open_then), sum(stream.broken for stream in touched)


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over lower-case words, in [0, 1]."""
    got, wanted = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, truth))
    common = sum((got & wanted).values())
    return 2 * common / (got.total() + wanted.total()) if common else 0.0


class Traffic:
    """A load of questions from a thread of its own; `tally` may be read at any time."""

    def __init__(self, base_url: str, api_key: str, model: str, *, max_tokens: int, seed: int = 7) -> None:
        self.tally = Tally()
        self._url, self._key, self._model = base_url, api_key, model
        self._max_tokens = max_tokens
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def ask(self, questions: Sequence[Question], count: int) -> None:
        """Ask `count` questions and return when all are answered."""
        self._stop.clear()
        asyncio.run(self._work(questions, count, USERS_AT_ONCE))

    def begin(self, questions: Sequence[Question], users: int = USERS_AT_ONCE) -> None:
        """Ask without end in the background, so many users at once, until `end`."""
        self._stop.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work(questions, None, users)))
        self._thread.start()

    def end(self) -> None:
        """Ask nothing new and wait for what is in flight."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    async def _work(self, questions: Sequence[Question], count: int | None, users: int) -> None:
        left = count

        async def user() -> None:
            nonlocal left
            while not self._stop.is_set() and left != 0:
                if left is not None:
                    left -= 1
                await self._one(client, feedback, self._random.choice(questions), stream=self._random.random() < 0.5)

        async with (
            AsyncOpenAI(base_url=f"{self._url}/v1", api_key=self._key, max_retries=0, timeout=120) as client,
            httpx.AsyncClient(
                base_url=self._url, headers={"authorization": f"Bearer {self._key}"}, timeout=30
            ) as feedback,
        ):
            await asyncio.gather(*(user() for _ in range(users)))

    async def _one(self, client: AsyncOpenAI, feedback: httpx.AsyncClient, question: Question, *, stream: bool) -> None:
        self.tally.sent += 1
        began = time.monotonic()
        opened_at: datetime | None = None
        broken = True
        try:
            asked = await client.chat.completions.with_raw_response.create(
                model=self._model,
                messages=[{"role": "user", "content": question.text}],
                max_tokens=self._max_tokens,
                temperature=0,
                stream=stream,
                extra_headers={"x-tuneloop-unit": f"user-{self._random.randrange(USERS)}"},
            )
            request_id, version = asked.headers["x-request-id"], asked.headers["x-tuneloop-version"]
            if stream:
                opened_at = datetime.now(UTC)
                answer, finished = "", False
                async for event in asked.parse():
                    for choice in event.choices:
                        answer += choice.delta.content or ""
                        finished = finished or choice.finish_reason is not None
                if not finished:
                    raise OpenAIError("the stream ended before the answer did")
            else:
                answer = asked.parse().choices[0].message.content or ""
            broken = False
        except (OpenAIError, httpx.HTTPError) as error:
            self.tally.failed += 1
            self.tally.failures[f"{type(error).__name__}: {error}"] += 1
            return
        finally:
            if opened_at is not None:
                self.tally.streams.append(Stream(opened_at, datetime.now(UTC), broken))
        self.tally.latencies_ms.append(1_000 * (time.monotonic() - began))
        self.tally.last_answered[version] = request_id
        await self._say(feedback, request_id, answer, question)

    async def _say(self, feedback: httpx.AsyncClient, request_id: str, answer: str, question: Question) -> None:
        score = token_f1(answer, question.truth)
        body: dict[str, str | float] = {"request_id": request_id, "score": round(score, 4)}
        if score < CORRECT_BELOW:
            body["correction"] = question.truth
            self.tally.corrections += 1
        try:
            said = await feedback.post("/v1/feedback", json=body)
        except httpx.HTTPError as error:
            wrong = f"{type(error).__name__}: {error}"
        else:
            wrong = f"{said.status_code} {said.text}" if said.is_error else ""
        if wrong:
            self.tally.failed += 1
            self.tally.failures[f"feedback: {wrong}"] += 1
