"""How what a method trains reaches users: which of it vLLM serves, and why not the rest.

Pure, without torch: the plan asks before anything is loaded, training says it at its start. What vLLM 0.32 loads at run
time is LoRA alone, of a rank up to its --max-lora-rank, on the linear layers inside the blocks, without DoRA's
magnitudes; whole weights it serves as a base of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from tuneloop.registry.versions.adapters import SERVED_MODULES
from tuneloop.train.recipe.tuning import (
    ALL_LINEAR,
    BottleneckTuning,
    FullTuning,
    Ia3Tuning,
    LowRankTuning,
    QloraTuning,
    TuningSection,
)

_MERGE = "`tuneloop export MODEL@VERSION --to FOLDER --merge` makes whole weights that an engine of their own serves"


@dataclass(frozen=True)
class RankLimit:
    """Up to which rank adapters are served, and by whose word."""

    rank: int
    said_by: str


def servable(tuning: TuningSection, limit: RankLimit) -> str | None:
    """Why vLLM would refuse what this trains, and what to do; None when it would not."""
    if isinstance(tuning, FullTuning):
        return None
    if isinstance(tuning, LowRankTuning):
        return _low_rank_reason(tuning, limit)
    if isinstance(tuning, BottleneckTuning):
        return (
            "vLLM loads LoRA adapters only, and a bottleneck's non-linearity merges into no weight; "
            "it runs in transformers alone. Take lora where it must be served"
        )
    if isinstance(tuning, Ia3Tuning):
        return f"vLLM loads LoRA adapters only; IA3's scales merge into the weights: {_MERGE}"
    assert_never(tuning)


def _low_rank_reason(tuning: LowRankTuning, limit: RankLimit) -> str | None:
    if tuning.dora:
        return f"vLLM does not serve DoRA adapters; set tuning.dora to false, or merge it: {_MERGE}"
    strange = sorted({name.rpartition(".")[2] for name in tuning.target_modules}.difference(SERVED_MODULES, ALL_LINEAR))
    if strange:
        return (
            f"vLLM would leave out {', '.join(strange)} of tuning.target_modules: it adapts "
            f"{', '.join(sorted(SERVED_MODULES))} only; drop them, or merge: {_MERGE}"
        )
    if tuning.rank > limit.rank:
        return f"tuning.rank {tuning.rank} is above {limit.rank}, {limit.said_by}; raise that one, or lower tuning.rank"
    return None


def serving_notes(tuning: TuningSection, limit: RankLimit) -> list[str]:
    """What is said of serving before a run begins; empty when an engine that holds the base serves it as it is."""
    notes = []
    if (reason := servable(tuning, limit)) is not None:
        notes.append(f"warning: this version cannot be served as it is: {reason}")
    if isinstance(tuning, FullTuning):
        notes.append("serving: whole weights need an engine of their own: `tuneloop engine --version MODEL@N`")
    if isinstance(tuning, QloraTuning):
        notes.append(
            f"warning: trained on a base of {tuning.bits} bits, the adapter is served on the unquantised one; "
            + (
                "it is measured there, and the difference is shown"
                if tuning.evaluate_unquantized
                else "evaluate_unquantized is false, so it is measured on the quantised one only"
            )
        )
    return notes
