"""A set larger than memory is labelled and audited like any other, and never held."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from small_base import WORDS, make_small_base
from train.fitting import Fits, tokenizer_of
from tuneloop.registry.errors import InvalidInput, TuneloopError
from tuneloop.registry.nouns import Message
from tuneloop.train.base import Base
from tuneloop.train.data import labelled
from tuneloop.train.data.label_audit import label_rows
from tuneloop.train.data.labelled import LabelledStore, label_rows_on_disk
from tuneloop.train.data.labels import IGNORED, Labeller
from tuneloop.train.data.rows import Row, read_rows
from tuneloop.train.data.store import RowStore
from tuneloop.train.examples import label
from tuneloop.train.fit.handed import hand_over, handed_over
from tuneloop.train.fit.sft import training_data
from tuneloop.train.tuning import models

LENGTH = 120  # words of an answer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return models.load_tokenizer(make_small_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
def fits(tiny: Base, tiny_recipe: Path, tmp_path: Path) -> Fits:
    return Fits(tiny, tiny_recipe, tmp_path)


def made(count: int) -> Iterator[Row]:
    """Rows that nobody holds."""
    for number in range(count):
        answer = " ".join(WORDS[(number + place) % len(WORDS)] for place in range(LENGTH - number % 7))
        turns = (Message(role="user", content=WORDS[number % 50]), Message(role="assistant", content=answer))
        yield Row(turns, f"rows.jsonl:{number + 1}")


def held_after(tokenizer: Any, count: int) -> int:
    """Bytes at most while `count` rows are labelled and gone through once more."""
    gc.collect()
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    rows, audit = label_rows_on_disk(Labeller(tokenizer, 256), made(count), "sha256:t")
    assert sum(len(row.ids) for row in rows) == audit.tokens
    peak: int = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - arrow
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_rows(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 120 tokens takes two kilobytes in memory, and here next to none once the first are on their way out."""
    monkeypatch.setattr(labelled, "_WRITTEN_TOGETHER", 32)
    few, many = 40, 170
    held_after(tokenizer, 10)  # what is loaded once
    small, large = held_after(tokenizer, few), held_after(tokenizer, many)
    print(f"{small} bytes of {few} rows, {(large - small) / (many - few)} for each one more")
    assert (large - small) / (many - few) < 100
    assert small < 8 * 2**20


def test_what_is_read_from_disk_is_what_was_labelled(tokenizer: Any) -> None:
    labeller, rows = Labeller(tokenizer, 122), list(made(60))
    held, audit = label_rows(labeller, rows, "sha256:t")
    stored, told = label_rows_on_disk(labeller, iter(rows), "sha256:t")
    assert told == audit
    assert audit.truncated_rows > 0
    assert list(stored) == held
    assert [stored[0], stored[-1], *stored[5:7]] == [held[0], held[-1], *held[5:7]]
    assert stored.lengths.tolist() == [len(row.ids) for row in held]


def test_rows_that_teach_nothing_are_told_alike(tokenizer: Any) -> None:
    rows = list(made(9))
    with pytest.raises(InvalidInput) as held:
        label_rows(Labeller(tokenizer, 4), rows, "sha256:t")
    with pytest.raises(InvalidInput) as stored:
        label_rows_on_disk(Labeller(tokenizer, 4), rows, "sha256:t")
    assert str(stored.value) == str(held.value)
    assert "rows.jsonl:1: no token of it would be learned" in str(held.value)
    assert "… and 4 more" in str(held.value)


def test_several_processes_get_their_filling_row_from_disk_too(tokenizer: Any) -> None:
    stored, _ = label_rows_on_disk(Labeller(tokenizer, 256), made(9), "sha256:t")
    found = training_data(stored, 2)
    assert len(found) == 10
    assert found[3]["input_ids"] == list(stored[3].ids)
    assert found[9]["input_ids"] in [list(row.ids) for row in stored]
    assert set(found[9]["labels"]) == {IGNORED}
    assert len(training_data(stored, 1)) == 9


def test_a_run_from_disk_is_the_run_from_memory_to_the_bit(fits: Fits) -> None:
    recipe = fits.recipe()
    fits.fit(recipe, steps=1)
    expected = fits.losses
    rows = read_rows(fits.recipe_path.with_name("train.jsonl")).rows
    labeller = Labeller(tokenizer_of(fits.base), 96)
    stored = label(labeller, recipe.objective, rows, fits.base.template_digest, on_disk=True).conversations
    assert isinstance(stored, LabelledStore)
    fits.fit(recipe, steps=1, rows=stored)
    assert fits.losses == expected


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can be written to that is larger than 4 KB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_temporary_folder_is_one_clear_error(tokenizer: Any) -> None:
    """Bare, it would be a traceback, and in a process of its own a death that is tried again and again."""
    rows = list(made(30))
    with full_disk(), pytest.raises(TuneloopError, match=r"^rows could not be written .*File too large.* TMPDIR"):
        RowStore(rows)
    with full_disk(), pytest.raises(TuneloopError, match=r"^tokens and labels could not .*too large.* TMPDIR"):
        label_rows_on_disk(Labeller(tokenizer, 256), iter(rows), "sha256:t")


def test_rows_are_handed_over_by_way_of_the_disk_with_their_places(tokenizer: Any, tmp_path: Path) -> None:
    rows_held, _ = label_rows(Labeller(tokenizer, 256), list(made(30)), "sha256:t")
    held = [replace(one, unlearned_answers=number) for number, one in enumerate(rows_held)]
    given = [f"rows é.jsonl:{number}" for number in range(27)]
    (tmp_path / "rows.jsonl").symlink_to("/dev/full")
    with pytest.raises(TuneloopError, match=r"could not be handed over in .*No space left.*--resume"):
        hand_over(tmp_path, held[:27], given, held[27:])
    assert not (tmp_path / "rows.jsonl").is_symlink(), "nothing of it is left"
    hand_over(tmp_path, held[:27], given, held[27:])
    with full_disk(), pytest.raises(TuneloopError, match="tokens and labels could not be written"):
        handed_over(tmp_path, on_disk=True)
    rows, places, validation = handed_over(tmp_path, on_disk=True)
    assert isinstance(rows, LabelledStore)
    assert (list(rows), list(places), validation) == (held[:27], given, held[27:])
    assert places[3:5] == given[3:5]
