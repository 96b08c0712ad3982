"""Measuring a run's model on its held-out sets: conversations and preferences, before training and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tuneloop.train.data.labels import Labeller
from tuneloop.train.evaluation.batching import ANSWERS_AT_ONCE
from tuneloop.train.evaluation.compare import Comparison, compare
from tuneloop.train.evaluation.measure import (
    BATCH,
    Answer,
    EvaluationSet,
    SetScore,
    greedy_answers,
    pad_token_id,
    score_set,
)
from tuneloop.train.evaluation.metrics import Metric
from tuneloop.train.evaluation.preference import PreferenceScore, PreferenceSet, by_likelihood, by_reward
from tuneloop.train.evaluation.statistics import perplexity
from tuneloop.train.examples import Prepared
from tuneloop.train.fit.memory import Made, half_of, with_fewer
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.reward import RewardModel
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import RewardObjective


@dataclass(frozen=True)
class Scores:
    """What a model reached, set by set."""

    sets: dict[str, SetScore]
    preferences: dict[str, PreferenceScore]

    def metrics(self) -> dict[str, float]:
        """Every set's measures under their names."""
        found: dict[str, float] = {}
        for name, score in self.sets.items():
            found |= score.metrics(name)
        for name, preferred in self.preferences.items():
            found |= preferred.metrics(name)
        return found


_HELPS = "shorten the rows of evaluate.sets by a smaller objective.max_length or evaluate.max_new_tokens"


@dataclass(frozen=True)
class Measurer:
    """Measures models alike; every figure goes to the run and to the screen.

    Where memory is full fewer rows are measured at a time, with the same scores, from then on.
    """

    recipe: Recipe
    prepared: Prepared
    tokenizer: Any
    labeller: Labeller
    metrics: tuple[Metric, ...]
    watch: Watch
    conditions: Mapping[str, str]  # what scores depend on beside weights and rows; see kept.py
    at_once: dict[str, int] = field(default_factory=lambda: {"rows": BATCH, "answers": ANSWERS_AT_ONCE})  # that fit

    def measure(
        self, model: Any, when: Literal["before", "after"], step: int = 0, kept: Mapping[str, SetScore] | None = None
    ) -> Scores:
        """All sets but those whose scores were `kept`.

        A metric that fails before training ends the run, one that fails after it costs its figure.
        """
        found = Scores({}, {})
        kept = kept or {}
        answers = self._answers(model, [chosen for name, chosen in self.prepared.sets.items() if name not in kept])
        for name, chosen in self.prepared.sets.items():
            if name in kept:
                found.sets[name] = kept[name]
                self._say(name, len(chosen.rows), kept[name].metrics(name), when, step, " as measured when it was made")
                continue
            score = self._set(model, chosen, [next(answers) for _ in chosen.asked], tolerant=when == "after")
            found.sets[name] = score
            self._say(name, len(chosen.rows), score.metrics(name), when, step)
        for name, pairs in self.prepared.preferences.items():
            found.preferences[name] = self._prefers(model, pairs)
            self._say(name, len(pairs.rows), found.preferences[name].metrics(name), when, step)
        return found

    def trained_on(self, model: Any, step: int) -> dict[str, float]:
        """Perplexity on the quantised base that was trained on; the version's own is that on the unquantised one."""
        found = {}
        for name, chosen in self.prepared.sets.items():
            reached = perplexity(self._set(model, chosen, ()).rows)
            found[f"perplexity_quantized.{name}"] = reached
            self.watch.screen.say(f"after training, {name}, on the quantised base: perplexity {reached:.2f}")
        self.watch.log(found, step)
        return found

    def compare(self, before: Scores, after: Scores, steps: int) -> dict[str, Comparison]:
        """Both sides of every set; the ends of the intervals go to MLflow beside the estimates, at the same steps."""
        compared: dict[str, Comparison] = {}
        log: Callable[[Mapping[str, float], int], None] = self.watch.log
        for name, chosen in self.prepared.sets.items():
            found = compare(chosen, before.sets[name], after.sets[name], min_rows=self.recipe.evaluate.min_rows)
            for when, metrics in found.interval_metrics().items():
                log(metrics, 0 if when == "before" else steps)
            compared[name] = found
        return compared

    def _answers(self, model: Any, sets: Sequence[EvaluationSet]) -> Iterator[Answer]:
        """To the `asked` rows of all sets, set by set; asked together, which is what makes them cheap."""
        asked = [row for chosen in sets for row in chosen.asked]
        if not asked:
            return iter(())

        def answer(batch: int) -> list[Answer]:
            return greedy_answers(
                model,
                self.tokenizer,
                self.labeller,
                asked,
                max_new_tokens=self.recipe.evaluate.max_new_tokens,
                check=self.watch.check,
                batch=batch,
            )

        return iter(self._fitting("answers", answer))

    def _set(self, model: Any, chosen: EvaluationSet, answers: Sequence[Answer], *, tolerant: bool = False) -> SetScore:
        def score(batch: int) -> SetScore:
            return score_set(
                model,
                self.tokenizer,
                chosen,
                answers,
                check=self.watch.check,
                metrics=self.metrics,
                tolerant=tolerant,
                batch=batch,
            )

        return self._fitting("rows", score)

    def _prefers(self, model: Any, chosen: PreferenceSet) -> PreferenceScore:
        def prefer(batch: int) -> PreferenceScore:
            if not isinstance(self.recipe.objective, RewardObjective):
                pad_id = pad_token_id(self.tokenizer)
                return by_likelihood(model, chosen.pairs, pad_id=pad_id, check=self.watch.check, batch=batch)
            amp = self.recipe.run.dtype == "bfloat16"
            reward = RewardModel(model, self.tokenizer, amp=amp)
            return by_reward(reward, chosen.pairs, check=self.watch.check, batch=batch)

        return self._fitting("rows", prefer)

    def _fitting(self, what: str, measure: Callable[[int], Made]) -> Made:
        def lower(reason: str, rows: int) -> int:
            self.at_once[what] = half = half_of(rows, f"in measuring {what}", _HELPS)
            self.watch.screen.say(f"out of memory in measuring {what} ({reason}); going on with it, {half} at a time")
            return half

        return with_fewer(measure, self.at_once[what], lower)

    def _say(self, name: str, rows: int, metrics: Mapping[str, float], when: str, step: int, how: str = "") -> None:
        self.watch.log(metrics, step)
        shown = ", ".join(f"{key.split('.')[0]} {value:.2f}" for key, value in metrics.items())
        self.watch.screen.say(f"{when} training, {name} ({rows} rows): {shown}{how}")
