"""Pairs of texts that may be nearly the same, found in linear time: MinHash signatures and locality-sensitive hashing.

One-permutation MinHash (Li et al., arXiv 1208.1259): every character 5-gram is hashed once, its hash chooses one of 64
bins and competes for the bin's minimum; empty bins are filled from full ones in an order all texts share (optimal
densification, Shrivastava, arXiv 1703.04664). 16 bits of each minimum are kept: 128 bytes a text. Two texts agree in a
bin about as often as they share grams. Bands of bins are chosen so that a pair at the threshold shares a whole band
with probability 0.99 or more; pairs are compared in full afterwards, by whoever has the texts.

Within a band every text is paired with the first text and with the one before it, never with all: linear, also when
every text is the same.

Shapes: N texts, B bins, G grams.
"""

# ruff: noqa: N803, N806 (suffixes are shapes)

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tuneloop.train.data.near import GRAM

BINS = 64
_RECALL = 0.99
_SLACK = 0.15  # three standard deviations of an estimate from 64 bins, at 0.8
_EMPTY = np.uint32(0xFFFFFFFF)
_PAIR_CHUNK = 1 << 20
_ROUNDS = 128  # of densification; after as many a text of one gram has found its bin with probability 0.87
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Signatures = NDArray[np.uint16]
Pairs = NDArray[np.int64]


def sign(folded: Sequence[str]) -> Signatures:
    """(N, B) signatures of a few thousand normalised texts, whose grams are all in memory at once."""
    if not folded:
        return np.empty((0, BINS), np.uint16)
    folded = [text.ljust(GRAM, "\0") for text in folded]
    lengths = np.array([len(text) for text in folded])
    points = np.frombuffer("".join(folded).encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashes_G = _gram_hashes(points)
    owners_G = np.repeat(np.arange(len(folded)), lengths)[: len(hashes_G)]
    ends = np.cumsum(lengths)
    within = np.arange(len(hashes_G)) + GRAM <= ends[owners_G]
    hashes_G, owners_G = hashes_G[within], owners_G[within]
    minima_NB = np.full(len(folded) * BINS, _EMPTY, np.uint32)
    cells_G = owners_G * BINS + (hashes_G & np.uint64(BINS - 1)).astype(np.int64)
    np.minimum.at(minima_NB, cells_G, (hashes_G >> np.uint64(32)).astype(np.uint32))
    return (_filled(minima_NB.reshape(-1, BINS)) & np.uint32(0xFFFF)).astype(np.uint16)


def candidates(found: Signatures, threshold: float) -> Pairs:
    """(P, 2) pairs (earlier, later) of texts whose similarity may reach the threshold, by later text."""
    pieces = []
    for columns in _bands(threshold):
        keys = _band_keys(found, columns)
        order = np.argsort(keys, kind="stable")
        first = _first_of_group(keys[order])
        later = np.flatnonzero(first != np.arange(len(order)))
        pieces += [
            np.stack([order[first[later]], order[later]], axis=1),
            np.stack([order[later - 1], order[later]], axis=1),
        ]
    return _likely(found, found, pieces, threshold)


def candidates_between(left: Signatures, right: Signatures, threshold: float) -> Pairs:
    """(P, 2) pairs (left, right) whose similarity may reach the threshold, by right text."""
    pieces = []
    for columns in _bands(threshold):
        keys = _band_keys(left, columns)
        order = np.argsort(keys, kind="stable")
        wanted = _band_keys(right, columns)
        start = np.searchsorted(keys[order], wanted, side="left")
        end = np.searchsorted(keys[order], wanted, side="right")
        hit = np.flatnonzero(end > start)
        pieces += [np.stack([order[start[hit]], hit], axis=1), np.stack([order[end[hit] - 1], hit], axis=1)]
    return _likely(left, right, pieces, threshold)


def _gram_hashes(points: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each run of GRAM code points: a polynomial, then mixed (the finaliser of SplitMix64)."""
    count = len(points) - GRAM + 1
    hashes = np.zeros(max(count, 0), np.uint64)
    for offset in range(GRAM):
        hashes = hashes * _MULTIPLIER + points[offset : offset + count] + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def _filled(minima_NB: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Every empty bin takes the minimum of a full one; who is asked, in what order, depends on the bin alone."""
    filled = minima_NB.copy()
    asked = np.random.default_rng(0).integers(0, BINS, size=(_ROUNDS, BINS))
    rows, bins = np.nonzero(minima_NB == _EMPTY)
    for turn in range(_ROUNDS):
        if not len(rows):
            break
        offered = minima_NB[rows, asked[turn, bins]]
        filled[rows, bins] = offered
        still = offered == _EMPTY
        rows, bins = rows[still], bins[still]
    filled[rows, bins] = minima_NB[rows].min(axis=1) if len(rows) else filled[rows, bins]
    return filled


def _bands(threshold: float) -> Iterator[slice]:
    """As few bands, as wide, as find a pair at the threshold with probability `_RECALL`."""
    width = next(w for w in range(BINS, 0, -1) if w == 1 or 1 - (1 - threshold**w) ** (BINS // w) >= _RECALL)
    for start in range(0, BINS - width + 1, width):
        yield slice(start, start + width)


def _band_keys(found: Signatures, columns: slice) -> NDArray[np.uint64]:
    keys = np.zeros(len(found), np.uint64)
    for column in range(columns.start, columns.stop):
        keys = (keys ^ (keys >> np.uint64(29))) * _MULTIPLIER + found[:, column].astype(np.uint64)
    return keys


def _first_of_group(ordered: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each place in an ordered list, the place where its run of equal keys begins."""
    places = np.arange(len(ordered))
    begins = np.ones(len(ordered), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    return np.maximum.accumulate(np.where(begins, places, 0)) if len(ordered) else places


def _likely(left: Signatures, right: Signatures, pieces: Sequence[Pairs], threshold: float) -> Pairs:
    """Each pair once, and only those whose signatures agree nearly as often as the threshold asks."""
    kept = [np.empty((0, 2), np.int64)]
    # One number a pair, the later text first, so that sorting brings a text's pairs together.
    keys = np.unique(np.concatenate([piece[:, 1] * len(left) + piece[:, 0] for piece in pieces]))
    for start in range(0, len(keys), _PAIR_CHUNK):
        later, earlier = np.divmod(keys[start : start + _PAIR_CHUNK], len(left))
        agreement = np.zeros(len(later), np.int64)
        for column in range(BINS):
            agreement += left[earlier, column] == right[later, column]
        likely = agreement >= BINS * (threshold - _SLACK)
        kept.append(np.stack([earlier[likely], later[likely]], axis=1))
    return np.concatenate(kept)
