"""BLEU of texts against references, by sacrebleu, whose signature says how, so that figures can be compared.

Needed where a reference is there: what users say an answer should have been, and fixed questions with their answers.
Two systems' answers to the same questions are compared by paired approximate randomisation (Riezler and Maxwell 2005):
each pair is dealt out at random, which is exact while nothing changed, with ties counted against an alarm (sacrebleu's
own test counts them for one, so that a single answer that changed would always be one). Beside it stands the interval
of a paired bootstrap (Koehn 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.detectors import Outcome, permutations_for

_BOOTSTRAPS = 999
_TIE = 1e-9
_AT_ONCE = 10_000  # deals

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


@cache
def _sentences() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415 (slow to import)

    return BLEU(effective_order=True)  # of a text of three words there are no four-grams


def sentence_bleus(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """BLEU of each text against its one reference, 0 to 100."""
    metric = _sentences()
    return [float(metric.sentence_score(text, [ref]).score) for text, ref in zip(texts, references, strict=True)]


def signature() -> str:
    """How these are computed, as sacrebleu says it."""
    sentence_bleus([""], [""])  # it tells the number of references once it has seen some
    return str(_sentences().get_signature())


@cache
def _corpus() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415 (slow to import)

    return BLEU()


@dataclass(frozen=True)
class Paired:
    """BLEU of two systems on the same questions."""

    first: float
    now: float
    fall: tuple[float, float]  # 95 %, of first less now
    outcome: Outcome
    signature: str


def paired_fall(
    first: Sequence[str], now: Sequence[str], references: Sequence[str], alpha: float, rng: np.random.Generator
) -> Paired:
    """Whether answers are worse than the first ones were; all three of one length, in the same order."""
    pair = np.stack([_counts(first, references), _counts(now, references)])  # (2, N, counts)
    was, is_now = (float(score) for score in _bleus(pair.sum(axis=1)))
    deals = permutations_for(alpha)
    before, total, moved = pair[0].sum(axis=0), pair.sum(axis=(0, 1)), pair[1] - pair[0]
    falls = []
    for start in range(0, deals, _AT_ONCE):
        swapped = rng.integers(0, 2, size=(min(_AT_ONCE, deals - start), len(references))).astype(np.float64)
        one = before + swapped @ moved
        falls.append(_bleus(one) - _bleus(total - one))
    by_chance, observed = np.concatenate(falls), was - is_now
    allowed = max(int(alpha * (deals + 1) + 1e-9) - 1, 0)
    threshold = float(np.partition(by_chance, deals - 1 - allowed)[deals - 1 - allowed]) + _TIE
    p_value = (1 + int((by_chance >= observed - _TIE).sum())) / (deals + 1)
    drawn = rng.integers(0, len(references), size=(_BOOTSTRAPS, len(references)))
    boot = _bleus(pair[0][drawn].sum(axis=1)) - _bleus(pair[1][drawn].sum(axis=1))
    low, high = (float(q) for q in np.quantile(boot, (0.025, 0.975)))
    outcome = Outcome(observed, threshold, p_value, alpha, deals)
    corpus_bleu(first, references)  # it tells the number of references once it has seen some
    return Paired(was, is_now, (low, high), outcome, str(_corpus().get_signature()))


def corpus_bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of all texts together."""
    return float(_corpus().corpus_score(list(texts), [list(references)]).score)


def _counts(texts: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """What BLEU is made of, a row a text: n-grams that match, n-grams there are, both lengths; shape (N, 10)."""
    metric = _sentences()  # the counts are those of any BLEU, and this one warns of no single sentence
    found = [metric.sentence_score(text, [ref]) for text, ref in zip(texts, references, strict=True)]
    return np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], dtype=np.float64)


def _bleus(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU of many systems at once, from the sums of their counts, shape (B, 10); sacrebleu's own, a row at a time,
    takes a thousand times as long. Smoothed as there: the k-th order without a match counts as half to the k."""
    matched, there, length, wanted = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
    none = matched == 0
    counts = np.where(none, 0.5 ** np.cumsum(none, axis=1), matched)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(counts / there).mean(axis=1)
        brevity = np.where(length < wanted, 1 - wanted / length, 0.0)
        scores = 100 * np.exp(logs + brevity)
    empty = none.all(axis=1) | (there == 0).any(axis=1) | (length == 0)
    found: NDArray[np.float64] = np.where(empty, 0.0, scores)
    return found
