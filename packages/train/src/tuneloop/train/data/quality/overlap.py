"""Rows that stand twice, exactly or nearly, within the training data or between it and rows that are measured.

Exact copies are found by hash. Near ones are proposed by MinHash and then compared in full, so none is claimed that is
not one; about one in a hundred right at the threshold is missed. Texts are read again by row number, two at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tuneloop.train.data.minhash import Pairs, candidates, candidates_between
from tuneloop.train.data.near import grams, jaccard
from tuneloop.train.data.quality.look import Columns, text_of
from tuneloop.train.data.rows import Row

_HELD_GRAMS = 512  # sets of grams kept at hand


@dataclass(frozen=True)
class Matches:
    """For each row the number of one it equals or nearly equals, and how nearly; -1 where there is none."""

    other: NDArray[np.int64]
    similarity: NDArray[np.float32]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which rows have one."""
        return self.other >= 0


def repeats(columns: Columns) -> Matches:
    """Each row that says the same as an earlier one."""
    _, first, group = np.unique(columns.row_keys, return_index=True, return_inverse=True)
    earliest = first[group]
    other = np.where(earliest < np.arange(len(columns)), earliest, -1)
    return Matches(other, (other >= 0).astype(np.float32))


def conflicts(columns: Columns) -> Matches:
    """Each row whose question was answered otherwise by an earlier one, or whose answers were preferred the other way.

    A question that has several preferences is no conflict, nor is a bare one that stands twice.
    """
    other, keys = np.full(len(columns), -1), columns.row_keys
    plain = np.flatnonzero(columns.answered & ~columns.preferred)
    _, first, group = np.unique(columns.prompt_keys[plain], return_index=True, return_inverse=True)
    earliest = plain[first[group]]
    differs = keys[plain] != keys[earliest]
    other[plain] = np.where(differs, earliest, -1)
    pairs = np.flatnonzero(columns.preferred & ~columns.identical)
    turned = _looked_up(columns.turned_keys[pairs], keys[pairs]).other
    earlier = (turned >= 0) & (turned < np.arange(len(pairs)))
    other[pairs[earlier]] = pairs[turned[earlier]]
    return Matches(other, (other >= 0).astype(np.float32))


def near_repeats(columns: Columns, rows: Sequence[Row], threshold: float, apart_from: NDArray[np.bool_]) -> Matches:
    """Each row that is nearly an earlier one; rows in `apart_from` are left aside, on both sides."""
    chosen = np.flatnonzero(~apart_from)
    pairs = chosen[candidates(columns.signatures[chosen], threshold)]
    return _compared(pairs, rows, rows, threshold, len(columns))


def shared_with(columns: Columns, measured: Columns) -> Matches:
    """Each row that is also among the measured ones, word for word; of a bare question, the question."""
    learned = _looked_up(columns.learned_keys, measured.learned_keys)
    asked = _looked_up(columns.prompt_keys, measured.prompt_keys)
    bare = ~columns.answered
    return Matches(np.where(bare, asked.other, learned.other), np.where(bare, asked.similarity, learned.similarity))


def nearly_shared_with(
    columns: Columns,
    rows: Sequence[Row],
    measured: Columns,
    measured_rows: Sequence[Row],
    threshold: float,
    apart_from: NDArray[np.bool_],
) -> Matches:
    """Each row that is nearly a measured one, or asks the question of one."""
    asked = _looked_up(columns.prompt_keys, measured.prompt_keys)
    chosen = np.flatnonzero(~apart_from & ~asked.found)
    pairs = candidates_between(measured.signatures, columns.signatures[chosen], threshold)
    pairs[:, 1] = chosen[pairs[:, 1]]
    near = _compared(pairs, measured_rows, rows, threshold, len(columns))
    other = np.where(asked.found & ~apart_from, asked.other, near.other)
    return Matches(other, near.similarity)


def _looked_up(keys: NDArray[np.uint64], known: NDArray[np.uint64]) -> Matches:
    if not len(known):
        return Matches(np.full(len(keys), -1), np.zeros(len(keys), np.float32))
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known[order], keys), len(known) - 1)
    other = np.where(known[order][place] == keys, order[place], -1)
    return Matches(other, (other >= 0).astype(np.float32))


def _compared(pairs: Pairs, left: Sequence[Row], right: Sequence[Row], threshold: float, count: int) -> Matches:
    """Keep the pairs that are near in truth; pairs come by their right row, and one match is enough."""
    other, similarity = np.full(count, -1), np.zeros(count, np.float32)

    @lru_cache(_HELD_GRAMS)
    def left_grams(number: int) -> set[str]:
        return grams(text_of(left[number]))

    at, own = -1, set[str]()
    for one, two in pairs.tolist():
        if other[two] >= 0:
            continue
        if two != at:
            at, own = two, grams(text_of(right[two]))
        found = jaccard(left_grams(one), own)
        if found >= threshold:
            other[two], similarity[two] = one, found
    return Matches(other, similarity)
