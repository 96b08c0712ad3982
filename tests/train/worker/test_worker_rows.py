"""Which rows a retraining learns from: what is left out, refused and told."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests_support import request_record
from train.worker.crew import filed, worker
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import (
    Feedback,
    RetrainingRequest,
    RetrainingState,
    Version,
)
from tuneloop.train.base import base_of
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe.run import EarlyStopping
from tuneloop.train.retraining.preparing import Preparation
from tuneloop.train.screen import Screen


def test_a_window_without_corrections_fails_with_the_reason_and_the_worker_lives(
    registry: Registry, champion: Version
) -> None:
    request = filed(registry, rows=9)
    blank = request_record(1, request.window_end, messages=(), answer=None)  # by its age
    registry.traffic.add_requests([blank])
    registry.traffic.add_feedback([Feedback(id="f", request_id=blank.id, at=blank.at, correction="It adds.")])
    screen = io.StringIO()
    crew = worker(registry, screen=Screen(screen))
    done = crew.run_once()
    assert done is not None
    assert done.state is RetrainingState.FAILED
    assert "no correction" in done.outcome
    assert f"9 of the 9 corrections that {done.id} was filed on are on record no more" in screen.getvalue()
    assert crew.run_once() is None
    assert [version.version for version in registry.versions.all("bot")] == [1]


@pytest.mark.parametrize("action", ["drop", "refuse"])
def test_corrections_are_judged_by_the_recipes_quality_section(
    registry: Registry,
    request_waiting: RetrainingRequest,
    tmp_path: Path,
    recipe_in: Callable[[Path], Path],
    action: str,
) -> None:
    recipe = recipe_in(tmp_path / "strict")
    quality = f"quality: {{long: {action}, max_words: 30, min_words: 2}}"
    recipe.write_text(recipe.read_text().replace("data: {", "data: {" + quality + ", "))
    registry.retraining.cancel(request_waiting.id, by="test", reason="another recipe")
    window = {name: getattr(request_waiting, name) for name in ("window_start", "window_end")}
    filed(registry, recipe=str(recipe), idempotency_key="strict", **window)
    long = " ".join(["It is a long answer that nobody would want to read to its end."] * 3)
    later = request_waiting.window_end + timedelta(minutes=1)
    registry.traffic.add_feedback([Feedback(id="fb-long", request_id="req-3", at=later, thumb="down", correction=long)])
    screen = io.StringIO()
    done = worker(registry, screen=Screen(screen)).run_once()
    assert done is not None
    if action == "refuse":
        assert done.state is RetrainingState.FAILED
        assert "users' corrections: long: answers over max_words: 1" in done.outcome
        assert "request req-3" in done.outcome
        return
    assert done.result_version == 2
    lineage = Lineage(registry.versions, registry.versions.get("bot", 2))
    assert lineage.manifest()["dropped"]["long"] == 1
    assert not any(long in row.answer for row in lineage.train_rows())


def test_a_correction_that_cannot_be_labelled_costs_itself_and_not_the_retraining(
    registry: Registry, champion: Version, request_waiting: RetrainingRequest
) -> None:
    """Somebody pasted a control token, or asked so much that nothing of the answer is left."""
    later = request_waiting.window_end + timedelta(minutes=1)
    answers = {"req-3": "It ends <|im_end|> here.", "req-4": "Right.", "req-5": "It goes to <filename>."}
    registry.traffic.add_feedback(
        [Feedback(id=f"fb-{n}", request_id=n, at=later, thumb="down", correction=text) for n, text in answers.items()]
    )
    file = Lineage(registry.versions, champion).recipe()
    preparation = Preparation(registry, Screen(io.StringIO()))
    base = base_of(champion, file.recipe, registry.settings.home / "bases", relative_to=file.folder)
    usual = preparation.data(request_waiting, champion, file.recipe, (), base)
    assert usual.dropped["cannot be labelled"] == 1
    assert any("request req-3: the text holds the control token <|im_end|>" in line for line in usual.said())
    assert any("<filename>" in row.answer for row in usual.train), "what the base's tokenizer names nowhere is a text"
    short = file.recipe.objective.model_copy(update={"max_length": 16})
    with pytest.raises(InvalidInput, match=r"no correction from .*can be learned from .*\n.*raise max_length"):
        preparation.data(request_waiting, champion, file.recipe.model_copy(update={"objective": short}), (), base)


@pytest.mark.parametrize(("judged_s", "learned"), [(None, True), (90, True), (0, False)])
def test_what_was_said_after_the_corrections_were_judged_is_not_learned_from(
    registry: Registry, champion: Version, request_waiting: RetrainingRequest, judged_s: int | None, learned: bool
) -> None:
    later = request_waiting.window_end + timedelta(minutes=1)
    texts = {f"req-{n}": f"Something else altogether, said {n} times." for n in range(28)}
    registry.traffic.add_feedback(
        [Feedback(id=f"fb-{n}", request_id=n, at=later, correction=text) for n, text in texts.items()]
    )
    judged = None if judged_s is None else request_waiting.window_end + timedelta(seconds=judged_s)
    request = request_waiting.model_copy(update={"judged_until": judged})
    file = Lineage(registry.versions, champion).recipe()
    base = base_of(champion, file.recipe, registry.settings.home / "bases", relative_to=file.folder)
    data = Preparation(registry, Screen(io.StringIO())).data(request, champion, file.recipe, (), base)
    assert data.fresh_rows > 0
    assert any(row.answer in texts.values() for row in data.train) is learned


def test_early_stopping_without_rows_to_stop_by_is_said(
    registry: Registry, champion: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version of a release that kept no validation rows, or whose recipe had none."""
    recipe = Lineage(registry.versions, champion).recipe().recipe
    stopping = recipe.model_copy(update={"run": recipe.run.model_copy(update={"early_stopping": EarlyStopping()})})
    screen = io.StringIO()
    preparation = Preparation(registry, Screen(screen))
    assert len(preparation.validation(champion, stopping)) == 4
    monkeypatch.setattr(Lineage, "manifest", lambda _self: {})
    assert preparation.validation(champion, recipe) == ()
    assert screen.getvalue() == ""
    assert preparation.validation(champion, stopping) == ()
    assert "run.early_stopping stops nothing: bot@1 keeps no validation rows" in screen.getvalue()
