"""Simulated units as a live experiment's evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuneloop.registry.experiments.declaration import Declaration, Primary
from tuneloop.registry.experiments.effect import Floats, Indices
from tuneloop.registry.experiments.gather import Evidence, LeftOut, Stratum, Stream


def evidence_of(
    y: Sequence[Floats], arm: Sequence[Indices], stratum: Sequence[Indices], shares: Sequence[tuple[int, ...]]
) -> Evidence:
    """Units with one value each, in order of time and in pieces, as `gather` would give them."""
    values, arms = np.concatenate(y), len(shares[0])
    units = np.arange(len(values))
    stream = Stream(at_s=units.astype(float), unit=units, value=values, count=np.ones(len(values)))
    strata = tuple(Stratum((number + 1,), share) for number, share in enumerate(shares))
    numbers, nothing = tuple(range(1, arms + 1)), np.zeros(len(values))
    arm_of, stratum_of = np.concatenate(arm), np.concatenate(stratum)
    return Evidence(numbers, strata, arm_of, stratum_of, nothing, (0,) * arms, (stream,), LeftOut())


def declared(
    arms: int, floor_bp: int, effect: float, *, bandit: bool, max_units: int | None = None, looks: int = 5
) -> Declaration:
    """A declaration for simulated arms; the first is the control."""
    share = 10_000 // arms
    return Declaration(
        model="bot",
        hypothesis="simulated",
        arms={version: share if version < arms else 10_000 - share * (arms - 1) for version in range(1, arms + 1)},
        control=1,
        primary=Primary(kind="binary", measure="thumbs_up", goal="higher", minimum_effect=effect),
        mode="bandit" if bandit else "test",
        floor_bp=floor_bp,
        max_units=max_units,
        looks=looks,
    )
