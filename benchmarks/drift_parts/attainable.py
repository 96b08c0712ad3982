"""What can be seen of a mix of two topics at all: by one who has read both, where the detectors know the usual one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

_FOLDS, _DEALS = 5, 4_999


def knowing_both(
    usual: Sequence[str], new: Sequence[str], window: int, alpha: float
) -> Callable[[Sequence[str], float], bool]:
    """A test of windows, given as (texts, share that may be new): the likelihood ratio of that mix to none.

    How likely a text is of either topic is said by a classifier that has read all the others of both, but for a fifth
    that has this one; the level comes from windows of the usual topic.
    """
    texts = [*usual, *new]
    is_new = np.repeat([0, 1], [len(usual), len(new)])
    features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2).fit_transform(texts)
    ratio = np.zeros(len(texts))
    for read, asked in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(features, is_new):
        model = LogisticRegression(C=10.0, max_iter=300).fit(features[read], is_new[read])
        prior = np.log(is_new[read].mean() / (1 - is_new[read].mean()))
        ratio[asked] = model.decision_function(features[asked]) - prior
    of_text = dict(zip(reversed(texts), np.exp(ratio[::-1]).tolist(), strict=True))
    rng = np.random.default_rng(0)
    deals = [rng.choice(len(usual), window, replace=False) for _ in range(_DEALS)]

    def seen(texts: Sequence[str], share: float) -> bool:
        def evidence(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
            total: NDArray[np.float64] = np.log1p(share * (ratios - 1)).sum(axis=-1)
            return total

        by_chance = evidence(np.exp(ratio)[np.stack(deals)])
        return bool(evidence(np.array([of_text[text] for text in texts])) > np.quantile(by_chance, 1 - alpha))

    return seen
