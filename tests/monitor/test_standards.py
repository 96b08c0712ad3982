"""What windows are held against: like hours of a reference that covers a week, and, for a new champion, the reference
of the one before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from monitor.questions import STDLIB, ask
from monitor.scene import Scene
from tests_support import request_record
from tuneloop.monitor.reference import of_like_times, reference_of
from tuneloop.registry import Registry
from tuneloop.registry.nouns import RequestRecord
from tuneloop.registry.policies import RetrainingPolicy

MONDAY = datetime(2026, 11, 2, tzinfo=UTC)
REFUSES = "I'm sorry, but I can't help with that."


def at_hours(day: int, *hours: int) -> list[RequestRecord]:
    """A record at each of these hours of the day so many days after Monday."""
    return [request_record(100 * day + hour, MONDAY + timedelta(days=day, hours=hour)) for hour in hours]


def hours_of(records: tuple[RequestRecord, ...]) -> list[tuple[int, int]]:
    """(weekday, hour) of each."""
    return [(record.at.weekday(), record.at.hour) for record in records]


def test_a_window_is_held_against_its_own_hours_of_like_days() -> None:
    week = reference_of([record for day in range(7) for record in at_hours(day, *range(24))], frozen=True)
    night = of_like_times(week, at_hours(8, 2, 3), 10)
    assert hours_of(night.records) == [(day, hour) for day in range(5) for hour in (2, 3)]
    sunday = of_like_times(week, at_hours(13, 12), 6)
    assert hours_of(sunday.records) == [(day, hour) for day in (5, 6) for hour in (11, 12, 13)]
    assert night.summary() == week.summary() | {"n": 10}, "it stands for the whole week"


def test_where_like_hours_are_few_the_nearest_are_taken_and_none_twice() -> None:
    few = reference_of(at_hours(0, 1, 12, 22), frozen=True)
    assert hours_of(of_like_times(few, at_hours(1, 23, 23), 2).records) == [(0, 1), (0, 22)], "midnight divides nothing"
    assert len(of_like_times(few, at_hours(6, 5), 10).records) == 3


@pytest.fixture
def daily(scene: Scene) -> Scene:
    """By day `bot` answers in few words, in the evening in many; its reference covers three days."""
    scene.settings = scene.settings.model_copy(update={"season_days": 3})
    scene.clock.now = MONDAY
    for _ in range(3):
        a_day(scene)
    return scene


def a_day(scene: Scene, **changes: object) -> None:
    """Sixty questions by day and in the evening; the clock stands at midnight after it."""
    midnight = scene.clock.now.replace(hour=0, minute=0, second=0, microsecond=0)
    for hour, words in ((10, 10), (20, 60)):
        scene.clock.now = midnight + timedelta(hours=hour)
        scene.traffic(ask(STDLIB, 30, scene.rng), **({"answer": "word " * words, "completion_tokens": words} | changes))
    scene.clock.now = midnight + timedelta(days=1)


def test_the_course_of_a_day_raises_nothing_where_it_is_known(daily: Scene) -> None:
    daily.watch()
    a_day(daily)
    daily.watch()
    scores = daily.scores("answer_length")
    assert [score.verdict for score in scores] == ["none"] * 4, "an evening and a day of 60"
    assert scores[0].detail["reference"]["n"] == daily.settings.reference
    assert daily.registry.episodes.all("bot") == []


def test_without_it_the_same_day_is_a_false_alarm(scene: Scene) -> None:
    scene.clock.now = MONDAY
    for _ in range(3):
        a_day(scene)
    scene.monitor(reference=30).run_once()
    assert "drift" in {score.verdict for score in scene.scores("answer_length")}


def test_a_reference_of_days_is_not_judged_by_before_they_are_over(scene: Scene) -> None:
    scene.usual(120)
    assert scene.watch(scene.monitor(season_days=7)).waiting.startswith("the reference of bot@1 is gathered until")


@contextmanager
def reads_of(registry: Registry, table: str) -> Iterator[list[str]]:
    """What the database is asked of a table meanwhile."""
    asked: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if f"FROM {table}" in statement:
            asked.append(statement)

    sa.event.listen(registry.database.engine, "before_cursor_execute", listen)
    yield asked
    sa.event.remove(registry.database.engine, "before_cursor_execute", listen)


def test_a_reference_that_lacks_records_for_weeks_costs_a_pass_one_look(scene: Scene) -> None:
    monitor = scene.monitor(season_days=7)
    scene.usual(20)
    scene.clock.advance(30 * 86_400)
    with reads_of(scene.registry, "requests") as asked:
        state = scene.watch(monitor)
    assert state.waiting == "the reference of bot@1 holds 20 of 60 answered records"
    assert len(asked) <= 3, "not one for each of 720 hours"


def test_an_earlier_champion_that_never_had_a_reference_is_asked_for_none_again(scene: Scene) -> None:
    monitor = scene.monitor(season_days=7)
    scene.usual(80)
    scene.clock.advance(30 * 86_400)
    scene.promote(2)
    scene.usual(20, served_version=2, assigned_version=2)
    with reads_of(scene.registry, "requests") as traffic, reads_of(scene.registry, "window_scores") as scores:
        state = scene.watch(monitor, serves=("bot@1", "bot@2"))
    assert state.waiting.startswith("the reference of bot@2 is gathered until")
    assert (len(traffic), len(scores)) == (0, 2), "what was judged of either; the rest could change nothing"
    with reads_of(scene.registry, "window_scores") as scores:
        scene.watch(monitor, serves=("bot@1", "bot@2"))
    assert len(scores) == 1, "only the newer one may have come by one since"


def test_a_bad_version_that_was_promoted_is_told_after_its_first_window_and_named_as_the_deploy(scene: Scene) -> None:
    policy = RetrainingPolicy(min_rows=5, signals=("refusals",))
    scene.registry.policies.set("bot", policy, by="ada", reason="test")
    scene.usual(80)
    scene.watch()
    scene.promote(2, "tuned by hand")
    answers = {"served_version": 2, "assigned_version": 2}
    scene.correct(scene.usual(20, answer=REFUSES, **answers))
    scene.watch(serves=("bot@1", "bot@2"))
    (episode,) = scene.registry.episodes.all("bot")
    assert (episode.version, episode.signal, episode.severity) == (2, "refusals", "page")
    assert episode.evidence["causes"][0]["kind"] == "deploy"
    assert episode.evidence["reference"]["version"] == 1, "it has none of its own yet"
    (anchor,) = scene.scores("prompt_drift", version=2)
    assert anchor.verdict == "not enough data", "another version's questions are no measure"
    assert scene.requests() == []
    scene.usual(40, **answers)
    scene.watch(serves=("bot@1", "bot@2"))
    scene.usual(40, **answers)
    scene.watch(serves=("bot@1", "bot@2"))
    assert [score.verdict for score in scene.scores("prompt_drift", version=2)][-1] != "not enough data"
