"""Preferences and bare questions are looked at before they are learned from, by `data check` and by a run alike.

Each fault stands in rows made to have it; what is no fault for them (a question with several preferences, a rejected
answer that offends) must not be called one.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from small_base import make_small_base
from tuneloop.registry.errors import InvalidInput, Refused
from tuneloop.registry.statistics.intervals import wilson
from tuneloop.train.data.check import check_files
from tuneloop.train.data.material import Loaded, load_material
from tuneloop.train.data.preference import PreferenceRow, PromptRow
from tuneloop.train.data.quality.page import render
from tuneloop.train.data.quality.report import QualityReport
from tuneloop.train.data.rows import data_digest
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.data import QualitySection
from tuneloop.train.verbs.data import data as data_verb

Json = dict[str, Any]
WORDS = ["".join(random.Random(n).choices("etaoinshrdlu", k=random.Random(n).randint(3, 8))) for n in range(800)]
ASKS = {"kind": "grpo", "rewards": ["exact_answer"], "answers": 2}


def text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def pair(number: int, *, chosen: int = 12, rejected: int = 12) -> Json:
    """A preference; its two answers have so many words."""
    seed = 10 * number
    return {
        "prompt": f"What of {text(seed, 9)}?",
        "chosen": text(seed + 1, chosen),
        "rejected": text(seed + 2, rejected),
    }


def written(path: Path, rows: list[Json]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def checked(folder: Path, rows: list[Json], against: list[Json] | None = None, **quality: Any) -> QualityReport:
    measured = [written(folder / "test.jsonl", against)] if against else []
    return check_files([written(folder / "rows.jsonl", rows)], measured, QualitySection(**quality))


def found(report: QualityReport) -> dict[str, tuple[int, int]]:
    """Check → rows found and dropped, where it found any."""
    return {one.check: (one.rows, one.dropped) for one in report.findings.findings if one.rows}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_base(tmp_path_factory.mktemp("base")).folder


def loaded(base: Path, folder: Path, rows: list[Json], objective: Json, test: list[Json], **quality: Any) -> Loaded:
    """What a run with this recipe would learn from."""
    written(folder / "rows.jsonl", rows)
    written(folder / "test.jsonl", test)
    recipe = {
        "base": {"model": str(base)},
        "data": {"train": "rows.jsonl", "quality": quality},
        "objective": objective,
        "run": {"steps": 1, "batch_size": 4, "micro_batch": 2},
        "evaluate": {"sets": {"held": "test.jsonl"}, "generate": 0},
        "publish": {"model": "bot"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return load_material(load_recipe(folder / "recipe.yaml"))


def test_each_fault_of_preferences_is_found_and_what_is_none_is_not(tmp_path: Path) -> None:
    rows = [pair(n) for n in range(20)]
    rows += [
        rows[1] | {"chosen": rows[1]["chosen"].upper()},  # a double, case aside
        rows[2] | {"rejected": text(900, 12)},  # no double: the same answer is preferred to another one
        rows[3] | {"chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]},
        pair(50) | {"rejected": f" {pair(50)['chosen']} "},
        pair(51) | {"rejected": "Ask ann@example.org, she knows it."},
        pair(52) | {"rejected": text(901, 600)},
        pair(53) | {"rejected": "Shut up, you fucking idiot, you stupid piece of shit."},  # what is not to be said
    ]
    report = checked(tmp_path, rows, identical="drop", near_duplicates="off")
    assert found(report) == {
        "identical": (1, 1),
        "duplicates": (1, 1),
        "conflicts": (1, 0),
        "long": (1, 0),
        "pii": (1, 0),
    }
    examples = {one.check: one.examples[0].partition("rows.jsonl:")[2] for one in report.findings.findings if one.rows}
    assert examples["identical"] == "24: chosen and rejected are the same answer"
    assert examples["conflicts"].startswith("23: prefers otherwise than ")
    assert examples["long"] == "26: answers with 600 words"
    assert examples["pii"].startswith("25")
    assert report.rejected_words == (5, 12.0, 600)
    toxic = checked(tmp_path, [*rows[:9], rows[-1] | {"chosen": rows[-1]["rejected"], "rejected": rows[-1]["chosen"]}])
    assert found(toxic)["toxicity"] == (1, 0), "preferred, it is to be said"


@pytest.mark.parametrize("longer", [True, False])
def test_length_that_tells_the_chosen_answer_is_said_with_its_interval(longer: bool, tmp_path: Path) -> None:
    rows = [
        pair(n, chosen=20, rejected=8) if (n % 10 != 0) == longer else pair(n, chosen=8, rejected=20) for n in range(60)
    ]
    report = checked(tmp_path, [*rows, *(pair(n) for n in range(60, 80))])
    bias = report.length_bias
    assert bias is not None
    assert (bias.pairs, bias.longer) == (60, 54 if longer else 6), "answers of one length say nothing"
    share = wilson(bias.longer, 60)
    assert (bias.low, bias.high) == (share.low, share.high)
    assert found(report)["length_bias"] == (60, 0)
    [said] = [line for line in report.findings.warnings if "length alone" in line]
    assert f"the longer answer is chosen in {'90' if longer else '10'}% of 60 (" in said
    refused = checked(tmp_path, rows, length_bias="refuse")
    assert "set data.quality.length_bias to warn" in refused.findings.refusals[0]
    assert found(checked(tmp_path, rows, max_length_bias=0.9)) == {}, "the interval does not exclude 90 %"


def test_lengths_that_do_not_differ_beyond_chance_are_no_bias(tmp_path: Path) -> None:
    rows = [pair(n, chosen=9 + 2 * (n % 2), rejected=10) for n in range(40)]
    report = checked(tmp_path, rows)
    assert report.length_bias is not None
    assert report.length_bias.share == 0.5
    assert found(report) == {}
    few = checked(tmp_path, [pair(n, chosen=12, rejected=8) for n in range(5)])
    assert "length_bias" not in found(few), "five of five is still within chance of 65 %"


def test_bare_questions_are_judged_as_questions(tmp_path: Path) -> None:
    rows = [{"prompt": pair(n)["prompt"]} for n in range(15)]
    rows += [rows[0], {"prompt": text(7, 600)}, {"prompt": "May I write to bob@example.org about the harbour?"}]
    test = [{"instruction": rows[4]["prompt"], "output": "Never."}]
    report = checked(tmp_path, rows, test, leakage="drop")
    assert found(report) == {"duplicates": (1, 1), "leakage": (1, 1), "long": (1, 0), "pii": (1, 0)}
    assert report.commonest_answers == ()
    assert "different answers" not in report.text()
    assert "<svg" in render(report)


def test_a_page_of_preferences_shows_the_lengths_of_both_answers(tmp_path: Path) -> None:
    page = render(checked(tmp_path, [pair(n, rejected=7) for n in range(12)]))
    assert "rejected words: 7 to 7" in page


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_a_run_on_preferences_leaves_out_says_and_refuses_as_its_recipe_does(
    kind: str, base: Path, tmp_path: Path
) -> None:
    rows = [pair(n, chosen=20, rejected=8) for n in range(30)]
    rows += [rows[0], pair(40) | {"rejected": pair(40)["chosen"]}, pair(41) | {"chosen": "Ask ann@example.org."}]
    test = [rows[5], pair(60)]

    def run(**quality: Any) -> Loaded:
        return loaded(base, tmp_path, rows, {"kind": kind}, test, **quality)

    with pytest.raises(Refused, match=r"(?s)identical: .*rows\.jsonl:32: .*leakage: .*rows\.jsonl:6: is also in held"):
        run()
    kept = run(identical="drop", leakage="drop", pii="drop")
    assert kept.origin["dropped"] == {"identical": 1, "duplicates": 1, "leakage": 1, "pii": 1}
    assert [row.place.rpartition(":")[2] for row in kept.train if isinstance(row, PreferenceRow)] == [
        *(str(n) for n in range(1, 31) if n != 6)
    ]
    assert kept.origin["rows"] == 29
    assert kept.said[0] == "data: 33 rows read; dropped: 1 identical, 1 duplicates, 1 leakage, 1 pii"
    assert any("preferences that length alone would tell: 29" in line for line in kept.said)
    assert {one["check"] for one in kept.origin["quality"]} >= {"identical", "length_bias", "pii"}
    with pytest.raises(Refused, match="length_bias: preferences that length alone would tell"):
        run(identical="drop", leakage="drop", length_bias="refuse")


def test_a_run_on_questions_does_not_learn_those_that_are_measured(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": pair(n)["prompt"], "answer": "w1"} for n in range(8)]
    test = [{"instruction": rows[2]["prompt"], "output": "w1"}]
    with pytest.raises(Refused, match=r"leakage: .*(?s:.*)rows\.jsonl:3: is also in held"):
        loaded(base, tmp_path, [*rows, rows[0]], ASKS, test)
    kept = loaded(base, tmp_path, [*rows, rows[0]], ASKS, test, leakage="drop")
    assert kept.origin["dropped"] == {"duplicates": 1, "leakage": 1}
    assert [dict(row.fields) for row in kept.train if isinstance(row, PromptRow)] == [{"answer": "w1"}] * 7


def test_broken_and_blank_preferences_are_named_or_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    rows = [*(pair(n) for n in range(4)), pair(4) | {"rejected": " "}, {"prompt": "w1", "chosen": "w2"}]
    with pytest.raises(InvalidInput, match=r"(?s)rows\.jsonl:5: rejected is empty.*rows\.jsonl:6: lacks rejected"):
        loaded(base, tmp_path, rows, {"kind": "dpo"}, [pair(9)])
    kept = loaded(base, tmp_path, rows, {"kind": "dpo"}, [pair(9)], format="drop", empty="drop")
    assert kept.origin["dropped"] == {"format": 1, "empty": 1}
    assert len(kept.train) == 4


def test_data_check_and_a_run_agree_on_the_digest_and_on_the_exit(base: Path, tmp_path: Path) -> None:
    rows = [pair(n) for n in range(6)]
    report = checked(tmp_path, rows)
    assert report.digest == data_digest(loaded(base, tmp_path, rows, {"kind": "dpo"}, [pair(9)]).train)
    path = written(tmp_path / "same.jsonl", [pair(1) | {"rejected": pair(1)["chosen"]}, pair(2)])
    done = CliRunner().invoke(data_verb, ["check", str(path), "--json"])
    assert isinstance(done.exception, Refused)
    shown = json.loads(done.stdout)
    assert shown["rejected_words"] == [12, 12.0, 12]
    assert shown["length_bias"] is None, "no two answers differ in length"
