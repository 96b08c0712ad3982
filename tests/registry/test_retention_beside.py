"""Deletion by age beside everything else: it locks what it takes alone, makes room, and tells what it took."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from registry.aged import DAY, MONTH, Unhurried, keep, retain, said, stored, texts, told
from registry.verbs import Verb
from tests_support import Clock, request_record, window_score
from tuneloop.registry import Registry, examples, retention
from tuneloop.registry.client_ids import WAITING
from tuneloop.registry.retention import ACTION, PAUSE_S
from tuneloop.registry.retention_policy import RetentionPolicy
from tuneloop.registry.tables import BLANK

KEPT = RetentionPolicy()


def test_a_pass_that_finds_nothing_locks_nothing_and_rows_of_others_are_only_read(
    registries: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)
    for days in (31, 33):
        stored(registries, days, "cat")
        stored(registries, days + 1)
    keep(registries, MONTH)
    keep(registries, KEPT, "cat")
    retain(registries)
    assert texts(registries)["feedback"] == {"req-1031", "req-1033"}, "those between two of another model, too"
    clock.advance(DAY.total_seconds())
    written: list[None] = []
    writing = registries.database.writing

    def counted() -> AbstractContextManager[Connection]:
        written.append(None)
        return writing()

    monkeypatch.setattr(registries.database, "writing", counted)
    retain(registries)
    assert written == []


def test_feedback_whose_request_comes_between_the_look_and_the_deletion_is_that_models(
    registries: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = clock() - 40 * DAY
    late = request_record(40, at)
    registries.traffic.add_feedback([said(late.id, at), said(f"{WAITING}1", at)])
    keep(registries, RetentionPolicy(text_days=30, record_days=35), "cat")
    writing = registries.database.writing

    @contextmanager
    def after_all(*_: object) -> Iterator[Connection]:
        monkeypatch.undo()
        registries.traffic.add_requests([late])
        with writing() as connection:
            yield connection

    monkeypatch.setattr(registries.database, "writing", after_all)
    retain(registries)
    assert texts(registries)["feedback"] == {late.id}


@pytest.mark.parametrize(("step_s", "pause_s"), [(0.0, PAUSE_S), (3.0, 3.0)])
def test_after_each_batch_others_may_write_for_as_long_as_it_took(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, step_s: float, pause_s: float
) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)
    for days in (31, 32):
        stored(registry, days)
    keep(registry, MONTH)
    now_s = count(0.0, step_s)
    batches = 2 + 2 + 2  # of requests, copies and feedback
    assert retain(registry, monotonic_s=lambda: next(now_s)) == [pause_s] * batches
    assert retain(registry, monotonic_s=lambda: next(now_s)) == []


def test_a_pause_ends_with_the_pass(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)
    for days in (31, 32):
        stored(registry, days)
    keep(registry, MONTH)
    stop = Unhurried()
    stop.is_set = lambda: bool(stop.waits_s)
    retention.Retention(registry).turn(stop)
    assert (told(registry), len(stop.waits_s)) == ([{"texts of requests": 1}], 1)


def test_that_an_answer_was_corrected_outlives_what_it_was_corrected_to(registries: Registry, clock: Clock) -> None:
    """Experiments and canaries count corrections; nobody can learn from one, nor that its answer was right."""
    asked = request_record(29, clock() - 29 * DAY)
    registries.traffic.add_requests([asked])
    before = asked.at - DAY / 2  # a client's clock
    registries.traffic.add_feedback(
        [said(asked.id, before, thumb="up"), said(asked.id, before, id="b", correction=" ")]
    )
    span: dict[str, Any] = {"since": clock() - 40 * DAY, "until": clock()}
    assert [text for _, text in registries.traffic.corrections("bot", **span, by=clock(), liked=True)] == ["It adds."]
    _, opinions = registries.traffic.outcomes("bot", **span)
    clock.advance(DAY.total_seconds() * 0.8)
    keep(registries, MONTH)
    retain(registries)
    found = {item.id: item.correction for item in registries.traffic.feedback_for([asked.id])[asked.id]}
    assert found == {f"fb-{asked.id}": BLANK, "b": None}
    assert registries.traffic.request(asked.id).messages, "its own time has not come"
    assert registries.traffic.outcomes("bot", **span)[1] == opinions
    assert any(opinion.corrected for opinion in opinions[asked.id])
    assert list(registries.traffic.corrections("bot", **span, by=clock(), liked=True)) == []
    assert registries.traffic.corrected("bot", **span) == 0
    assert registries.traffic.corrections_for([asked.id]) == {}


def test_what_a_pass_took_until_it_was_broken_off_is_on_record(
    registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = stored(registry, 31)
    shown = {"examples": [{"request_id": old, "question": "how?", "weight": 1.0}]}
    span = {"window_start": clock() - 31 * DAY, "detail": shown}
    for number in range(3):
        registry.episodes.add_score(window_score(clock(), id=f"w{number}", **span))
    keep(registry, MONTH)
    monkeypatch.setattr(examples, "_AT_ONCE", 1)
    blank_row = examples._blank_row

    def broken(*of: Any) -> bool:
        if of[3] == "w1":
            raise OSError("no space left on device")
        return blank_row(*of)

    monkeypatch.setattr(examples, "_blank_row", broken)
    with pytest.raises(OSError, match="no space left"):
        retain(registry)
    kind = "windows and episodes with examples"
    first = {"texts of requests": 1, "texts of copies": 1, "texts of feedback": 1, kind: 1}
    assert told(registry) == [first]
    assert registry.audit.entries("bot", limit=1, action=ACTION)[0].detail["whole"] is False
    monkeypatch.setattr(examples, "_blank_row", blank_row)
    stop = Unhurried()
    stop.is_set = lambda: bool(stop.waits_s)
    retention.Retention(registry).turn(stop)
    assert told(registry)[1:] == [{kind: 1}], "a stop is heard between two looks at examples, too"
    retain(registry)
    assert told(registry)[2:] == [{kind: 1}]


def test_a_controller_that_looks_once_ends_a_deletion_when_it_is_told_to(
    verb: Verb, lived_in: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(lived_in, 31)
    keep(lived_in, MONTH)
    handlers: dict[int, Callable[[int, None], None]] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    turn = retention.Retention.turn

    def told_to_end(self: retention.Retention, stop: retention.Stop | None = None) -> None:
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        turn(self, stop)

    monkeypatch.setattr(retention.Retention, "turn", told_to_end)
    assert verb("controller", "--once")[0] == 0
    assert told(lived_in) == []
    monkeypatch.setattr(retention.Retention, "turn", turn)
    assert verb("controller", "--once")[0] == 0
    assert len(told(lived_in)) == 1
