"""Held-out preferences: how often the answer that people preferred comes out on top, with Wilson's interval.

A language model is asked which answer it finds likelier (the sum of its tokens' log-probabilities); a reward model,
which it scores higher. A draw counts as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.registry.nouns import Interval
from tuneloop.registry.printing import table
from tuneloop.registry.statistics.intervals import wilson
from tuneloop.train.data.labels import LabelledPair
from tuneloop.train.data.preference import PreferenceRow
from tuneloop.train.evaluation.measure import BATCH, score_rows
from tuneloop.train.fit.reward import RewardModel, sides


@dataclass(frozen=True)
class PreferenceSet:
    """A named set, labelled and ready."""

    name: str
    rows: tuple[PreferenceRow, ...]
    pairs: tuple[LabelledPair, ...]
    digest: str


@dataclass(frozen=True)
class PreferenceScore:
    """What one model reached on one set: by how much it puts the chosen answer above the rejected one, row by row."""

    margins: tuple[float, ...]  # nats, or the reward model's own unit

    @property
    def accuracy(self) -> Interval:
        """Share of rows whose chosen answer is on top."""
        return wilson(sum(margin > 0 for margin in self.margins), len(self.margins))

    def metrics(self, name: str) -> dict[str, float]:
        """`accuracy.<set>` and the mean `margin.<set>`."""
        return {f"accuracy.{name}": self.accuracy.estimate, f"margin.{name}": sum(self.margins) / len(self.margins)}

    def as_json(self) -> dict[str, Any]:
        """Every figure, for `evaluation.json`."""
        return {"accuracy": self.accuracy.model_dump(), "margins": list(self.margins)}


def by_likelihood(
    model: Any, pairs: Sequence[LabelledPair], *, pad_id: int, check: Callable[[], None], batch: int = BATCH
) -> PreferenceScore:
    """Which answer a language model finds likelier; margins in nats an answer."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    scored = score_rows(model, rows, pad_id=pad_id, check=check, batch=batch)
    chosen, rejected = scored[: len(pairs)], scored[len(pairs) :]
    return PreferenceScore(tuple(r.nll - c.nll for c, r in zip(chosen, rejected, strict=True)))


def by_reward(
    model: RewardModel, pairs: Sequence[LabelledPair], *, check: Callable[[], None], batch: int = BATCH
) -> PreferenceScore:
    """Which answer a reward model scores higher."""
    chosen, rejected = sides(pairs)
    scored = model.scores([*chosen, *rejected], batch=batch, check=check)
    return PreferenceScore(tuple(c - r for c, r in zip(scored[: len(pairs)], scored[len(pairs) :], strict=True)))


def preference_table(scores: Mapping[str, tuple[PreferenceScore, PreferenceScore]]) -> str:
    """Before and after, set by set."""

    def shown(score: PreferenceScore) -> str:
        found = score.accuracy
        return f"{found.estimate:.1%} [{found.low:.1%}, {found.high:.1%}]"

    rows = [(name, str(len(was.margins)), shown(was), shown(now)) for name, (was, now) in scores.items()]
    return table(("held-out preferences", "rows", "chosen on top before (95 % interval)", "after"), rows)
