"""Two-sample tests between a frozen reference and a window, held to a stated false-alarm budget. Pure; randomness is
injected.

The budget is a mean run length gamma: records between false alarms, over all S streams of a model. Windows hold w
records and do not overlap, so every stream is tested at

    alpha = w / (gamma * S)                    (Bonferroni over the streams)

Why that is enough. A permutation test is exact: when reference and window are exchangeable, P(p <= alpha) <= alpha,
taken over the reference, the window and the permutations, for any kernel and any distribution. All windows share one
reference R, so their verdicts are dependent; but *given* R independent windows are alike, each raising a false alarm
on some stream with probability a(R), and E[a(R)] <= S * alpha. The wait is then geometric with mean 1 / a(R)
windows, and by Jensen's inequality

    E[records to a false alarm] = w * E[1 / a(R)] >= w / E[a(R)] >= w / (S * alpha) = gamma.

Windows may differ in size, each at its own alpha, as long as no size depends on what is in the records.

What it leans on: records that are independent and alike while nothing drifts. Two limits follow. The promise is an
average over references: a lucky draw waits longer than gamma, an unlucky one less. And records that come in clusters
(one user, ten questions on one thing; night against day) count as fewer than they are, which brings alarms earlier
than promised: widen the windows then. Without independence between windows the union bound still gives gamma / 2.

Source of the statistic: Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012), unbiased MMD^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # labellings (B, N), ones in the window → values (B,)

_CHUNK_CELLS = 131_072  # of labellings at once: they, and the counts made of them, stay in the cache
_OUTERMOST = 0.1  # of a statistic's values are its upper tail, at most
_DEALS = 1_999  # for a share that is told, and no level of a test
_TIE = 1e-12  # sums of the same numbers in another order differ by rounding; count them as equal, on the safe side
_TIE_OF_SCORES = 1e-7  # of sums over their spread, which may be small: the rounding is divided by it too


@dataclass(frozen=True)
class Outcome:
    """What a test found; it alarms exactly when `p_value <= alpha`, which is when `statistic > threshold`."""

    statistic: float
    threshold: float  # the (1 - alpha) quantile under permutation
    p_value: float
    alpha: float
    permutations: int

    @property
    def alarm(self) -> bool:
        """Whether the window differs from the reference."""
        return self.p_value <= self.alpha


def window_alpha(window: int, mean_run_length: float, streams: int) -> float:
    """The level each stream's window is tested at; see the module's header for the derivation."""
    return window / (mean_run_length * streams)


def permutations_for(alpha: float) -> int:
    """Enough permutations that the threshold is the tenth largest value, not the very largest: about 10 / alpha."""
    return max(1_999, math.ceil(10 / alpha) - 1)


def mmd_test(kernel: NDArray[np.float64], n_reference: int, alpha: float, rng: np.random.Generator) -> Outcome:
    """Unbiased squared maximum mean discrepancy between the first `n_reference` rows and the others.

    Args:
        kernel: shape (N, N), symmetric; rows 0 … n_reference-1 are the reference, the rest the window.
        n_reference: how many rows are the reference; both sides need two rows.
        alpha: level of the test.
        rng: source of the permutations.
    """
    points = len(kernel)
    return permutation_test(
        mmd_statistic(kernel, points - n_reference), points, points - n_reference, alpha=alpha, rng=rng
    )


def mmd_statistic(kernel: NDArray[np.float64], window: int) -> Statistic:
    """Unbiased MMD² of any labelling that puts `window` of the kernel's rows in the window."""
    n_reference = len(kernel) - window
    off_diagonal = kernel - np.diag(np.diag(kernel))
    row_sums, total = off_diagonal.sum(axis=1), off_diagonal.sum()

    def statistic(in_window: NDArray[np.float64]) -> NDArray[np.float64]:
        within = np.einsum("bn,bn->b", in_window @ off_diagonal, in_window)
        touching = in_window @ row_sums
        across, rest = touching - within, total - 2 * touching + within
        result: NDArray[np.float64] = (
            within / (window * (window - 1))
            + rest / (n_reference * (n_reference - 1))
            - 2 * across / (n_reference * window)
        )
        return result

    return statistic


def mean_rise_test(
    reference: NDArray[np.float64], window: NDArray[np.float64], alpha: float, rng: np.random.Generator
) -> Outcome:
    """How much higher the window's mean is than the reference's; one-sided, exact by permutation."""
    pooled = np.concatenate([reference, window])
    total = pooled.sum()

    def statistic(in_window: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = in_window @ pooled
        result: NDArray[np.float64] = inside / len(window) - (total - inside) / len(reference)
        return result

    return permutation_test(statistic, len(pooled), len(window), alpha=alpha, rng=rng)


def mean_change_test(
    reference: NDArray[np.float64], window: NDArray[np.float64], alpha: float, rng: np.random.Generator
) -> Outcome:
    """How far the window's mean is from the reference's, either way; exact by permutation."""
    pooled = np.concatenate([reference, window])
    total = pooled.sum()

    def statistic(in_window: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = in_window @ pooled
        result: NDArray[np.float64] = np.abs(inside / len(window) - (total - inside) / len(reference))
        return result

    return permutation_test(statistic, len(pooled), len(window), alpha=alpha, rng=rng)


def strongest_test(
    statistics: Mapping[str, Statistic], points: int, window: int, *, alpha: float, rng: np.random.Generator
) -> tuple[Outcome, dict[str, float]]:
    """The largest of several statistics, each in standard deviations of its own permutations; and each one's value.

    All labellings, the observed one among them, are standardised alike and ranked by their largest value, so that
    looking at several statistics costs no false alarm: the test is as exact as one of a single statistic (as in
    Schrab et al., "MMD Aggregated Two-Sample Test", JMLR 24, 2023, whose level is shared by permutation too). The
    standard deviation is that of a normal curve with the statistic's upper tail at this level, or the one with the
    heaviest tail would set the threshold alone.
    """
    count = permutations_for(alpha)
    labellings = _labellings(count, points, window, rng)
    rows = [np.stack([statistic(chunk) for statistic in statistics.values()]) for chunk in labellings]
    values = np.concatenate(rows, axis=1)
    level = min(alpha, _OUTERMOST)
    median, high = np.quantile(values, [0.5, 1 - level], axis=1, keepdims=True)
    tail = (high - median) / NormalDist().inv_cdf(1 - level)
    spread = np.where(tail > _TIE, tail, values.std(axis=1, keepdims=True))
    scores = (values - median) / np.where(spread > _TIE, spread, np.inf)
    largest = scores.max(axis=0)
    outcome = ranked(float(largest[0]), largest[1:], alpha, tie=_TIE_OF_SCORES)
    return outcome, {name: float(score) for name, score in zip(statistics, scores[:, 0], strict=True)}


def permutation_test(
    statistic: Statistic, points: int, window: int, *, alpha: float, rng: np.random.Generator
) -> Outcome:
    """Whether the last `window` of `points` rows differ from the others, by a statistic that grows with it."""
    labellings = _labellings(permutations_for(alpha), points, window, rng)
    values = np.concatenate([statistic(chunk) for chunk in labellings])
    return ranked(float(values[0]), values[1:], alpha)


def dealt_differences(
    values: NDArray[np.float64], window: int, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Mean of the last `window` values less that of the others, then of `count` random deals; shape (1 + count,)."""
    total, others = values.sum(), len(values) - window
    inside = np.concatenate([chunk @ values for chunk in _labellings(count, len(values), window, rng)])
    found: NDArray[np.float64] = inside / window - (total - inside) / others
    return found


def share_above(value: float, statistic: Statistic, points: int, window: int, rng: np.random.Generator) -> float:
    """How often a statistic is above a value where nothing differs."""
    labellings = _labellings(_DEALS, points, window, rng)
    next(labellings)  # the observed one
    return float(np.mean(np.concatenate([statistic(chunk) for chunk in labellings]) > value))


def ranked(observed: float, permuted: NDArray[np.float64], alpha: float, tie: float = _TIE) -> Outcome:
    """A value among those of random deals; `tie` is how far apart two may be and still be equal."""
    count = len(permuted)
    as_extreme = int((permuted >= observed - tie).sum())
    allowed = max(math.floor(alpha * (count + 1) + 1e-9) - 1, 0)  # values that may reach the observed one in an alarm
    threshold = float(np.partition(permuted, count - 1 - allowed)[count - 1 - allowed])
    return Outcome(observed, threshold + tie, (1 + as_extreme) / (count + 1), alpha, count)


def _labellings(count: int, points: int, window: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """The observed labelling (the last `window` points), then `count` random ones; chunks (B, points) of 0 and 1."""
    observed = np.zeros((1, points))
    observed[0, points - window :] = 1.0
    yield observed
    at_once = max(_CHUNK_CELLS // points, 1)
    for start in range(0, count, at_once):
        rows = min(at_once, count - start)
        chosen = np.argpartition(rng.random((rows, points)), window, axis=1)[:, :window]
        labellings = np.zeros((rows, points))
        np.put_along_axis(labellings, chosen, 1.0, axis=1)
        yield labellings
