"""Texts as points of a latent space, and each one's neighbourhood: what sees a new topic that shares no single word.

The space is latent semantic analysis of the pooled sample: the leading eigenvectors of the texts' similarities.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack

DIMENSIONS = 60
NEIGHBOURS = (5, 10, 20)  # sizes of neighbourhoods, the text itself included; a tenth of a small window up to all of it
NEIGHBOURS_IN_MEANING = (10, 20, 40)  # a model puts more of one topic near each other than counts do
_LEAST = 1e-9  # length of a vector that points nowhere: an empty text


def latent(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors of the texts in the latent space; shape (N, DIMENSIONS or fewer), zeros for an empty text."""
    from scipy.linalg import eigh  # noqa: PLC0415 (half a second)

    texts = len(kernel)
    strengths, vectors = eigh(kernel, subset_by_index=[max(texts - DIMENSIONS, 0), texts - 1])
    points = vectors * np.sqrt(np.maximum(strengths, 0.0))
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.where(lengths > _LEAST, points / np.where(lengths > _LEAST, lengths, 1), 0.0)
    return unit


def neighbourhoods(points: NDArray[np.float64], sizes: tuple[int, ...] = NEIGHBOURS) -> csr_array:
    """Each text's nearest texts, one column for each text and size; shape (N, N * sizes), zeros and ones."""
    texts = len(points)
    small = [size for size in sizes if size < texts]
    near = points @ points.T
    np.fill_diagonal(near, 2.0)  # nearest to itself, also where a double is as near
    order = np.argsort(-near, axis=1, kind="stable")[:, : max(small, default=0)]
    columns = np.arange(texts)
    held = [
        csr_array((np.ones(texts * size), (order[:, :size].ravel(), np.repeat(columns, size))), shape=(texts, texts))
        for size in small
    ]
    return csr_array(hstack(held)) if held else csr_array((texts, 0))
