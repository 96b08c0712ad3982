"""Whether a classifier can tell the texts of a window from the reference's, better than it could if they were dealt out
at random (a classifier two-sample test: Lopez-Paz & Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017). Pure;
randomness is injected.

It learns from four fifths of all texts and is asked about the others, each in turn; the statistic is the area under its
ROC curve, 0.5 where it can only guess. The classifier is linear in the texts' features and regularised least squares in
the labels (Rifkin et al., 2003), not logistic regression: what it says of texts it has not seen is then a fixed matrix
times the labels, so that each of thousands of random deals is learned and asked anew, as an exact test needs, for the
price of one product. Parts and features know nothing of the labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.detectors import Outcome, permutation_test

PARTS = 5
RIDGE = 0.1  # of kernels whose diagonal is 1; a tenth or ten times as much saw no more, of 30 % turned to NumPy


def classifier_test(
    kernel: NDArray[np.float64], n_reference: int, alpha: float, rng: np.random.Generator
) -> tuple[Outcome, NDArray[np.float64]]:
    """Whether the two can be told apart, and how much each text looks like one of the window's.

    Args:
        kernel: shape (N, N), of all texts; rows 0 … n_reference-1 are the reference, the rest the window.
        n_reference: how many are the reference.
        alpha: level of the test.
        rng: of the parts and the deals.

    Returns:
        The outcome, whose statistic is the area under the ROC curve; and shape (N,), of each text what the classifier
        that has not seen it says.
    """
    size, window = len(kernel), len(kernel) - n_reference
    asked = unseen(kernel, np.array_split(rng.permutation(size), PARTS))
    order = rng.permutation(size)  # equal texts are said to be equal: which comes first must not tell the side

    def area(in_window: NDArray[np.float64]) -> NDArray[np.float64]:
        return auc((in_window @ asked.T)[:, order], in_window[:, order])

    outcome = permutation_test(area, size, window, alpha=alpha, rng=rng)
    labels = np.concatenate([np.zeros(n_reference), np.ones(window)])
    said: NDArray[np.float64] = asked @ labels
    return outcome, said


def unseen(kernel: NDArray[np.float64], parts: list[NDArray[np.intp]]) -> NDArray[np.float64]:
    """The matrix that makes of labels what the classifier says of each text, learned from all parts but its own.

    Features and labels are centred on what was learned from, which stands for an intercept.
    """
    asked = np.zeros_like(kernel)
    for part in parts:
        rest = np.setdiff1d(np.arange(len(kernel)), part)
        mean = kernel[:, rest].mean(axis=1)
        of_rest = kernel[np.ix_(rest, rest)] - mean[rest][:, None] - mean[rest][None, :] + mean[rest].mean()
        of_part = kernel[np.ix_(part, rest)] - mean[part][:, None] - mean[rest][None, :] + mean[rest].mean()
        weights = np.linalg.solve(of_rest + RIDGE * np.eye(len(rest)), of_part.T).T
        weights += (1.0 - weights.sum(axis=1, keepdims=True)) / len(rest)  # the mean of the labels, put back
        asked[np.ix_(part, rest)] = weights
    return asked


def auc(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each row, by ranks; (B, N) and (B, N) of 0 and 1 → (B,). Equal scores are ordered as
    they stand, which has nothing to do with labels."""
    ranks = np.argsort(np.argsort(scores, axis=1, kind="stable"), axis=1) + 1.0
    ones = labels.sum(axis=1)
    zeros = labels.shape[1] - ones
    result: NDArray[np.float64] = ((ranks * labels).sum(axis=1) - ones * (ones + 1) / 2) / (ones * zeros)
    return result
