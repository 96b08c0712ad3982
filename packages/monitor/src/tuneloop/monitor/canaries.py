"""Has the served model changed? Log-probabilities of fixed texts, now and when the version first served. Pure.

A round reads every canary once and is one vector: a log-probability for each token. The baseline is `BASELINE_ROUNDS`
of them, frozen; what differs among them is the engine's own noise (which prompts share a batch). A check costs one
round. Only where that lies further from the baseline's mean than any baseline round from the mean of the others are
`FRESH_ROUNDS` more read, and tested: the statistic is the mean absolute difference of the two means, in nats per
token, and its p-value is exact, over all `SPLITS` ways to tell the fresh rounds from the baseline's. While nothing
changed, and rounds are alike whenever they are read, P(p <= alpha) <= alpha; the look before it only lowers that.

Rounds are not quite alike where the load is not: a busy engine computes in other batches. So the difference must
also exceed `NOISE_FACTOR` times the largest distance among the baseline's rounds, the same of the fresh ones (the
baseline may have been read in a quieter hour), and `LEAST_NATS`; measured in `benchmarks/served_model_change.py`.

The statistic and test follow "Log Probability Tracking of LLM APIs" (arXiv 2512.03816); reading all tokens of a
text, instead of the first generated one, gets twenty numbers for the same prefill. The texts were written for this
project: prose, code, data, a dialogue, another language, so that no adapter is at home in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.detectors import Outcome
from tuneloop.monitor.scorer import MAX_NATS

BASELINE_ROUNDS, FRESH_ROUNDS = 12, 6
SPLITS = math.comb(BASELINE_ROUNDS + FRESH_ROUNDS, FRESH_ROUNDS)  # 18,564: the smallest p-value is one in so many
NOISE_FACTOR = 2.0
LEAST_NATS = 1e-4  # per token: what is read is kept with five decimals
_TIE = 1e-12
Round = NDArray[np.float64]  # shape (tokens,), nats


@cache
def canaries() -> tuple[str, ...]:
    """The texts; what was read of others cannot be compared, so a change of them begins new baselines."""
    text = files("tuneloop.monitor").joinpath("canaries.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


@dataclass(frozen=True)
class Baseline:
    """What a version's canaries read when it first served; shape (BASELINE_ROUNDS, tokens)."""

    rounds: NDArray[np.float64]

    @property
    def noise(self) -> float:
        """The largest distance of one round from the mean of the others, nats per token."""
        return _noise(self.rounds)

    def floor(self, fresh: Sequence[Round] = ()) -> float:
        """The smallest difference that may be called a change, beside fresh rounds that may be noisier."""
        return max(NOISE_FACTOR * self.noise, NOISE_FACTOR * _noise(fresh) if len(fresh) else 0.0, LEAST_NATS)


def looks_moved(baseline: Baseline, seen: Round) -> bool:
    """Whether one round is worth a test: further from the baseline than its own rounds are from each other."""
    if seen.shape != baseline.rounds[0].shape or not np.isfinite(seen).all():
        return True
    return _distance(seen, baseline.rounds.mean(axis=0)) > max(baseline.noise, LEAST_NATS / NOISE_FACTOR)


def quiet(baseline: Baseline, seen: Round, alpha: float) -> Outcome:
    """What a check says that needed no test; its p-value is the largest, since none was made."""
    return Outcome(_distance(seen, baseline.rounds.mean(axis=0)), baseline.floor(), 1.0, alpha, 0)


def changed_test(baseline: Baseline, fresh: Sequence[Round], alpha: float) -> Outcome:
    """Whether `FRESH_ROUNDS` new rounds differ from the baseline; one of other tokens, or of no numbers, does.

    Raises:
        ValueError: alpha is below 1 / SPLITS, where no reading could alarm.
    """
    if alpha * SPLITS < 1:
        raise ValueError(f"level {alpha:g} cannot be reached: the smallest p-value is 1 / {SPLITS:,}")
    if any(row.shape != baseline.rounds[0].shape or not np.isfinite(row).all() for row in fresh):
        return Outcome(MAX_NATS, baseline.floor(), 1 / SPLITS, alpha, SPLITS)
    rows = np.concatenate([baseline.rounds, np.stack(fresh)])
    total = rows.sum(axis=0)
    permuted = np.concatenate([_statistics(masks, rows, total) for masks in np.array_split(_splits(), 16)])
    observed = float(permuted[-1])  # the last split is the true one
    p_value = float((permuted >= observed - _TIE).mean())
    allowed = min(math.floor(alpha * SPLITS + 1e-9), SPLITS - 1)  # splits that may reach the true one in an alarm
    threshold = float(np.partition(permuted, SPLITS - 1 - allowed)[SPLITS - 1 - allowed])
    floor = baseline.floor(fresh)
    if observed <= floor:
        p_value = 1.0
    return Outcome(observed, max(threshold, floor), p_value, alpha, SPLITS)


@cache
def _splits() -> NDArray[np.float64]:
    """Every choice of the fresh rounds among all, as rows of zeros and ones; shape (SPLITS, rounds)."""
    chosen = np.array(list(combinations(range(BASELINE_ROUNDS + FRESH_ROUNDS), FRESH_ROUNDS)))
    masks = np.zeros((SPLITS, BASELINE_ROUNDS + FRESH_ROUNDS))
    np.put_along_axis(masks, chosen, 1.0, axis=1)
    return masks


def _statistics(masks: NDArray[np.float64], rows: NDArray[np.float64], total: Round) -> NDArray[np.float64]:
    inside = masks @ rows
    found: NDArray[np.float64] = np.abs(inside / FRESH_ROUNDS - (total - inside) / BASELINE_ROUNDS).mean(axis=1)
    return found


def _noise(rounds: Sequence[Round] | NDArray[np.float64]) -> float:
    total, others = np.sum(rounds, axis=0), len(rounds) - 1
    return max(_distance(row, (total - row) / others) for row in rounds)


def _distance(one: Round, other: Round) -> float:
    return float(np.abs(one - other).mean())
