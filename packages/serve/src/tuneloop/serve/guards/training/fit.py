"""Train the guards' classifier and write `classifier.json` with its card.

    python -m tuneloop.serve.guards.training.fit

Texts come from the grammars beside this file, nothing is fetched, and the same grammars give the same weights
(liblinear, a fixed seed, weights rounded to 8 bits). About a minute of two cores and 1.2 GB. Needs scikit-learn.
"""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from tuneloop.serve.guards import classifier, rules
from tuneloop.serve.guards.classifier import BUCKETS, Classifier
from tuneloop.serve.guards.concepts import sentences
from tuneloop.serve.guards.folding import fold
from tuneloop.serve.guards.training.grammar import HELD_OUT_EVERY, expanded, held_out_texts, prose, templates

SEED, EACH_ATTACK, EACH_BENIGN = 20_26, 20, 26
# Of benign texts full of trigger words, from a quarter of all templates left out: many more than of others. So chosen
# that less than 1 % are stopped of held-out templates and of the descriptions of half of the packages at hand.
BUDGET = 0.04
PROSE_BUDGET = 0.005  # of paragraphs of prose
REGULARISATION = 10.0  # liblinear's C
BENIGN_WEIGHT = 2.0
PROSE_WEIGHT = 6.0  # there are few paragraphs of it, and most long texts are such
# What a window's copy without its words weighs: what concepts alone tell holds in languages that were never trained on.
WORDLESS = 0.5
FOLDS = 4
BLAS_THREADS = 2  # on every machine: other numbers of threads sum in another order, and give other weights
AT_ONCE = 2  # folds: each holds some 300 MB while it is fitted
ROUNDS = 2  # of choosing the windows that make an attack one
TOLERANCE = 0.01  # of liblinear
PROSE = "prose"
NOTHING = -9.0  # the decision value of a text with no window worth a look


@dataclass(frozen=True)
class Example:
    """A text's family, and where its template stands in it."""

    family: str
    part: int
    attack: bool


@dataclass(frozen=True)
class Corpus:
    """Texts as the features of their windows."""

    texts: tuple[Example, ...]
    matrix: Any  # windows × BUCKETS
    stacked: Any  # the same, and below it the same without the features of words
    owner: Any  # of each window, the text it is of

    def highest(self, fitted: Classifier) -> Any:
        """The highest decision value of each text's windows."""
        found = np.full(len(self.texts), NOTHING)
        weights = np.array(fitted.weights, dtype=float) * fitted.unit
        np.maximum.at(found, self.owner, self.matrix @ weights + fitted.intercept)
        return found


def corpus(texts: Sequence[tuple[Example, str]]) -> Corpus:
    """The windows of texts."""
    owner: list[int] = []
    rows, wordless = list[list[int]](), list[list[int]]()
    for number, (_, text) in enumerate(texts):
        folded = fold(text)
        seen = set()
        for window in classifier.windows(sentences(folded), rules.marks(folded)):
            features = sorted(window.features())
            if (key := tuple(features)) not in seen:
                seen.add(key)
                rows.append(features)
                wordless.append(sorted(window.features(words=False)))
                owner.append(number)
    lengths = np.maximum([len(row) for row in rows], classifier.LEAST)
    whole, bare = (_matrix(each, 1 / np.sqrt(lengths)) for each in (rows, wordless))
    return Corpus(tuple(example for example, _ in texts), whole, vstack([whole, bare]).tocsr(), np.array(owner))


def _matrix(rows: Sequence[Sequence[int]], values: Any) -> Any:
    lengths = [len(row) for row in rows]
    columns = array("i", chain.from_iterable(rows))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    made = csr_matrix(
        (np.repeat(values, lengths), np.array(columns, dtype=np.int32), starts), shape=(len(rows), BUCKETS)
    )
    made.sum_duplicates()
    return made


def examples(seed: int = SEED) -> Corpus:
    """What is trained on: the templates that are not held out, and prose."""
    written = [
        (Example(template.family, template.number, name == "attacks"), text)
        for name, each in (("attacks", EACH_ATTACK), ("benign", EACH_BENIGN))
        for template in templates(name)
        if not template.held_out
        for _, text in expanded(template, each=each, seed=seed)
    ]
    return corpus(written + [(Example(PROSE, number, False), text) for number, text in enumerate(prose())])


def train(rows: Corpus, without: Callable[[Example], bool] = lambda _: False, seed: int = SEED) -> Classifier:
    """Fit: every window of a benign text is an example; of an attack the one that looks most like an attack.

    Which one that is, the classifier before says, so a document around an attack is not learnt as one; the first
    takes all windows of an attack together as one example's worth.
    """
    kept = np.array([not without(text) for text in rows.texts])[rows.owner]
    attack = np.array([text.attack for text in rows.texts])[rows.owner]
    windows = np.bincount(rows.owner, minlength=len(rows.texts))[rows.owner]
    is_prose = np.array([text.family == PROSE for text in rows.texts])[rows.owner]
    benign = np.where(is_prose, PROSE_WEIGHT, BENIGN_WEIGHT)
    weight = np.where(attack, 1 / windows, benign)
    weights, intercept = _fit(rows, kept, attack, weight, seed)
    for _ in range(ROUNDS):
        values = rows.matrix @ weights
        order = np.lexsort((values, rows.owner))
        best = np.zeros(len(values), dtype=bool)
        best[order[np.flatnonzero(np.diff(rows.owner[order], append=-1))]] = True
        chosen = kept & (~attack | best)
        weights, intercept = _fit(rows, chosen, attack, np.where(attack, 1.0, benign), seed)
    unit = float(np.abs(weights).max() / 127)
    steps = array("b", np.rint(weights / unit).astype(int).tolist())
    return Classifier(steps, round(unit, 9), round(intercept, 4), 0.0)


def _fit(rows: Corpus, chosen: Any, attack: Any, weight: Any, seed: int) -> tuple[Any, float]:
    model: Any = LogisticRegression(C=REGULARISATION, solver="liblinear", random_state=seed, tol=TOLERANCE)
    labels = np.tile(attack[chosen], 2)
    with threadpool_limits(BLAS_THREADS, user_api="blas"):
        model.fit(
            rows.stacked[np.tile(chosen, 2)],
            labels,
            sample_weight=np.concatenate([weight[chosen], WORDLESS * weight[chosen]]),
        )
    return model.coef_[0], float(model.intercept_[0])


def _in_fold(number: int, text: Example) -> bool:
    return not text.attack and text.part % FOLDS == number


def calibrated(fitted: Classifier, rows: Corpus) -> Classifier:
    """The threshold at which benign texts of templates that were left out and prose reach their budgets.

    Cross-validated: each fold of benign templates is judged by a classifier that was trained without it.
    """
    decided: dict[bool, list[float]] = {True: [], False: []}
    folds = [partial(_in_fold, number) for number in range(FOLDS)]
    # liblinear lets go of the interpreter, and draws nothing at random here. The limit is one for all of a process:
    # were it not set here too, the fold that ends first would lift it for the other.
    with threadpool_limits(BLAS_THREADS, user_api="blas"), ThreadPoolExecutor(AT_ONCE) as pool:
        trained = [*pool.map(partial(train, rows), folds)]
    for left_out, other in zip(folds, trained, strict=True):
        for text, value in zip(rows.texts, rows.highest(other), strict=True):
            if left_out(text):
                decided[text.family == PROSE].append(float(value))
    thresholds = [
        sorted(values, reverse=True)[int(budget * len(values))]
        for values, budget in ((decided[False], BUDGET), (decided[True], PROSE_BUDGET))
    ]
    return Classifier(fitted.weights, fitted.unit, fitted.intercept, round(max(thresholds), 3))


def decisions(fitted: Classifier, texts: Sequence[str]) -> Any:
    """The highest decision value of each text's windows."""
    return corpus([(Example("", 0, False), text) for text in texts]).highest(fitted)


def card(fitted: Classifier, rows: Corpus) -> dict[str, Any]:
    """What stands beside the weights: what they were made from, and what held-out texts show."""
    attacks, benign = (
        decisions(fitted, [text for _, text in held_out_texts(name, each=EACH_ATTACK, seed=SEED + 1)])
        for name in ("attacks", "benign")
    )
    steps = [round(-2 + 0.25 * step, 2) for step in range(25)]
    return {
        "about": "Linear model over hashed n-grams of words, characters and concepts: attacks on a language model.",
        "made_by": "python -m tuneloop.serve.guards.training.fit",
        "trained_on": "texts from this package's own grammars (guards/training/*.txt); nothing was fetched or copied",
        "licence": "Apache-2.0",
        "attack_examples": sum(text.attack for text in rows.texts),
        "benign_windows": sum(not rows.texts[number].attack for number in rows.owner),
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


def _share_from(decisions: Any, threshold: float) -> float:
    return float(np.mean(np.asarray(decisions) >= threshold))


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
