"""What cannot go together in a recipe, and why: refused before anything is loaded. Pure.

The reference of `dpo`, `grpo` and `ppo` is the model with its adapter switched off or frozen beside it, so that one
base is in memory; what has no adapter of PEFT's has no such reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tuneloop.registry.plain_yaml import Place
from tuneloop.train.recipe.data import QualitySection
from tuneloop.train.recipe.evaluate import EvaluateSection
from tuneloop.train.recipe.objective import (
    DpoObjective,
    GrpoObjective,
    PpoObjective,
    RewardObjective,
    SftObjective,
)
from tuneloop.train.recipe.run import AUTO, DivergenceSection, LaunchSection
from tuneloop.train.recipe.tuning import BottleneckTuning, FullTuning, Ia3Tuning, LoraTuning, LowRankTuning, QloraTuning

if TYPE_CHECKING:
    from tuneloop.train.recipe.file import Recipe

Refusal = tuple[Place, str]
_HEAD = "lm_head"
_OF_PREFERENCES = ("identical", "length_bias", "max_length_bias")
_OF_ANSWERS = ("conflicts", "balance", "max_answer_share")
_OF_PLAIN_ANSWERS = ("length_balance", "max_long_share")
_READ_BY = {  # a limit, and the checks that it is the limit of
    "near": ("near_duplicates", "near_leakage"),
    "languages": ("language",),
    "max_toxicity": ("toxicity",),
    "max_answer_share": ("balance",),
    "max_long_share": ("length_balance",),
    "max_length_bias": ("length_bias",),
}


def refusals(recipe: Recipe) -> list[Refusal]:
    """Everything that cannot work together: the place in the recipe, and the reason with a way out."""
    return [
        *_tuning(recipe),
        *_watching(recipe),
        *_auto(recipe),
        *_launch(recipe),
        *_rows(recipe),
        *_quality(recipe),
        *_batches(recipe),
        *_reward(recipe),
        *_ppo(recipe),
        *_start(recipe),
    ]


def unread(recipe: Recipe) -> list[Refusal]:
    """What is given and read by nothing, because of what else is given: asking for it must not look like having it."""
    return [*_stopping(recipe), *_limits(recipe), *_steering(recipe)]


def _tuning(recipe: Recipe) -> Iterator[Refusal]:
    objective, tuning, at = recipe.objective, recipe.tuning, ("tuning", "method")
    if isinstance(objective, SftObjective):
        return
    kind, method = objective.kind, tuning.method
    held = isinstance(objective, DpoObjective | PpoObjective) or (
        isinstance(objective, GrpoObjective) and objective.kl_coefficient > 0
    )
    if isinstance(objective, RewardObjective) and not isinstance(tuning, LoraTuning):
        yield at, f"a reward model is a LoRA adapter with a head of one output; {method} is not built for it: take lora"
    elif isinstance(tuning, BottleneckTuning):
        yield at, f"{kind} works with PEFT's adapters alone, and bottleneck is none of them; take lora"
    elif isinstance(tuning, Ia3Tuning) and recipe.base.adapter is not None and held:
        out = ", or set objective.kl_coefficient to 0" if isinstance(objective, GrpoObjective) else ""
        yield (
            at,
            f"{kind} is held to what the model was before, and of an ia3 adapter that training goes on from no frozen "
            f"copy is made, so it would be held to the bare base; take lora, or begin without base.adapter{out}",
        )
    elif isinstance(tuning, FullTuning) and held:
        out = " or set objective.kl_coefficient to 0" if isinstance(objective, GrpoObjective) else ""
        yield (
            at,
            f"{kind} is held to what the model was before, which full overwrites: that would take a second copy of all "
            f"weights; take lora or qlora{out}",
        )
    if isinstance(tuning, LowRankTuning):
        if tuning.dropout > 0:
            yield (
                ("tuning", "dropout"),
                f"is read with objective sft only: with {kind} it would be noise between two probabilities that are "
                "compared; remove it",
            )
        if _HEAD in tuning.target_modules:
            yield (
                ("tuning", "target_modules"),
                f"{kind} reads {_HEAD}'s weights directly, so an adapter on it would never be trained; remove {_HEAD}",
            )


def _watching(recipe: Recipe) -> Iterator[Refusal]:
    if recipe.data.validation is not None:
        return
    for name in ("early_stopping", "validate_every"):
        if getattr(recipe.run, name) is not None:
            yield ("run", name), "watches the loss of data.validation, and there is none; give one, or remove this"


def _auto(recipe: Recipe) -> Iterator[Refusal]:
    run = recipe.run
    if run.micro_batch == AUTO and run.launch.processes > 1:
        yield (
            ("run", "micro_batch"),
            "auto is found by one process, and each of several would find its own; give a number: `tuneloop plan` says "
            "the largest that fits, and where one does not, all of them begin again with less",
        )


def _launch(recipe: Recipe) -> Iterator[Refusal]:
    launch, again = recipe.run.launch, recipe.run.divergence.action == "rollback"
    if again and launch.strategy in {"zero3", "fsdp"}:  # one process shards too
        yield (
            ("run", "divergence", "action"),
            f"rollback goes back within the run, and {launch.strategy} cannot shard a model a second time; take stop, "
            "or ddp or zero2",
        )
    if recipe.run.compile and launch.strategy == "zero3":
        yield (
            ("run", "compile"),
            "zero3 gathers and lets go of weights in place, and what was compiled cannot learn from it; remove it, or "
            "take ddp, zero2 or fsdp",
        )
    if recipe.run.launch.strategy != "fsdp":
        return
    tuning, optimizer = recipe.tuning, recipe.optim.optimizer
    if isinstance(tuning, QloraTuning) and tuning.bits == 8:
        yield (
            ("run", "launch", "strategy"),
            "fsdp loses what LLM.int8() keeps beside its weights; take zero2 or zero3, or tuning.bits 4",
        )
    if optimizer != "adamw":
        yield (
            ("run", "launch", "strategy"),
            f"fsdp cannot shard the state of {optimizer}; take zero2 or zero3, or optim.optimizer adamw",
        )


def _rows(recipe: Recipe) -> Iterator[Refusal]:
    if isinstance(recipe.objective, SftObjective):
        return
    kind, run = recipe.objective.kind, recipe.run
    if isinstance(recipe.objective, GrpoObjective | PpoObjective) and run.launch != LaunchSection():
        yield (
            ("run", "launch"),
            f"several processes are built for sft, dpo and reward; with {kind} each would draw answers of its own, and "
            "together they would learn something else than one does: remove it, and where memory is short lower "
            "run.micro_batch or take tuning.method qlora",
        )
    if recipe.data.validation is not None:
        yield (
            ("data", "validation"),
            f"its loss is measured with objective sft only; with {kind} put held-out rows under evaluate.sets",
        )
    if run.packing:
        yield ("run", "packing"), f"rows are packed with objective sft only; {kind} compares whole rows"
    if run.micro_batch == AUTO:
        yield ("run", "micro_batch"), f"auto is found on rows of objective sft; give a number with {kind}"


def _quality(recipe: Recipe) -> Iterator[Refusal]:
    """Where a check is not made, asking for it must not look like having it."""
    kind, data = recipe.objective.kind, recipe.data
    usual, pairs = QualitySection(), isinstance(recipe.objective, RewardObjective | DpoObjective)
    asks = isinstance(recipe.objective, GrpoObjective | PpoObjective)
    for names, of, made in (
        (_OF_PREFERENCES, "preferences", pairs),
        (_OF_ANSWERS, "answers", not asks),
        (_OF_PLAIN_ANSWERS, "answers that are not compared", not (pairs or asks)),
    ):
        for name in () if made else names:
            if getattr(data.quality, name) != getattr(usual, name):
                yield ("data", "quality", name), f"looks at {of}, and {kind} learns from none; remove it"
    if isinstance(recipe.objective, SftObjective):
        return
    if any(source.weight is not None for source in data.train):
        yield ("data", "train"), f"sources are mixed by weight with objective sft only; with {kind} remove the weights"
    if data.streaming:
        yield ("data", "streaming"), f"rows stay on disk with objective sft only; with {kind} remove it"


def _batches(recipe: Recipe) -> Iterator[Refusal]:
    objective, run = recipe.objective, recipe.run
    if isinstance(objective, GrpoObjective) and run.batch_size % objective.answers:
        yield (
            ("run", "batch_size"),
            f"{run.batch_size} is not a multiple of objective.answers {objective.answers}: with grpo a batch is "
            "answers, so many to a question",
        )
    if isinstance(objective, PpoObjective) and run.batch_size % objective.minibatches:
        yield (
            ("objective", "minibatches"),
            f"run.batch_size {run.batch_size} cannot be split into {objective.minibatches} equal parts",
        )


def _reward(recipe: Recipe) -> Iterator[Refusal]:
    if not isinstance(recipe.objective, RewardObjective):
        return
    evaluate, usual = recipe.evaluate, EvaluateSection.model_fields
    for name in ("generate", "max_new_tokens", "metrics", "slice_by"):
        if getattr(evaluate, name) not in {usual[name].default, 0}:
            yield (
                ("evaluate", name),
                "a reward model writes no answers, it is measured by how it ranks pairs; remove it",
            )


def _ppo(recipe: Recipe) -> Iterator[Refusal]:
    if not isinstance(recipe.objective, PpoObjective):
        return
    run = recipe.run
    if run.gradient_checkpointing:
        yield ("run", "gradient_checkpointing"), "is not built for ppo; lower run.micro_batch instead"
    if run.divergence.loss_spike != DivergenceSection().loss_spike:
        yield (
            ("run", "divergence", "loss_spike"),
            "is not read with ppo, whose loss rises and falls with what answers earn; use max_grad_norm, or remove it",
        )
    if run.compile:
        yield ("run", "compile"), "is not built for ppo: answers of every length would be compiled anew"
    if recipe.optim.optimizer != "adamw":
        yield ("optim", "optimizer"), f"{recipe.optim.optimizer} is not built for ppo; take adamw"


def _start(recipe: Recipe) -> Iterator[Refusal]:
    at = ("base", "adapter")
    if recipe.base.adapter is None:
        return
    if isinstance(recipe.objective, RewardObjective):
        yield at, "a reward model begins with a fresh adapter: that of a model that speaks has no head; remove it"
    if isinstance(recipe.tuning, FullTuning):
        yield at, "is read with adapters only; with full, give the model that it goes on from as base.model"


def _stopping(recipe: Recipe) -> Iterator[Refusal]:
    divergence, usual = recipe.run.divergence, DivergenceSection()
    if divergence.action == "rollback":
        return
    for name in ("learning_rate_factor", "max_rollbacks"):
        if getattr(divergence, name) != getattr(usual, name):
            yield (
                ("run", "divergence", name),
                f"is read with action rollback only, and with {divergence.action} a run that goes wild ends: set the "
                "action, or remove it",
            )


def _limits(recipe: Recipe) -> Iterator[Refusal]:
    quality, usual = recipe.data.quality, QualitySection()
    for name, checks in _READ_BY.items():
        off = all(getattr(quality, check) == "off" for check in checks)
        if off and getattr(quality, name) != getattr(usual, name):
            yield (
                ("data", "quality", name),
                f"is not read with {' and '.join(checks)} off; switch it on, or remove this",
            )


def _steering(recipe: Recipe) -> Iterator[Refusal]:
    objective, usual = recipe.objective, PpoObjective.model_fields["target_kl"].default
    if not isinstance(objective, PpoObjective) or objective.kl_coefficient > 0:
        return
    if objective.target_kl not in {usual, None}:
        yield (
            ("objective", "target_kl"),
            "is what kl_coefficient is steered to, in shares of itself, and 0 stays 0: give kl_coefficient a value, or "
            "remove this",
        )
