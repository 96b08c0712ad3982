"""What an answer is worth: reward functions found by name, a reward model, or their sum.

A reward function takes answers and gives a number for each. Those of your own are found by entry point:

    [project.entry-points."tuneloop.rewards"]
    polite = "my_package.rewards:polite"          # def polite(answers: Sequence[Answer]) -> Sequence[float]

Built in, and reading a row's field `answer`: `exact_match`, as it is measured, and `contains_answer`; and `finished` (1
when the answer ends by itself within max_new_tokens).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.nouns import Message
from tuneloop.train.data.near import normal
from tuneloop.train.evaluation.metrics import exact_match

GROUP = "tuneloop.rewards"


@dataclass(frozen=True)
class Answer:
    """One answer of the policy to a question."""

    question: tuple[Message, ...]
    text: str  # without special tokens
    finished: bool  # ended by its end-of-turn token, not by the limit
    fields: Mapping[str, Any]  # whatever else the row holds, such as the answer that is right
    question_ids: tuple[int, ...]
    ids: tuple[int, ...]  # of the answer, its end-of-turn token included


RewardFunction = Callable[[Sequence[Answer]], Sequence[float]]


class AnswerScorer(Protocol):
    """A reward model, as those who ask it know it."""

    def scores(self, ids: Sequence[Sequence[int]], *, batch: int, check: Callable[[], None]) -> list[float]:
        """One score for each sequence of tokens, question and answer; `batch` of them a forward pass, before each of
        which `check` is called: it raises to stop."""


@dataclass(frozen=True)
class Judge:
    """All that rewards an answer."""

    functions: Mapping[str, RewardFunction]
    model: AnswerScorer | None = None

    @property
    def names(self) -> list[str]:
        """Of its parts."""
        return [*self.functions, *(["reward_model"] if self.model is not None else [])]

    def part(
        self, name: str, answers: Sequence[Answer], *, batch: int, check: Callable[[], None] = lambda: None
    ) -> list[float]:
        """One part's score of each answer; a reward model reads `batch` of them at a time.

        Before a function is called, and before each time a model reads, `check` is: it raises to stop.

        Raises:
            InvalidInput: a reward function gave no number, or not one for each answer.
        """
        if name not in self.functions:
            assert self.model is not None
            return self.model.scores([answer.question_ids + answer.ids for answer in answers], batch=batch, check=check)
        check()
        given = [float(score) for score in self.functions[name](answers)]
        if len(given) != len(answers):
            raise InvalidInput(
                f"reward {name!r} gave {len(given)} scores for {len(answers)} answers; give one for each"
            )
        for score, answer in zip(given, answers, strict=True):
            if not math.isfinite(score):
                raise InvalidInput(f"reward {name!r} gave {score} for the answer {answer.text[:80]!r}; give a number")
        return given


def find_rewards(names: Sequence[str]) -> dict[str, RewardFunction]:
    """The reward functions of these names.

    Raises:
        NotFound: there is none of that name; the message names those that there are.
        InvalidInput: two packages give the same name, or what is found cannot be called.
    """
    found: dict[str, RewardFunction] = {}
    installed = entry_points(group=GROUP)
    known = sorted({*_BUILT_IN, *installed.names})
    for name in names:
        own = [point for point in installed if point.name == name]
        if not own and name not in _BUILT_IN:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise NotFound(
                f"no reward function is named {name!r}; {hint} (your own: entry point group {GROUP!r} of an installed "
                "package)"
            )
        if len(own) + (name in _BUILT_IN) > 1:
            where = ", ".join([*(point.value for point in own), *(["tuneloop itself"] if name in _BUILT_IN else [])])
            raise InvalidInput(f"more than one reward function is named {name!r} ({where}); rename one")
        function = own[0].load() if own else _BUILT_IN[name]
        if not callable(function):
            raise InvalidInput(f"reward {name!r} is {type(function).__name__} ({own[0].value}), not a function")
        found[name] = function
    return found


def _exact_match(answers: Sequence[Answer]) -> list[float]:
    return exact_match([answer.text for answer in answers], [_wanted(answer) for answer in answers])


def _contains_answer(answers: Sequence[Answer]) -> list[float]:
    return [float(normal(_wanted(answer)) in normal(answer.text)) for answer in answers]


def _finished(answers: Sequence[Answer]) -> list[float]:
    return [float(answer.finished) for answer in answers]


def _wanted(answer: Answer) -> str:
    wanted = answer.fields.get("answer")
    if not isinstance(wanted, str) or not wanted.strip():
        raise InvalidInput(
            f"the rewards exact_match and contains_answer read a row's field `answer`; the question "
            f"{answer.question[-1].content[:80]!r} has none"
        )
    return wanted


_BUILT_IN: dict[str, RewardFunction] = {
    "exact_match": _exact_match,
    "contains_answer": _contains_answer,
    "finished": _finished,
}
