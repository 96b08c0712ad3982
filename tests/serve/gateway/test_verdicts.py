"""Verdicts that are remembered, and those that come when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

from tuneloop.serve.gateway.guard_worker import Finding, Incoming
from tuneloop.serve.gateway.pool import Pool, TooLate
from tuneloop.serve.gateway.verdicts import Found, Verdicts
from tuneloop.serve.gateway.worker import serve

LONG = "a long text " * 200


def slow_work(pipe: Connection) -> None:
    serve(pipe, slow)


def slow() -> Callable[[object], object]:
    asked = itertools.count()

    def answer(question: object) -> object:
        assert isinstance(question, Incoming)
        number = next(asked)
        time.sleep(0.5)
        return [(Finding("secrets", f"question {number}", "redact", 0, 1),) for _ in question.texts]

    return answer


def kinds(found: Found | None) -> list[str]:
    return [one.kind for one in found or ()]


def test_of_verdicts_of_very_many_findings_few_are_remembered() -> None:
    verdicts = Verdicts(Pool("tester", slow_work, 1, 1))
    one = Finding("secrets", "github-token", "redact", 0, 1)
    verdicts.remember(b"few", (one,) * 16)
    for number in range(33):
        verdicts.remember(b"many %d" % number, (one,) * 17)
    assert verdicts.known(b"few") == (one,) * 16
    assert [verdicts.known(b"many %d" % number) is None for number in (0, 1, 32)] == [True, False, False]


def test_a_late_verdict_is_waited_for_by_the_next_and_asked_for_once() -> None:
    async def run() -> None:
        pool = Pool("tester", slow_work, 1, 8)
        verdicts = Verdicts(pool)
        try:
            await verdicts.judge("", {b"first": "starts the worker"}, 60.0)
            with pytest.raises(TooLate, match="no answer within"):
                await verdicts.judge("", {b"long": LONG, b"short": "yes"}, 0.05)
            with pytest.raises(TooLate, match="still at work"):
                await verdicts.judge("", {b"long": LONG}, 0.05)
            assert verdicts.known(b"long") is None
            # Whoever says the same short thing waits for no long text of another's: it is judged by itself.
            short = await verdicts.judge("", {b"short": "yes"}, 60.0)
            assert kinds(short[b"short"]) == ["question 2"]
            found = await verdicts.judge("", {b"long": LONG}, 0.0)
            assert kinds(found[b"long"]) == ["question 1"]
        finally:
            await asyncio.to_thread(pool.stop)

    asyncio.run(run())
