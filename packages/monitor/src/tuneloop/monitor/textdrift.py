"""Whether the texts of a window are other texts than the reference's: the test the monitor and `drift check` share.

Looks at the pooled sample, each a statistic of who is in the window, and one permutation test over the largest
of them (`detectors.strongest_test`): the mean of all texts (MMD² on character n-grams: a whole change of topic, of
language, of format), the share of single words (a few new texts that speak of one thing), neighbourhoods in a
latent space (a few new texts that say it in different words), and strangers (a few new texts that are unlike all
others). With an embedding model the last two go by what texts mean too, and the mean meaning joins them. Which of them
found it is part of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.detectors import Outcome, Statistic, mmd_statistic, strongest_test
from tuneloop.monitor.embeddings import Embed
from tuneloop.monitor.features import centred, prompt_kernel
from tuneloop.monitor.shares import presence, rising, tokens
from tuneloop.monitor.strangers import gathering, strangeness
from tuneloop.monitor.topics import NEIGHBOURS_IN_MEANING, latent, neighbourhoods

_LEAST_TEXTS = 2  # that hold a word; a word of one text says nothing of a topic


@dataclass(frozen=True)
class TextDrift:
    """What the test found."""

    outcome: Outcome  # statistic in standard deviations of the permutations
    looks: dict[str, float]  # `all texts`, `words`, `neighbours` …: each one's value; the largest is the statistic
    kernel: NDArray[np.float64]  # of the texts as given; see `features.prompt_kernel`
    said: NDArray[np.float64] | None = None  # of a classifier: how much each text is like the window's


def text_test(
    texts: Sequence[str], n_reference: int, alpha: float, rng: np.random.Generator, embed: Embed | None = None
) -> TextDrift:
    """Hold texts[n_reference:] against texts[:n_reference]; exact at level `alpha` where the texts are exchangeable.

    With `embed`, what texts mean is looked at too.
    """
    window = len(texts) - n_reference
    # Features must not know which texts came first, not even among equal ones: order decides between equally near.
    order = sorted(rng.permutation(len(texts)).tolist(), key=texts.__getitem__)
    pooled = [texts[index] for index in order]
    kernel = prompt_kernel(pooled)
    statistics = {
        "all texts": _of_pooled(mmd_statistic(kernel, window), order),
        "words": _of_pooled(rising(presence(pooled, tokens, _LEAST_TEXTS), window), order),
    }
    if embed is None:
        alike = kernel
        statistics["neighbours"] = _of_pooled(rising(neighbourhoods(latent(kernel)), window), order)
    else:
        vectors = embed(pooled)
        alike = kernel + vectors @ vectors.T
        nearest = neighbourhoods(latent(centred(alike)), NEIGHBOURS_IN_MEANING)
        statistics["meaning"] = _of_pooled(mmd_statistic(alike, window), order)
        statistics["neighbours in meaning"] = _of_pooled(rising(nearest, window), order)
    statistics["strangers"] = _of_pooled(gathering(strangeness(alike)), order)
    outcome, looks = strongest_test(statistics, len(texts), window, alpha=alpha, rng=rng)
    back = np.argsort(order)
    return TextDrift(outcome, looks, kernel[np.ix_(back, back)])


def _of_pooled(statistic: Statistic, order: Sequence[int]) -> Statistic:
    """The statistic of labellings whose columns stand in the order the texts were given."""
    return lambda in_window: statistic(in_window[:, order])
