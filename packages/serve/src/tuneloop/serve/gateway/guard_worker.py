"""What the guards' worker processes are asked, and how they answer: texts that come in are judged by every guard of a
policy, runs of an answer are looked through for personal data.

Judging takes milliseconds for 2,000 characters, which an event loop that carries a thousand streams does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection

from tuneloop.registry.guard_policy import Entity, GuardAction, GuardPolicy
from tuneloop.serve.gateway.worker import serve


@dataclass(frozen=True, slots=True)
class Incoming:
    """Texts to be judged by a policy, which goes as JSON: the worker keeps the last ones made."""

    policy: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a guard found in one text, and where, if that is a place in the text."""

    guard: str
    kind: str
    action: GuardAction
    start: int | None
    end: int | None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Runs of an answer in which there may be personal data of these kinds; answered by (entity, start, end) a find."""

    entities: tuple[Entity, ...]
    runs: tuple[str, ...]


def work(pipe: Connection) -> None:
    """The worker."""
    serve(pipe, _warm)


def _warm() -> Callable[[object], object]:
    from tuneloop.registry.redaction import find  # noqa: PLC0415 (120 MB that only this process may pay)
    from tuneloop.serve.guards.judge import WARM_UP, Guards  # noqa: PLC0415

    @lru_cache(maxsize=64)
    def guards(policy: str) -> Guards:
        return Guards(GuardPolicy.model_validate_json(policy))

    def answer(question: object) -> object:
        if isinstance(question, Outgoing):
            return [[(one.entity, one.start, one.end) for one in find(run, question.entities)] for run in question.runs]
        assert isinstance(question, Incoming)
        judge = guards(question.policy).judge
        return [
            tuple(Finding(one.guard, one.kind, one.action, one.start, one.end) for one in judge(text).reasons)
            for text in question.texts
        ]

    answer(Incoming(GuardPolicy().model_dump_json(), (WARM_UP,)))
    return answer
