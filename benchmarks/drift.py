"""How often a drift detector cries wolf, and how much of a drift it sees: ours against two fixed thresholds.

    .venv/bin/python benchmarks/drift.py [--rounds 60] [--json FILE]

Text: questions made from docstrings of the standard library (the reference) and of SQLAlchemy (what users drift to);
reference 120, window 40. All detectors see the same draws. `domain classifier` is a logistic regression on the same
n-grams with cross-validated AUC > 0.55; `PSI` compares question lengths in ten bins, alarm above 0.1. Takes about two
minutes for 60 rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "python-helper"))

import build_data

from tuneloop.monitor.detectors import mmd_test, window_alpha
from tuneloop.monitor.features import prompt_kernel

REFERENCE, WINDOW, STREAMS = 120, 40, 3
GAMMA = 10_000  # records between two false alarms, over all streams of a model
MIXES = (0.0, 0.1, 0.2, 0.3, 1.0)
Detector = Callable[[Sequence[str], Sequence[str], np.random.Generator], bool]


def ours(reference: Sequence[str], window: Sequence[str], rng: np.random.Generator) -> bool:
    """MMD on hashed n-grams with a permutation test at the level the budget leaves."""
    alpha = window_alpha(WINDOW, GAMMA, STREAMS)
    return mmd_test(prompt_kernel([*reference, *window]), len(reference), alpha, rng).alarm


def domain_classifier(reference: Sequence[str], window: Sequence[str], rng: np.random.Generator) -> bool:
    """AUC of telling window from reference, cross-validated, against the usual 0.55."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import StratifiedKFold, cross_val_score  # noqa: PLC0415

    texts = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit_transform([*reference, *window])
    labels = np.repeat([0, 1], [len(reference), len(window)])
    folds = StratifiedKFold(4, shuffle=True, random_state=int(rng.integers(2**31)))
    model = LogisticRegression(class_weight="balanced")
    return float(cross_val_score(model, texts, labels, cv=folds, scoring="roc_auc").mean()) > 0.55


def psi(reference: Sequence[str], window: Sequence[str], rng: np.random.Generator) -> bool:  # noqa: ARG001 (a Detector)
    """Population stability index of question lengths in the reference's deciles, against the usual 0.1."""
    before, now = (np.array([len(text) for text in texts]) for texts in (reference, window))
    edges = np.quantile(before, np.linspace(0.1, 0.9, 9))
    p, q = (np.bincount(np.searchsorted(edges, lengths), minlength=10) + 0.5 for lengths in (before, now))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum()) > 0.1


DETECTORS: dict[str, Detector] = {
    f"ours, γ = {GAMMA:,}": ours,
    "domain classifier, AUC > 0.55": domain_classifier,
    "PSI of lengths > 0.1": psi,
}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Detector → share of the window that changed → share of windows that alarmed."""
    familiar, strange = (
        [entry.row()["instruction"] for entry in build_data.collect(modules)]
        for modules in (build_data.STDLIB, build_data.SQLALCHEMY)
    )
    alarms = {name: dict.fromkeys(MIXES, 0) for name in DETECTORS}
    for number in range(rounds):
        draw = random.Random(number)
        for mix in MIXES:
            old = draw.sample(familiar, REFERENCE + WINDOW)
            changed = round(mix * WINDOW)
            window = old[REFERENCE : REFERENCE + WINDOW - changed] + draw.sample(strange, changed)
            for name, detector in DETECTORS.items():
                alarms[name][mix] += detector(old[:REFERENCE], window, np.random.default_rng(number))
    return {name: {f"{mix:.0%}": count / rounds for mix, count in row.items()} for name, row in alarms.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shares = measure(options.rounds)
    width = max(map(len, shares))
    print(f"share of {options.rounds} windows that alarmed, by how much of the window changed (0 %: false alarms)")
    print(f"{'':{width}}  " + "".join(f"{mix:>8.0%}" for mix in MIXES))
    for name, row in shares.items():
        print(f"{name:{width}}  " + "".join(f"{share:8.0%}" for share in row.values()))
    if options.json is not None:
        options.json.write_text(json.dumps(shares, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
