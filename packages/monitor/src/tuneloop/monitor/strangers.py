"""How much of a stranger each text is among all of them, and whether a window has more strangers than chance deals it:
what sees a few texts of another topic that share no word, nor anything else but being unusual.

Most of the pooled sample is of the usual topic, so what the others cannot explain of a text says how unusual it is:
the distance to the nearest mixture of them, by ridge regression (the variance that a Gaussian process leaves, or one
less the leverage). One number for each text has no direction that must be found first, so its noise is that of one
sum, where a mean of many features has the noise of them all. Read from the pooled sample, which no relabelling of its
rows can change: a permutation test on top is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.detectors import Statistic
from tuneloop.monitor.features import centred

RIDGE = 10.0  # times the mean variance of a text: some 60 directions of 720 short texts; half or twice sees as much
_DECIMALS = 9  # equal texts are equally strange: what rounding makes of them is no difference
_LEAST = 1e-9  # variance of texts that are all the same


def strangeness(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the others leave unexplained of each text of a kernel, in parts of the ridge; shape (N,)."""
    from scipy.linalg import cholesky, solve_triangular  # noqa: PLC0415 (half a second)

    texts = len(kernel)
    away = centred(kernel)
    variance = float(np.trace(away)) / texts
    if variance < _LEAST:
        return np.zeros(texts)
    away /= RIDGE * variance
    away.flat[:: texts + 1] += 1.0
    root = cholesky(away, lower=True, overwrite_a=True)
    inverse_root = solve_triangular(root, np.eye(texts), lower=True, overwrite_b=True)
    unexplained: NDArray[np.float64] = np.round(1.0 / np.square(inverse_root).sum(axis=0) - 1.0, _DECIMALS)
    return unexplained


def gathering(strange: NDArray[np.float64]) -> Statistic:
    """Statistic of labellings: how strange the texts in the window are, by ranks of which the highest decide.

    Ranks become values of a normal curve, so that no scale matters, and count by their exponential, the likelihood
    ratio of a shift by one standard deviation.
    """
    from scipy.special import ndtri  # noqa: PLC0415 (half a second)
    from scipy.stats import rankdata  # noqa: PLC0415

    weights: NDArray[np.float64] = np.exp(ndtri((rankdata(strange) - 0.5) / len(strange)))
    return lambda in_window: in_window @ weights
