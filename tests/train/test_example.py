"""The example's data: nothing that is measured is ever learned, and the same machine builds the same files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tuneloop.train.data.rows import Row, data_digest, read_rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "python-helper"
FILES = (
    "stdlib/train",
    "stdlib/validation",
    "stdlib/test",
    "stdlib/questions",
    "sqlalchemy/questions",
    "sqlalchemy/test",
)


def build(out: Path) -> dict[str, tuple[Row, ...]]:
    subprocess.run([sys.executable, "-W", "error", str(EXAMPLE / "build_data.py"), "--out", str(out)], check=True)
    return {name: read_rows(out / f"{name}.jsonl").rows for name in FILES}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Row, ...]]:
    return build(tmp_path_factory.mktemp("data"))


def asked_about(row: Row) -> str:
    [name] = re.findall(r"`([\w.]+)`", row.prompt)
    return str(name)


def test_there_is_enough_to_train_drift_and_measure(built: dict[str, tuple[Row, ...]]) -> None:
    counts = {name: len(rows) for name, rows in built.items()}
    assert counts["stdlib/train"] > 1500
    assert counts["stdlib/questions"] > 250
    assert counts["sqlalchemy/questions"] > 250
    assert counts["stdlib/test"] == counts["sqlalchemy/test"] == 60


def test_no_two_files_share_a_function_or_an_answer(built: dict[str, tuple[Row, ...]]) -> None:
    names = [asked_about(row) for rows in built.values() for row in rows]
    answers = [row.answer.lower() for rows in built.values() for row in rows]
    assert len(set(names)) == len(names)
    assert len(set(answers)) == len(answers)
    for domain in ("stdlib", "sqlalchemy"):
        own = {name: {asked_about(r).rpartition(".")[2] for r in built[name]} for name in FILES if domain in name}
        assert sum(map(len, own.values())) == len(set().union(*own.values()))


def test_answers_are_short_sentences(built: dict[str, tuple[Row, ...]]) -> None:
    for rows in built.values():
        for row in rows:
            assert 4 <= len(row.answer.split()) <= 30
            assert row.answer[0].isupper()
            assert row.answer[-1] in ".!?"


def test_the_same_machine_builds_the_same_data(built: dict[str, tuple[Row, ...]], tmp_path: Path) -> None:
    again = build(tmp_path)
    assert {name: data_digest(rows) for name, rows in again.items()} == {
        name: data_digest(rows) for name, rows in built.items()
    }
