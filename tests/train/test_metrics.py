"""Metrics of answers: what they count as equal, where they may come from, and what is refused before a run begins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.evaluation.bleu import before_after_gain, bleu_of, bleu_stats
from tuneloop.train.evaluation.metrics import Metric, exact_match, find_metrics, token_f1
from tuneloop.train.evaluation.statistics import bootstrap

SCRIPT = """
import datasets
import evaluate


class Shout(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"shout": sum(p == r.upper() for p, r in zip(predictions, references)) / len(predictions)}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package with entry points of metrics, installed as pip leaves one behind."""

    def write(points: str) -> None:
        info = tmp_path / "site" / "mine-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tuneloop.metrics]\n{points}")
        (tmp_path / "site" / "mine_metrics.py").write_text(
            "def shorter(answers, references):\n"
            "    return [float(len(a) < len(b)) for a, b in zip(answers, references)]\n"
            "def one(answers, references):\n    return [1.0]\n"
            "number = 3\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.delitem(sys.modules, "mine_metrics", raising=False)

    return write


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The Cat sat.", "cat  sat", 1.0, 1.0),
        ("a cat sat", "the cat ran", 0.0, 0.5),
        ("cat cat", "cat", 0.0, 2 / 3),
        ("", "cat", 0.0, 0.0),
        ("ﬁne", "fine", 1.0, 1.0),
        ("==", "!=", 0.0, 0.0),
        ("the", "the", 1.0, 1.0),
    ],
)
def test_answers_are_equal_up_to_case_punctuation_articles_and_spacing(
    answer: str, reference: str, exact: float, f1: float
) -> None:
    assert exact_match([answer], [reference]) == [exact]
    assert token_f1([answer], [reference]) == [pytest.approx(f1)]


def test_a_packages_own_metric_is_found_by_its_entry_point(install: Callable[[str], None], tmp_path: Path) -> None:
    install("shorter = mine_metrics:shorter\n")
    found = find_metrics(["exact_match", "shorter"], tmp_path)
    assert [metric.name for metric in found] == ["exact_match", "shorter"]
    assert found[1].rows(["a", "bb"], ["aa", "b"]) == (1.0, 0.0)


def test_an_unknown_metric_is_answered_with_those_that_are_known(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    install("shorter = mine_metrics:shorter\n")
    with pytest.raises(InvalidInput, match=r"no metric 'rouge'; known are exact_match, shorter, token_f1"):
        find_metrics(["rouge"], tmp_path)


@pytest.mark.parametrize(
    ("points", "names", "expected"),
    [
        ("gone = mine_metrics:gone\n", ["gone"], r"gone \(mine_metrics:gone\) cannot be loaded: AttributeError"),
        ("number = mine_metrics:number\n", ["number"], "is int, not a function"),
        ("bleu = mine_metrics:shorter\n", ["bleu"], "cannot be called 'bleu'"),
        ("shorter = mine_metrics:shorter\n", ["shorter", "shorter"], "names shorter twice"),
        ("shorter = mine_metrics:shorter\n", ["./nowhere.py"], "there is no script"),
    ],
)
def test_a_metric_that_cannot_be_used_is_refused(
    install: Callable[[str], None], tmp_path: Path, points: str, names: list[str], expected: str
) -> None:
    install(points)
    with pytest.raises(InvalidInput, match=expected):
        find_metrics(names, tmp_path)


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        (lambda *_: [1.0], "gave 1 scores for 2 answers"),
        (lambda *_: [1.0, float("nan")], "1 of them finite"),
        (lambda answers, _: [1 / len(answer) for answer in answers], "mine failed: ZeroDivisionError"),
    ],
)
def test_a_metric_that_gives_no_score_per_row_is_named(
    scorer: Callable[[Sequence[str], Sequence[str]], Sequence[float]], expected: str
) -> None:
    with pytest.raises(InvalidInput, match=expected):
        Metric("mine", scorer).rows(["a", ""], ["a", "b"])


def test_a_local_script_of_the_evaluate_package_scores_row_by_row_without_a_network(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluate import config

    monkeypatch.setattr(config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "shout.py").write_text(SCRIPT)
    metric = find_metrics(["./shout.py"], tmp_path)[0]
    assert metric.name == "shout"
    assert metric.rows(["CAT", "dog", "Bird"], ["cat", "dog", "bird"]) == (1.0, 0.0, 0.0)
    (tmp_path / "broken.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(InvalidInput, match=r"broken\.py cannot be loaded"):
        find_metrics(["./broken.py"], tmp_path)


REFERENCES = [
    f"the {word} sat on the {place} and looked at {n} birds"
    for n, (word, place) in enumerate(
        [("cat", "mat"), ("dog", "log"), ("fox", "box"), ("hen", "pen"), ("owl", "bowl"), ("bee", "tree")] * 4
    )
]
WORSE = [text.replace("looked at", "saw") if n % 2 else text[:25] for n, text in enumerate(REFERENCES)]
BETTER = [text.replace("and", "then") if n % 3 else text for n, text in enumerate(REFERENCES)]


def test_bleu_of_the_rows_sums_is_sacrebleus_corpus_bleu() -> None:
    stats = np.hstack([bleu_stats(WORSE, REFERENCES), bleu_stats(BETTER, REFERENCES)])
    before, after, gain = before_after_gain(stats.sum(axis=0, keepdims=True))[0]
    assert before == pytest.approx(bleu_of(WORSE, REFERENCES)[0])
    assert after == pytest.approx(bleu_of(BETTER, REFERENCES)[0])
    assert gain == pytest.approx(after - before)
    nothing = bleu_stats([""] * 24, REFERENCES)
    assert before_after_gain(np.hstack([nothing, nothing]).sum(axis=0, keepdims=True)).tolist() == [[0.0, 0.0, 0.0]]


def test_bleu_intervals_agree_with_sacrebleus_own_paired_bootstrap() -> None:
    stats = np.hstack([bleu_stats(WORSE, REFERENCES), bleu_stats(BETTER, REFERENCES)])
    before, after, _ = bootstrap(stats, before_after_gain, resamples=1000)
    systems = [("before", WORSE), ("after", BETTER)]
    test = PairedTest(systems, {"BLEU": sacrebleu.BLEU()}, [REFERENCES], test_type="bs", n_samples=1000)
    _, scores = test()
    for found, reference in zip((before, after), scores["BLEU"], strict=True):
        assert found.estimate == pytest.approx(reference.score)
        assert (found.high - found.low) / 2 == pytest.approx(reference.ci, rel=0.15)
