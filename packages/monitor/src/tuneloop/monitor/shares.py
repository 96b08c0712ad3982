"""Which tokens a window holds more of than chance gives: what sees a small share of another topic.

A kernel compares two samples as wholes; a tenth of a window that speaks of something else moves its mean by a tenth.
But that tenth shares some words, and each of those rises far beyond chance. So every token of the pooled sample gets
its evidence: the log-likelihood ratio D of "its share rose" (binomial, one-sided). Summed as exp(s D), s < 1, the few
strong risers decide, in the manner of higher criticism (Donoho and Jin, Annals of Statistics 32, 2004).
Neighbourhoods of a latent space serve as tokens too: they find a topic that says one thing in many words.

Tokens come from the *pooled* sample alone, which no relabelling of its rows can change: a permutation test on top is
exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tuneloop.monitor.detectors import Statistic
from tuneloop.monitor.features import READ_CHARS

_WORD = re.compile(r"[^\W_]+")
_LONG = 5  # characters of a word that stand for its kin: "install" for installs, installed, installing
_TEMPER = 0.7  # of the evidence; 1 would leave the single strongest token alone to decide
_MOST_EVIDENCE = 600.0  # of one token: exp(710) is no number any more, and nothing by chance comes near
_MOST = 0.5  # of all texts; a token in more of them tells little, and its table would be long


def tokens(text: str) -> list[str]:
    """Words, lower-cased, with beginnings and ends of the long ones."""
    words = _WORD.findall(text[:READ_CHARS].lower())
    long = [word for word in words if len(word) > _LONG]
    return [*words, *(f"{word[:_LONG]}-" for word in long), *(f"-{word[1 - _LONG :]}" for word in long)]


def presence(texts: Sequence[str], split: Callable[[str], list[str]], least: int) -> csr_array:
    """Which text holds which token; shape (N, tokens), of tokens that `least` texts or more hold."""
    from sklearn.feature_extraction.text import CountVectorizer  # noqa: PLC0415 (with scipy 1.5 s)

    counts = CountVectorizer(analyzer=split, binary=True, dtype=np.float64)
    try:
        held = counts.fit_transform(texts).tocsc()
    except ValueError:  # no text holds any token
        return csr_array((len(texts), 0))
    in_texts = np.diff(held.indptr)
    return csr_array(held[:, (in_texts >= least) & (in_texts <= _MOST * len(texts))])


def rising(held: csr_array, window: int) -> Statistic:
    """Statistic of labellings: how strongly columns of `held` gather in the window.

    Args:
        held: shape (N, tokens), zeros and ones.
        window: rows of a labelling that are in the window.
    """
    texts = held.shape[0]
    sizes, of_token = np.unique(np.asarray(held.sum(axis=0)).ravel().astype(int), return_inverse=True)
    table = _tempered(sizes, window / texts, window)
    across = held.T.tocsr().astype(np.float32)  # counts: exact, and half the memory

    def statistic(in_window: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = (across @ in_window.T.astype(np.float32)).astype(np.intp)  # (tokens, B)
        evidence = table[of_token[:, None], np.minimum(inside, table.shape[1] - 1)].sum(axis=0)
        result: NDArray[np.float64] = np.log1p(evidence)
        return result

    return statistic


def _tempered(sizes: NDArray[np.intp], share: float, window: int) -> NDArray[np.float64]:
    """exp(s D) - 1 of a token of `sizes[i]` texts with k of them in the window; shape (sizes, k)."""
    k = np.arange(min(int(sizes.max(initial=0)), window) + 1)[None, :]
    n = sizes[:, None]
    k = np.minimum(k, n)
    outside = n - k
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(k > 0, k * np.log(k / (n * share)), 0.0)
        ratio += np.where(outside > 0, outside * np.log(outside / (n * (1 - share))), 0.0)
    return np.expm1(np.minimum(_TEMPER * np.where(k > n * share, ratio, 0.0), _MOST_EVIDENCE))
