"""Whether a step went wrong: a loss that is no number or leaps, a gradient grown wild; and which rows were in it.

Pure: values in, a sentence out. A leap counts only against enough earlier steps and only when it is large in nats too,
so that a loss near zero may flicker.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.fit.checkpoints import RunState
from tuneloop.train.recipe.run import DivergenceSection

_WINDOW = 20  # steps the median is taken over
_ENOUGH = 8  # earlier steps before a leap can be told
_LEAP_NATS = 0.5
_SHOWN_ROWS = 8
_ADVICE = "lower optim.learning_rate, raise optim.warmup_ratio, and look at the rows"
_PPO_ADVICE = "lower optim.learning_rate or objective.passes, raise objective.kl_coefficient, and look at the rewards"


class Diverged(TuneloopError):
    """Training has become unstable."""

    def __init__(self, step: int, reason: str, rows: str) -> None:
        super().__init__(f"step {step}: {reason}{rows}")
        self.step = step


def judge_step(loss: float, grad_norm: float | None, before: Sequence[float], rules: DivergenceSection) -> str | None:
    """What is wrong with a step; None when nothing is.

    Args:
        loss: of this step.
        grad_norm: of this step before clipping, where it was measured.
        before: the losses of the steps before it.
        rules: the recipe's limits.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if grad_norm is not None and not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    if rules.max_grad_norm is not None and grad_norm is not None and grad_norm > rules.max_grad_norm:
        return f"the gradient norm {grad_norm:.3g} is above run.divergence.max_grad_norm {rules.max_grad_norm:g}"
    if len(before) < _ENOUGH:
        return None
    median = statistics.median(before[-_WINDOW:])
    if median > 0 and loss > rules.loss_spike * median and loss - median > _LEAP_NATS:
        return f"the loss leapt to {loss:.3f}, {loss / median:.1f} times the median {median:.3f} of the steps before"
    return None


def lowered(error: Diverged, rules: DivergenceSection, state: RunState, objective: str) -> RunState:
    """What a run knows of itself once it has gone back: a lower rate, and one more time that it did.

    Raises:
        TuneloopError: the recipe wants it to stop, or it went back too often already.
    """
    advice = _PPO_ADVICE if objective == "ppo" else _ADVICE
    if rules.action == "stop":
        raise TuneloopError(f"{error}; {advice}, or set run.divergence.action to rollback") from None
    if state.rollbacks >= rules.max_rollbacks:
        raise TuneloopError(f"{error}; it was rolled back {state.rollbacks} times already: {advice}") from None
    rate = state.learning_rate * rules.learning_rate_factor
    return state.model_copy(update={"learning_rate": rate, "rollbacks": state.rollbacks + 1})


def name_rows(places: Sequence[str], rows: Sequence[int], what: str = "rows") -> str:
    """`; its rows: train.jsonl:3, train.jsonl:17 and 12 more`."""
    shown = [places[row] or f"row {row + 1}" for row in rows[:_SHOWN_ROWS]]
    more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
    return f"; its {what}: {', '.join(shown)}{more}"
