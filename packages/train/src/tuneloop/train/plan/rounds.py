"""What a step does beside one pass forward and backward over each of its rows, by objective.

`dpo` reads every row as its reference, too. `grpo` and `ppo` write the answers that they learn from, read them as
reference (and `ppo` as the policy that wrote them), have a reward model read them, and `ppo` goes over them several
times. A token is written at the price of reading all weights once, or of a host's launches where those take longer.
A reward model is taken for as large as the base: which one it is, is known to the registry alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.train.plan.answering import cache_bytes
from tuneloop.train.plan.memory import Load, bytes_of, weight_bytes
from tuneloop.train.plan.shapes import ModelShape
from tuneloop.train.plan.timing import LAUNCH_S, Seconds, Speed, flops_forward
from tuneloop.train.plan.trained import trained_by
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import DpoObjective, GrpoObjective, ObjectiveSection, PpoObjective
from tuneloop.train.recipe.tuning import TuningSection

_FORWARD_LAUNCHES = 1 / 3  # of what a block's kernels take forward and backward
_WRITTEN = (0.35, 0.7, 1.0)  # of the tokens that an answer may have: low, estimate, high; the longest of a batch counts


@dataclass(frozen=True)
class Round:
    """How often each row of a step is gone over."""

    learned: int = 1  # forward and backward
    read: int = 0  # forward alone
    written: int = 0  # tokens of it that are written first, at most


def round_of(objective: ObjectiveSection) -> Round:
    """What an objective asks for."""
    if isinstance(objective, DpoObjective):
        return Round(read=1)
    if not isinstance(objective, GrpoObjective | PpoObjective):
        return Round()
    judged = int(objective.reward_model is not None)
    if isinstance(objective, PpoObjective):
        return Round(objective.passes, 2 + judged, objective.max_new_tokens)
    return Round(1, int(objective.kl_coefficient > 0) + judged, objective.max_new_tokens)


def reward_model_bytes(recipe: Recipe, shape: ModelShape, dtype: str) -> int:
    """The base that a reward model stands on, which lies beside the policy's; 0 without one."""
    objective = recipe.objective
    if not isinstance(objective, GrpoObjective | PpoObjective) or objective.reward_model is None:
        return 0
    return bytes_of(dtype) * shape.parameters


def beside_seconds(
    objective: ObjectiveSection,
    shape: ModelShape,
    tuning: TuningSection,
    load: Load,
    speed: Speed,
    *,
    passes: int,
    length: float,
) -> Seconds:
    """Reading and writing in a step of `passes` micro-batches; `length` is a row's, in tokens, answer included."""
    wanted = round_of(objective)
    reading = flops_forward(shape, load, length=length) / speed.flops
    weights = weight_bytes(shape, tuning, load, trained_by(shape, tuning))
    kept = cache_bytes(shape, load.rows, max(1, round(length)), bytes_of(load.dtype))
    computing = flops_forward(shape, load, length=1) / speed.flops
    launching = LAUNCH_S * _FORWARD_LAUNCHES * shape.layers if speed.launches else 0.0

    def at(efficiency: float, share: float) -> float:
        slower = speed.efficiency / efficiency
        token = max((weights + kept) / speed.bandwidth * slower, computing / efficiency, launching * slower)
        return passes * (wanted.read * reading / efficiency + share * wanted.written * token)

    low, mid, high = _WRITTEN
    return Seconds(at(speed.efficiency, mid), at(speed.quickest, low), at(speed.slowest, high))
