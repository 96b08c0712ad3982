"""A treatment's difference from the control with its standard error, from values of units; pure.

Requests of one unit are not independent, so everything is computed over units. Every metric is brought to one form, a
value and the squares of its per-unit influence: a mean of unit means, a ratio of sums (delta method clustered by unit:
Deng, Knoblich and Lu, "Applying the Delta Method in Metric Analytics", 2018), or a quantile of the units' values
(Woodruff's interval, 1952, from the clustered variance of the share below it). Fields may be arrays of any one shape:
many experiments, or many looks, cost one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneloop.registry.statistics.sequences import drawn_variance, stratum_shares

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
_REACH = 1.0  # standard errors to each side of a quantile, from which its own standard error is read


@dataclass(frozen=True)
class Part:
    """One arm's units in one stratum."""

    n: Floats  # units
    value: Floats  # of the metric
    squares: Floats  # sum of the squared influences of the units on the value
    covariate: Floats  # mean over units; 0 without one
    shared: Floats  # sum of influence times covariate about its mean
    covariate_squares: Floats  # about its mean


@dataclass(frozen=True)
class Difference:
    """Treatment minus control over all strata."""

    control: Floats  # the arms' values, as if both had the covariate they have together
    treatment: Floats
    spread: Floats  # variance of the estimate
    slope: Floats  # of the covariate; 0 without one
    variance_control: Floats  # of one unit's influence, after the covariate
    variance_treatment: Floats

    @property
    def estimate(self) -> Floats:
        """Treatment minus control."""
        return self.treatment - self.control


@dataclass(frozen=True)
class Sums:
    """What a ratio needs to know of one arm's units: numerators y, denominators x, covariates c.

    Sums over units add up: those of a later look are those of the one before and what came since.
    """

    n: Floats
    y: Floats
    x: Floats
    c: Floats
    yy: Floats
    xx: Floats
    cc: Floats
    yx: Floats
    yc: Floats
    xc: Floats

    @classmethod
    def of(cls, y: Floats, x: Floats, c: Floats) -> Sums:
        """Over the units along the last axis."""
        sums = (np.einsum("...i,...i->...", a, b) for a, b in ((y, y), (x, x), (c, c), (y, x), (y, c), (x, c)))
        return cls(np.full(y.shape[:-1], float(y.shape[-1])), y.sum(-1), x.sum(-1), c.sum(-1), *sums)


def ratio_part(numerators: Floats, denominators: Floats, covariates: Floats | None = None) -> Part:
    """Sum of numerators over sum of denominators, one of each per unit along the last axis.

    A mean over units is the ratio whose denominators are all 1.
    """
    # Squares are summed about a middle, so that large values with a small spread lose no digits.
    middle = numerators.sum(-1, keepdims=True) / denominators.sum(-1, keepdims=True)
    nothing = np.zeros_like(numerators)
    about = nothing if covariates is None else covariates - covariates.mean(-1, keepdims=True)
    part = part_of(Sums.of(numerators - middle * denominators, denominators, about))
    mean = np.zeros_like(part.n) if covariates is None else covariates.mean(-1)
    return replace(part, value=part.value + middle[..., 0], covariate=mean)


def part_of(sums: Sums) -> Part:
    """A ratio's part from the sums over its units."""
    value, mean_x, mean_c = sums.y / sums.x, sums.x / sums.n, sums.c / sums.n
    squares = (sums.yy - 2 * value * sums.yx + value**2 * sums.xx) / mean_x**2
    return Part(
        n=sums.n,
        value=value,
        squares=np.maximum(squares, 0.0),
        covariate=mean_c,
        shared=(sums.yc - value * sums.xc) / mean_x,
        covariate_squares=np.maximum(sums.cc - sums.c * mean_c, 0.0),
    )


def quantile_part(values: Floats, unit: Indices, q: float) -> Part:
    """The `q` quantile of one arm's values; `unit` numbers, for each, the unit it is of."""
    ordered = np.sort(values)
    value = _quantile(ordered, q)
    _, unit = np.unique(unit, return_inverse=True)
    counts = np.bincount(unit).astype(float)
    n = float(len(counts))
    share = ratio_part(np.bincount(unit, weights=values <= value).astype(float), counts)
    reach = _REACH * np.sqrt(share.squares / max(n - 1, 1.0) / n)
    low, high = (_quantile(ordered, float(np.clip(q + side * reach, 0.0, 1.0))) for side in (-1, 1))
    error = (high - low) / (2 * _REACH)
    nothing = np.asarray(0.0)
    return Part(np.asarray(n), np.asarray(value), np.asarray(error**2 * n * (n - 1)), nothing, nothing, nothing)


def _quantile(ordered: Floats, q: float) -> float:
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def difference(strata: Sequence[tuple[Part, Part]], *, share: bool) -> Difference:
    """Treatment minus control, stratum by stratum, and put together.

    The covariate is CUPED (Deng, Xu, Kohavi and Walker, 2013): what the values' regression on it explains is taken
    out, with one slope over all arms and strata. It must be known before an arm could change it.

    The spread is the larger of Welch's and the pooled one. In a small arm of skewed values, or of rare ones, a mean
    that is low by chance has a variance that is low with it, and Welch's alone claims a difference too often beside a
    large arm; with arms of one size the two are the same.

    Args:
        strata: (control, treatment) of each; both have units.
        share: values lie in [0, 1], where the variance of a few may be near nothing by chance.
    """
    controls, treatments = [before for before, _ in strata], [after for _, after in strata]
    covariate_squares = _sum([part.covariate_squares for part in (*controls, *treatments)])
    shared = _sum([part.shared for part in (*controls, *treatments)])
    slope = np.where(covariate_squares > 0, shared / np.where(covariate_squares > 0, covariate_squares, 1.0), 0.0)
    variance0, variance1 = (_variance(side, slope, share=share) for side in (controls, treatments))
    weights = stratum_shares([(before.n, after.n) for before, after in strata])
    together = [(a.n * a.covariate + b.n * b.covariate) / (a.n + b.n) for a, b in strata]
    value0, value1 = (
        _sum([w * (p.value - slope * (p.covariate - c)) for w, p, c in zip(weights, side, together, strict=True)])
        for side in (controls, treatments)
    )
    pooled = _variance([*controls, *treatments], slope, share=share)
    welch, alike = (
        _sum([w**2 * (v0 / a.n + v1 / b.n) for w, a, b in zip(weights, controls, treatments, strict=True)])
        for v0, v1 in ((variance0, variance1), (pooled, pooled))
    )
    return Difference(value0, value1, np.maximum(welch, alike), slope, variance0, variance1)


def influences(values: Floats, weights: Floats, covariates: Floats, slope: float) -> Floats:
    """What each unit of one arm moves a ratio's value by, beside the covariate; 0 together."""
    about = values - values.sum() / weights.sum() * weights
    return np.asarray(about / weights.sum() - slope * (covariates - covariates.mean()) / len(values))


def _variance(parts: Sequence[Part], slope: Floats, *, share: bool) -> Floats:
    squares = _sum([p.squares - 2 * slope * p.shared + slope**2 * p.covariate_squares for p in parts])
    free = _sum([p.n - 1 for p in parts])
    squares = np.maximum(squares, 0.0)
    return drawn_variance(squares, free) if share else squares / np.maximum(free, 1.0)


def _sum(terms: Sequence[Floats]) -> Floats:
    return np.asarray(sum(terms[1:], start=terms[0]), dtype=np.float64)
