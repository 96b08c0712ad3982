"""Train the guards' classifier and write `classifier.json` with its card.

    python -m tuneloop.serve.guards.training.fit

Texts come from the grammars beside this file, nothing is fetched, and the same grammars give the same weights
(liblinear, a fixed seed, weights rounded to 8 bits). About half a minute and 1 GB. Needs scikit-learn.
"""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from tuneloop.serve.guards import classifier, rules
from tuneloop.serve.guards.classifier import BUCKETS, Classifier
from tuneloop.serve.guards.concepts import sentences
from tuneloop.serve.guards.folding import fold
from tuneloop.serve.guards.training.grammar import HELD_OUT_EVERY, expanded, held_out_texts, prose, templates

SEED, EACH_ATTACK, EACH_BENIGN = 20_26, 40, 60
BUDGET = 0.03  # of benign texts full of trigger words, from a third of all templates left out: far more than of others
PROSE_BUDGET = 0.005  # of paragraphs of prose
REGULARISATION = 3.0  # liblinear's C
BENIGN_WEIGHT = 2.0
FOLDS = 3
PROSE = "prose"
NOTHING = -9.0  # the decision value of a text with no window worth a look


@dataclass(frozen=True)
class Example:
    """The windows of a text, each with its features; `part` is where its template stands in its family."""

    family: str
    part: int
    attack: bool
    windows: tuple[frozenset[int], ...]


def windows_of(text: str) -> tuple[frozenset[int], ...]:
    """The features of each window of a text."""
    folded = fold(text)
    return tuple(window.features for window in classifier.windows(sentences(folded), rules.marks(folded)))


def examples(seed: int = SEED) -> list[Example]:
    """What is trained on: the templates that are not held out, and prose."""
    written = [
        Example(template.family, template.number, name == "attacks", windows_of(text))
        for name, each in (("attacks", EACH_ATTACK), ("benign", EACH_BENIGN))
        for template in templates(name)
        if not template.held_out
        for _, text in expanded(template, each=each, seed=seed)
    ]
    return written + [Example(PROSE, number, False, windows_of(text)) for number, text in enumerate(prose())]


def train(rows: Sequence[Example], seed: int = SEED) -> Classifier:
    """Fit: an attack is all of its windows together, of a benign text each window is an example of its own."""
    attacks = [frozenset().union(*row.windows) for row in rows if row.attack and row.windows]
    benign = [window for row in rows if not row.attack for window in dict.fromkeys(row.windows)]
    both = [*attacks, *benign]
    lengths = [len(row) for row in both]
    columns = np.concatenate([np.array(sorted(row), dtype=np.int32) for row in both])
    values = np.repeat(1 / np.sqrt(np.maximum(lengths, classifier.LEAST)), lengths)
    matrix = csr_matrix((values, columns, np.concatenate([[0], np.cumsum(lengths)])), shape=(len(both), BUCKETS))
    model: Any = LogisticRegression(
        C=REGULARISATION, solver="liblinear", random_state=seed, class_weight={0: BENIGN_WEIGHT, 1: 1.0}, tol=1e-5
    )
    model.fit(matrix, np.repeat([1, 0], [len(attacks), len(benign)]))
    weights = model.coef_[0]
    unit = float(np.abs(weights).max() / 127)
    steps = array("b", np.rint(weights / unit).astype(int).tolist())
    return Classifier(steps, round(unit, 9), round(float(model.intercept_[0]), 4), 0.0)


def calibrated(fitted: Classifier, rows: Sequence[Example]) -> Classifier:
    """The threshold at which benign texts of templates that were left out and prose reach their budgets.

    Cross-validated: each fold of benign templates is judged by a classifier that was trained without it.
    """
    decisions: dict[bool, list[float]] = {True: [], False: []}
    for fold_number in range(FOLDS):
        left_out = [row for row in rows if not row.attack and row.part % FOLDS == fold_number]
        other = train([row for row in rows if row.attack or row.part % FOLDS != fold_number])
        for row in left_out:
            decisions[row.family == PROSE].append(max(map(other.decision, row.windows), default=NOTHING))
    thresholds = [
        sorted(found, reverse=True)[int(budget * len(found))]
        for found, budget in ((decisions[False], BUDGET), (decisions[True], PROSE_BUDGET))
    ]
    return Classifier(fitted.weights, fitted.unit, fitted.intercept, round(max(thresholds), 3))


def decision(fitted: Classifier, text: str) -> float:
    """The highest decision value of a text's windows."""
    return max(map(fitted.decision, windows_of(text)), default=NOTHING)


def card(fitted: Classifier, rows: Sequence[Example]) -> dict[str, Any]:
    """What stands beside the weights: what they were made from, and what held-out texts show."""
    attacks, benign = (
        [decision(fitted, text) for _, text in held_out_texts(name, each=EACH_ATTACK, seed=SEED + 1)]
        for name in ("attacks", "benign")
    )
    steps = [round(-2 + 0.25 * step, 2) for step in range(25)]
    return {
        "about": "Linear model over hashed n-grams of words, characters and concepts: attacks on a language model.",
        "made_by": "python -m tuneloop.serve.guards.training.fit",
        "trained_on": "texts from this package's own grammars (guards/training/*.txt); nothing was fetched or copied",
        "licence": "Apache-2.0",
        "attack_examples": sum(row.attack for row in rows),
        "benign_windows": sum(len(row.windows) for row in rows if not row.attack),
        "templates": {name: len(templates(name)) for name in ("attacks", "benign")},
        "held_out": f"every {HELD_OUT_EVERY}th template of a family; the threshold is cross-validated over the others",
        "false_positive_budget": {"cross_validated_templates": BUDGET, "cross_validated_prose": PROSE_BUDGET},
        "classifier_alone_on_held_out_templates": {
            "attacks": len(attacks),
            "benign": len(benign),
            "recall": round(_share_from(attacks, fitted.threshold), 4),
            "false_positives": round(_share_from(benign, fitted.threshold), 4),
        },
        "curve": [
            {
                "above_threshold": step,
                "recall": round(_share_from(attacks, fitted.threshold + step), 4),
                "false_positives": round(_share_from(benign, fitted.threshold + step), 4),
            }
            for step in steps
        ],
        "not_for": "harmful questions as such, other modalities; languages other than those named in docs/guards.md",
    }


def _share_from(decisions: Sequence[float], threshold: float) -> float:
    return sum(value >= threshold for value in decisions) / len(decisions)


def main() -> None:
    """Write the weights and their card where the guards read them."""
    rows = examples()
    fitted = calibrated(train(rows), rows)
    stored = {
        "card": card(fitted, rows),
        "unit": fitted.unit,
        "intercept": fitted.intercept,
        "threshold": fitted.threshold,
        "weights": base64.b64encode(fitted.weights.tobytes()).decode("ascii"),
    }
    classifier.MODEL.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(stored["card"], indent=1) + "\n")


if __name__ == "__main__":
    main()
