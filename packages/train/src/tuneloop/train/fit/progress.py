"""What a fit tells while it runs, and how it went: loss to the screen and to MLflow, validation now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.data.labels import LabelledRow
from tuneloop.train.evaluation.measure import pad_token_id, score_rows
from tuneloop.train.evaluation.statistics import mean_nll
from tuneloop.train.screen import Screen

_SHOWN_LINES = 20  # progress lines kept where the output is no terminal


@dataclass(frozen=True)
class FitResult:
    """How the fitting went."""

    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    tokens_per_s: float


@dataclass(frozen=True)
class Watch:
    """Who is told how a run goes, and who may stop it."""

    screen: Screen
    log: Callable[[Mapping[str, float], int], None]  # metrics and their step, to MLflow
    check: Callable[[], None]  # called between batches; raises to stop


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Step by step: the loss to the screen and to MLflow, validation at the start, the middle and the end."""

    def __init__(self, tokenizer: Any, steps: int, validation: Sequence[LabelledRow], watch: Watch) -> None:
        self.losses: list[float] = []
        self.tokens = 0.0
        self._pad_id = pad_token_id(tokenizer)
        self._steps = steps
        self._validation = validation
        self._watch = watch
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (transformers' signature)
        self._validate(others["model"], 0)
        self._started = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self._watch.check()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self._watch.check()
        if state.global_step in {self._steps // 2, self._steps}:
            self._validate(others["model"], state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **others: Any) -> None:  # noqa: ARG002 (see above)
        if logs is None or "loss" not in logs:  # the last call sums the run up
            return
        step, loss = state.global_step, float(logs["loss"])
        self.tokens = float(logs["num_tokens"])
        elapsed = time.monotonic() - self._started
        rate, left = self.tokens / elapsed, elapsed / step * (self._steps - step)
        self._watch.log(
            {
                "loss": loss,
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs["grad_norm"],
                "tokens_per_s": rate,
            },
            step,
        )
        if not math.isfinite(loss):
            raise TuneloopError(f"step {step}: the loss is {loss}; lower optim.learning_rate, or use run.dtype float32")
        self.losses.append(loss)
        every = max(1, self._steps // _SHOWN_LINES)
        self._watch.screen.progress(
            f"step {step}/{self._steps}  loss {loss:.3f}  {rate:,.0f} tokens/s  {_minutes(left)} left",
            keep=step % every == 0 or step in {1, self._steps},
        )

    def _validate(self, model: Any, step: int) -> None:
        if not self._validation:
            return
        loss = mean_nll(score_rows(model, self._validation, pad_id=self._pad_id, check=self._watch.check))
        self._watch.log({"validation_loss": loss}, step)
        self._watch.screen.say(f"validation loss {loss:.3f} after step {step}")


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
