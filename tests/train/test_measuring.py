"""Measuring where memory is short: fewer rows, and fewer logits, at a time give the scores that all at once give."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneloop.registry.errors import TuneloopError
from tuneloop.registry.nouns import Message
from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import LabelAudit, label_rows
from tuneloop.train.data.labels import LabelledPair, LabelledRow, Labeller
from tuneloop.train.data.rows import Row
from tuneloop.train.evaluation import logits
from tuneloop.train.evaluation.measure import EvaluationSet, score_rows
from tuneloop.train.evaluation.preference import PreferenceSet
from tuneloop.train.examples import Examples, Prepared
from tuneloop.train.fit.progress import Watch
from tuneloop.train.job.measure import Measurer
from tuneloop.train.recipe import load_recipe
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models

SYSTEM = Message(role="system", content="You answer why questions, briefly and with a reason, whoever asks them.")
REL = 1e-5  # float32 sums in another order


def row(number: int) -> Row:
    asked = Message(role="user", content="why " * (1 + number % 7))
    said = Message(role="assistant", content=f"because of {number}" + " and so on" * (number % 5))
    return Row((SYSTEM, asked, said))


ROWS = tuple(row(number) for number in range(16))


@pytest.fixture(scope="module")
def model(tiny: Base) -> Any:
    return models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")


@pytest.fixture(scope="module")
def labelled(tiny: Base) -> list[LabelledRow]:
    return label_rows(Labeller(models.load_tokenizer(tiny), 96), ROWS, tiny.template_digest)[0]


@contextmanager
def holding(model: Any, most: int) -> Iterator[list[int]]:
    """A device that holds so many rows at a time; the rows of each pass that it did hold."""
    held = list[int]()

    def before(_module: Any, _given: Any, named: dict[str, torch.Tensor]) -> None:
        if len(named["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        held.append(len(named["input_ids"]))

    hook = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield held
    finally:
        hook.remove()


def test_logits_are_made_in_bounded_pieces_with_the_same_scores(
    model: Any, labelled: list[LabelledRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever precedes them: here a beginning that all rows share lies in the cache."""
    whole = score_rows(model, labelled, pad_id=2, check=lambda: None)
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", 5 * 49152 + 1)
    made = list[int]()
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _given, found: made.append(found.numel() // 49152))
    found = score_rows(model, labelled, pad_id=2, check=lambda: None)
    hook.remove()
    assert max(made) == 5
    assert sum(made) == 1 + sum(one.trained for one in labelled), "one for what all rows begin with"
    assert [one.tokens for one in found] == [one.tokens for one in whole]
    assert [one.nll for one in found] == pytest.approx([one.nll for one in whole], rel=REL)
    again = score_rows(model, labelled, pad_id=2, check=lambda: None)
    assert again == found, "the model is left as it was"


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def measurer(
    tiny: Base, recipe_in: Callable[[Path], Path], tmp_path: Path, labelled: list[LabelledRow], said: io.StringIO
) -> Measurer:
    tokenizer = models.load_tokenizer(tiny)
    chosen = EvaluationSet("old", ROWS, tuple(labelled), ROWS[:6], "sha256:0")
    pairs = tuple(LabelledPair(one, other) for one, other in zip(labelled[:8], labelled[8:], strict=True))
    examples = Examples(labelled, LabelAudit(1, 2, 1, 0, 0, 2, "<|im_end|>", "sha256:t"))
    prepared = Prepared(examples, [], {"old": chosen}, {"pairs": PreferenceSet("pairs", (), pairs, "sha256:p")})
    watch = Watch(Screen(said), lambda _metrics, _step: None, lambda: None)
    recipe = load_recipe(recipe_in(tmp_path)).recipe
    return Measurer(recipe, prepared, tokenizer, Labeller(tokenizer, 96), (), watch, {})


def test_what_does_not_fit_is_measured_with_fewer_rows_at_a_time(
    measurer: Measurer, model: Any, said: io.StringIO
) -> None:
    whole = measurer.measure(model, "before")
    model.train()
    with holding(model, 3) as held:
        found = measurer.measure(model, "before")
        measurer.measure(model, "after")
    assert max(held) == 2, "a half of a half of a half"
    assert model.training, "as it was before memory was full"
    model.eval()
    assert found.sets["old"].answers == whole.sets["old"].answers
    expected = [one.nll for one in whole.sets["old"].rows]
    assert [one.nll for one in found.sets["old"].rows] == pytest.approx(expected, rel=REL)
    assert found.preferences["pairs"].margins == pytest.approx(whole.preferences["pairs"].margins, abs=1e-3)
    assert [line for line in said.getvalue().splitlines() if line.startswith("out of memory")] == [
        f"out of memory in measuring {what} (CUDA out of memory. Tried to allocate 2.00 GiB); going on with it, "
        f"{rows} at a time"
        for what, sizes in (("answers", (16, 8, 4, 2)), ("rows", (8, 4, 2)))
        for rows in sizes
    ], "and what fits is found out once"


def test_one_row_that_cannot_be_measured_is_said_with_what_helps(measurer: Measurer, model: Any) -> None:
    words = r"out of memory in measuring answers with one row at a time: shorten the rows of evaluate\.sets"
    with holding(model, 0), pytest.raises(TuneloopError, match=words):
        measurer.measure(model, "before")
