"""Memory while the model writes answers: keys and values of all tokens so far, beside the pass that is computed.

`ppo` and `grpo` write answers to learn from, a micro-batch at a time; every other run but a reward model's writes them
too, to questions of its held-out sets, before training and after it. Those sets are not read here: their questions
count as long as the rows that are learned. What lives at once was counted with PyTorch's profiler on transformers' own
Llama, not fitted. Sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.train.evaluation.batching import ANSWERS_AT_ONCE, BATCH_TOKENS, batches
from tuneloop.train.plan.memory import Kind, Load, Memory, allocator_of, bytes_of, optimizer_bytes, weight_bytes
from tuneloop.train.plan.rows import RowFacts
from tuneloop.train.plan.shapes import ModelShape
from tuneloop.train.plan.trained import trained_by
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import GrpoObjective, PpoObjective, RewardObjective
from tuneloop.train.recipe.tuning import FullTuning, LowRankTuning, QloraTuning, TuningSection

LEARNED = "writing the answers that are learned from"
MEASURED = "writing answers to held-out questions"
_LOW, _HIGH = 0.90, 1.20  # bounds, relative to the prediction: what allocators hold beside was seen on one point alone


@dataclass(frozen=True)
class Answers:
    """Those that are written at a time."""

    rows: int
    question: int  # tokens, padding included
    answer: int  # tokens, at most
    learned: bool = False  # sampled to learn from; otherwise greedy, to be measured

    @property
    def moment(self) -> str:
        """When that is."""
        return LEARNED if self.learned else MEASURED


def learned_answers(recipe: Recipe, load: Load) -> Answers | None:
    """Those of a micro-batch; None where nothing is learned of the model's own."""
    objective = recipe.objective
    if not isinstance(objective, GrpoObjective | PpoObjective):
        return None
    answer = objective.max_new_tokens
    return Answers(load.rows, load.length - answer, answer, learned=True)


def measured_answers(recipe: Recipe, rows: RowFacts) -> Answers | None:
    """The largest batch of those that are measured before training and after it; None where none are."""
    wanted, answer = recipe.evaluate.generate * len(recipe.evaluate.sets), recipe.evaluate.max_new_tokens
    if not wanted or isinstance(recipe.objective, RewardObjective):
        return None
    ordered = sorted(rows.lengths)
    asked = [ordered[(2 * place + 1) * len(ordered) // (2 * wanted)] for place in range(wanted)]
    asked[-1] = ordered[-1]
    made = batches([question + answer for question in asked], ANSWERS_AT_ONCE, BATCH_TOKENS)
    chosen = max(made, key=lambda batch: len(batch) * (asked[batch[-1]] + answer))
    return Answers(len(chosen), asked[chosen[-1]], answer)


def memory_of_answers(shape: ModelShape, tuning: TuningSection, load: Load, answers: Answers, kind: Kind) -> Memory:
    """The worst moment of writing them: the last token, or the questions' own pass where that takes more.

    Raises:
        InvalidInput: a target of `tuning` names no layer of the model.
    """
    allocator, trained = allocator_of(kind), trained_by(shape, tuning)
    size = 4 if isinstance(tuning, FullTuning) else bytes_of(load.dtype)
    cache = cache_bytes(shape, answers.rows, answers.question + answers.answer - 1, size)
    first = cache_bytes(shape, answers.rows, answers.question, size)
    reading, writing = _reading(shape, tuning, answers, size, kind), cache // (2 * shape.layers)
    logits = answers.rows * shape.vocab * (size + (12 if answers.learned else 4))
    if cache + writing + logits < first + reading:
        cache, activations, logits = first, reading, 0
    else:
        activations = writing  # one layer's keys, or values, are there twice while a token's are put to them
    if answers.learned:
        weights = weight_bytes(shape, tuning, load, trained)
        optimizer, gradients = optimizer_bytes(load.optimizer, trained.parameters), 4 * trained.parameters
    else:
        weights, optimizer, gradients = _measured_bytes(shape, tuning, load), 0, 0
    # A token's keys and values take new room, a little more than they leave: a C allocator holds both.
    beside = int((allocator.activations - 1) * activations) + cache if kind == "cpu" else 0
    overhead = allocator.fixed + beside
    total = weights + optimizer + gradients + activations + logits + cache + overhead
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        loss=logits,
        cache=cache,
        overhead=overhead,
        low=int(total * _LOW),
        high=int(total * _HIGH),
        moment=answers.moment,
    )


def cache_bytes(shape: ModelShape, rows: int, tokens: int, size: int) -> int:
    """Keys and values of so many rows and tokens; `size`: bytes of a number."""
    return 2 * shape.layers * shape.key_value * rows * tokens * size


def _reading(shape: ModelShape, tuning: TuningSection, answers: Answers, size: int, kind: Kind) -> int:
    """Of the questions' pass, in one block's MLP: tensors of its width, four of the stream, and the mask.

    Without an adapter the first are three. A low-rank one adds what it makes to what the base makes, in float32.
    """
    wide = 3 * size
    if isinstance(tuning, LowRankTuning) and (tuning.adapts_all_linear or "up_proj" in tuning.target_modules):
        wide = 2 * size + 8
    elif kind == "cpu" and size == 2:
        wide += size  # a product's sums in float32, where there are no cores for less
    return answers.rows * answers.question * (wide * shape.intermediate + 4 * size * shape.hidden + answers.question)


def _measured_bytes(shape: ModelShape, tuning: TuningSection, load: Load) -> int:
    """Weights where a model is measured: whole on one device, and unquantised where the recipe wants it so."""
    if isinstance(tuning, FullTuning):
        return 4 * shape.parameters
    trained = trained_by(shape, tuning)
    if isinstance(tuning, QloraTuning) and tuning.evaluate_unquantized:
        return bytes_of(load.dtype) * shape.parameters + 4 * trained.parameters
    return weight_bytes(shape, tuning, load, trained)
