"""`drift check` says what drifted and where, of any file, in the same words every time."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from monitor.questions import NUMPY, STDLIB, ask
from tuneloop.monitor.lines import read_sample
from tuneloop.monitor.offline import DriftCheck, check_files, check_lines
from tuneloop.registry.errors import InvalidInput


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(n: int, seed: int, *, new_in: str = "", **numbers: float) -> list[dict[str, Any]]:
    """Questions of two languages and teams over a day; those of one language turn to NumPy where `new_in` names it."""
    rng = random.Random(seed)
    found = []
    for index, question in enumerate(ask(STDLIB, n, rng)):
        lang, team = rng.choice(["de", "en"]), rng.choice(["red", "blue", "green"])
        text = ask(NUMPY, 1, rng)[0] if lang == new_in else question
        at = f"2026-11-{1 + index % 28:02d}T{rng.randrange(24):02d}:00:00Z"
        found.append({"text": text, "at": at, "lang": lang, "team": team, "id": f"{seed}-{index}", "nested": {"a": 1}})
    return found


@pytest.fixture
def usual(tmp_path: Path) -> Path:
    return written(tmp_path / "usual.jsonl", rows(160, 61))


def test_the_slice_whose_texts_changed_is_named_and_the_others_are_not(usual: Path, tmp_path: Path) -> None:
    found = check_files(usual, written(tmp_path / "window.jsonl", rows(60, 67, new_in="de")))
    assert found.verdict == "drift"
    named = {(part["field"], part["value"], part["how"]) for part in found.slices}
    assert ("lang", "de", "texts") in named
    assert not {part for part in named if part[:2] == ("lang", "en")}
    assert "id" not in {field for field, _, _ in named}
    assert any(line.startswith("slice      lang 'de': its own texts changed (") for line in check_lines(found))
    assert all(example["fields"]["lang"] == "de" for example in found.examples)


def test_a_value_that_comes_more_often_is_named_by_its_share(usual: Path, tmp_path: Path) -> None:
    window = rows(60, 71)
    for row in window[:40]:
        row |= {"text": ask(NUMPY, 1, random.Random(row["id"]))[0], "team": "violet"}
    found = check_files(usual, written(tmp_path / "window.jsonl", window))
    part = next(part for part in found.slices if part["value"] == "violet")
    assert (part["field"], part["how"], part["reference"], part["window"]) == ("team", "share", 0, 40)


def test_a_change_of_every_value_and_the_other_of_two_are_no_part(usual: Path, tmp_path: Path) -> None:
    window = rows(120, 73)
    for index, row in enumerate(window):
        row |= {"text": ask(NUMPY, 1, random.Random(row["id"]))[0], "lang": "en" if index % 8 else "de"}
    found = check_files(usual, written(tmp_path / "window.jsonl", window))
    assert found.verdict == "drift"
    assert [(p["field"], p["value"], p["how"]) for p in found.slices if p["field"] in ("lang", "team")] == [
        ("lang", "en", "share")
    ]


def test_without_drift_no_slice_is_looked_for(usual: Path, tmp_path: Path) -> None:
    found = check_files(usual, written(tmp_path / "window.jsonl", rows(60, 73)))
    assert (found.verdict, found.slices) == ("none", ())


def test_a_number_of_the_lines_is_watched_in_the_order_of_time(tmp_path: Path) -> None:
    rng = random.Random(79)
    usual = [row | {"ms": rng.gauss(200, 20)} for row in rows(160, 83)]
    window = [
        row | {"ms": rng.gauss(200, 20), "at": f"2026-12-01T00:{i:02d}:00Z"} for i, row in enumerate(rows(60, 89))
    ]
    for row in window[30:]:
        row["ms"] += 40
    reference = written(tmp_path / "usual.jsonl", usual)
    found = check_files(reference, written(tmp_path / "window.jsonl", window[::-1]), streams=("ms",))
    assert found.verdict == "drift"
    (stream,) = found.streams
    first = stream["alarms"][0]
    assert first["direction"] == "up"
    assert 26 <= 60 - first["since_line"] <= 34  # the lines stand in the file the other way round
    assert stream["statistic"] > stream["threshold"]
    calm = check_files(
        reference, written(tmp_path / "window.jsonl", [r | {"ms": rng.gauss(200, 20)} for r in window]), streams=("ms",)
    )
    assert (calm.verdict, calm.streams[0]["alarms"]) == ("none", [])
    assert calm.alpha == pytest.approx(60 / 10_000 / 2), "the budget is shared by texts and numbers"


def test_a_number_that_is_not_on_every_line_is_refused_with_the_line(usual: Path, tmp_path: Path) -> None:
    window = written(tmp_path / "window.jsonl", [{"text": "a", "ms": 1}] * 11 + [{"text": "a", "ms": True}])
    reference = written(tmp_path / "reference.jsonl", [{"text": "a", "ms": 1}] * 11)
    with pytest.raises(InvalidInput, match=r"window\.jsonl:12: --stream ms needs a number 'ms' on every line"):
        check_files(reference, window, streams=("ms",))
    with pytest.raises(InvalidInput, match=r"usual\.jsonl:\d+: --stream ms needs"):
        check_files(usual, window, streams=("ms",))


@pytest.mark.parametrize("at", ["yesterday", 5, "2026-13-01"])
def test_a_time_that_is_none_is_refused_with_the_line(usual: Path, tmp_path: Path, at: object) -> None:
    window = written(tmp_path / "window.jsonl", [{"text": "a"}] * 10 + [{"text": "a", "at": at}])
    with pytest.raises(
        InvalidInput, match=r'window\.jsonl:11: "at" is .* which is no time; write 2026-11-29T20:15:00Z'
    ):
        check_files(usual, window)


def test_one_check_in_a_hundred_cries_wolf_at_most_however_long_the_window(usual: Path, tmp_path: Path) -> None:
    window = written(tmp_path / "window.jsonl", rows(160, 97))
    found = check_files(usual, window)
    assert found.alpha == pytest.approx(0.01)
    assert found.mean_run_length == 16_000
    assert check_files(usual, window, 100_000).alpha == pytest.approx(0.0016)


def test_a_long_file_is_judged_by_a_sample_that_is_the_same_every_time(tmp_path: Path) -> None:
    rng = random.Random(101)
    texts = ask(STDLIB, 200, rng)
    reference = written(tmp_path / "reference.jsonl", [{"text": rng.choice(texts)} for _ in range(30_000)])
    sample = read_sample(reference, 300)
    assert (len(sample.lines), sample.total) == (300, 30_000)
    assert sample == read_sample(reference, 300)
    numbers = [line.number for line in sample.lines]
    assert numbers == sorted(numbers)
    assert 13_000 < sum(numbers) / 300 < 17_000, "drawn from all of the file"
    assert len(set(sample.texts)) > 130, "equal lines are drawn one by one"


def test_huge_and_empty_files_are_clear_errors_or_answers(usual: Path, tmp_path: Path) -> None:
    window = written(
        tmp_path / "window.jsonl", [{"text": "numpy array " * 200_000}, *({"text": "a"} for _ in range(30))]
    )
    found = check_files(usual, window)
    assert isinstance(found, DriftCheck)
    assert all(len(example["text"]) <= 4_000 for example in found.examples)
    empty = written(tmp_path / "empty.jsonl", [])
    assert check_files(usual, empty).reason.endswith(
        "empty.jsonl: 0 texts; 10 are needed on each side: of fewer no change can be told from chance"
    )
    with pytest.raises(InvalidInput, match=r"cannot read .*: Is a directory; give a file"):
        check_files(usual, tmp_path)
