"""Corrections that come once the window of their answer is judged are looked at too, each once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import pytest

from monitor.scene import SMALL, Scene
from registry.aged import retain
from tuneloop.monitor.answers import bad_corrections
from tuneloop.monitor.comparison import Comparison, Judgement
from tuneloop.monitor.filing import pursue
from tuneloop.monitor.judging import Judge
from tuneloop.monitor.late_corrections import LateCorrections
from tuneloop.monitor.quality import share_rise_test
from tuneloop.monitor.reference import reference_of
from tuneloop.monitor.signals import BAD_CORRECTIONS
from tuneloop.monitor.windows import Window
from tuneloop.registry.nouns import Feedback, RequestRecord, WindowScore
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retention_policy import RetentionPolicy

DAY_S = 86_400
Says = Callable[[RequestRecord], str]


def good(record: RequestRecord) -> str:
    return f"That is what it does: {record.question}"


def bad(_: RequestRecord) -> str:
    return "See the manual."


def corrected(scene: Scene, records: Sequence[RequestRecord], says: Says = good) -> None:
    """Users correct these now."""
    now = scene.clock.now
    items = [Feedback(id=f"fb-{r.id}", request_id=r.id, at=now, correction=says(r)) for r in records]
    scene.registry.traffic.add_feedback(items)


def corrected_at_once(scene: Scene, records: Sequence[RequestRecord]) -> None:
    """Users correct each of these well, a second after its answer."""
    soon = timedelta(seconds=1)
    items = [Feedback(id=f"fb-{r.id}", request_id=r.id, at=r.at + soon, correction=good(r)) for r in records]
    scene.registry.traffic.add_feedback(items)
    scene.clock.advance(1)


def judged(scene: Scene) -> WindowScore:
    """The next window of usual questions that nobody corrects, judged."""
    scene.usual(20, answer="It adds.")
    return watched(scene)


def watched(scene: Scene) -> WindowScore:
    scene.watch(scene.monitor(bad_corrections=True), serves=())
    return max(scene.scores(BAD_CORRECTIONS), key=lambda score: int(score.detail["window"]))


def test_bad_ones_that_come_late_alarm_with_the_window_they_came_in_and_once(scene: Scene) -> None:
    corrected_at_once(scene, scene.usual(60, answer="It adds."))
    late = scene.usual(20, answer="It adds.")
    assert watched(scene).verdict == "not enough data"
    corrected(scene, late, bad)
    told = judged(scene)
    assert (told.detail["window"], told.verdict, told.n) == (1, "drift", 20)
    assert told.detail["corrected_late"] == [record.id for record in late]
    assert {example["request_id"] for example in told.detail["examples"]} <= {record.id for record in late}
    assert "0% → 100%" in scene.the_episode().evidence["summary"]
    after = judged(scene)
    assert (after.verdict, after.detail.get("corrected_late")) == ("not enough data", None)


def test_late_ones_that_are_too_few_wait_for_more(scene: Scene) -> None:
    corrected_at_once(scene, scene.usual(60, answer="It adds."))
    late = scene.usual(20, answer="It adds.")
    watched(scene)
    corrected(scene, late[:6], bad)
    assert judged(scene).verdict == "not enough data"
    corrected(scene, late[6:12], bad)
    assert (told := judged(scene)).verdict == "drift"
    assert told.detail["corrected_late"] == [record.id for record in late[:12]]


def test_late_ones_hide_among_none_that_came_in_time(scene: Scene) -> None:
    corrected_at_once(scene, scene.usual(60, answer="It adds."))
    late = scene.usual(20, answer="It adds.")
    watched(scene)
    corrected(scene, late, bad)
    corrected_at_once(scene, scene.usual(20, answer="It adds."))
    assert (told := watched(scene)).verdict == "drift"
    assert told.n == 40, "both were looked at"
    assert told.detail["unit"] == "share of corrections that came late"


def test_good_ones_that_come_late_raise_nothing(scene: Scene) -> None:
    corrected_at_once(scene, scene.usual(60, answer="It adds."))
    late = scene.usual(20, answer="It adds.")
    watched(scene)
    corrected(scene, late)
    assert judged(scene).verdict == "none"


def test_what_came_after_the_last_judgement_counts_for_no_retraining_until_it_is_looked_at(scene: Scene) -> None:
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=10), by="ada", reason="test")
    corrected_at_once(scene, scene.usual(60, answer="It adds."))
    late = scene.drifted(20, answer="It adds.")
    watched(scene)
    corrected(scene, late)
    scene.clock.advance(1)
    scene.watch(scene.monitor(bad_corrections=True), serves=())
    assert scene.requests() == []
    scene.drifted(20, answer="It adds.")
    assert watched(scene).verdict == "none"
    assert [request.rows for request in scene.requests()] == [20]


def test_what_comes_between_the_judgement_and_the_filing_is_learned_by_no_worker(scene: Scene) -> None:
    scene.registry.policies.set("bot", RetrainingPolicy(enabled=False), by="ada", reason="test")
    corrected_at_once(scene, scene.usual(60, answer="It adds."))
    corrected_at_once(scene, drifted := scene.drifted(20, answer="It adds."))
    judgement = watched(scene)
    corrected_again = [
        Feedback(id=f"again-{r.id}", request_id=r.id, at=scene.clock(), correction=bad(r)) for r in drifted
    ]
    scene.registry.traffic.add_feedback(corrected_again)
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=10), by="ada", reason="test")
    scene.watch(scene.monitor(bad_corrections=True), serves=())
    (request,) = scene.requests()
    assert request.judged_until is not None
    assert request.judged_until.isoformat() == judgement.detail["looked_until"]
    said = scene.registry.traffic.corrections(
        "bot", since=request.window_start, until=request.window_end, by=request.learns_until
    )
    learned = [(record.id, text) for record, text in said]
    assert learned == [(record.id, good(record)) for record in drifted]
    assert request.rows == 20


@pytest.mark.parametrize(("on", "filed"), [(False, [20]), (True, [])])
def test_where_it_has_judged_nothing_yet_nothing_is_learned_from(scene: Scene, on: bool, filed: list[int]) -> None:
    corrected_at_once(scene, scene.usual(60, answer="It adds."))
    drifted = scene.drifted(20, answer="It adds.")
    scene.watch(serves=())
    assert scene.scores(BAD_CORRECTIONS) == [], "it was off"
    corrected(scene, drifted, bad)
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=10), by="ada", reason="test")
    pursue(scene.registry, scene.the_episode(), SMALL.model_copy(update={"bad_corrections": on}))
    assert [request.rows for request in scene.requests()] == filed


@pytest.mark.parametrize(("late", "times"), [(40, 2), (9, 1)])
def test_a_p_value_counts_for_each_kind_there_is_enough_of(scene: Scene, late: int, times: int) -> None:
    records = scene.usual(140, answer="It adds.")
    says = {record.id: good(record) for record in records} | {record.id: bad(record) for record in records[60:64]}
    window = Window(1, tuple(records[60:100]), 40, records[-1].at)
    belated = LateCorrections(records[100 : 100 + late], records[:30], says)
    ids = frozenset(record.id for record in records[:30])
    held = Comparison("bot", 1, reference_of(records[:60], frozen=True), window, says, {}, late=ids, belated=belated)
    result = bad_corrections(held, 0.05, np.random.default_rng(0)).result
    assert result is not None
    alone = share_rise_test((0, 30), (4, 40), 0.05).p_value
    assert result.alpha == 0.05
    assert result.p_value == pytest.approx(times * alone)


def test_corrections_of_the_reference_that_are_gone_are_left_out(scene: Scene) -> None:
    records = scene.usual(100, answer="It adds.")
    says = {record.id: good(record) for record in records[10:]}  # the first ten are gone by their age
    window = Window(1, tuple(records[60:80]), 20, records[-1].at)
    belated = LateCorrections(records[80:], records[:30], says)
    ids = frozenset(record.id for record in records[:30])
    held = Comparison("bot", 1, reference_of(records[:60], frozen=True), window, says, {}, late=ids, belated=belated)
    assert bad_corrections(held, 0.05, np.random.default_rng(0)).verdict == "none"


def test_what_is_said_while_a_window_is_judged_counts_once_the_next_one_is(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perplexities may take an engine minutes, and corrections come meanwhile that this judgement does not see."""
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=10), by="ada", reason="test")
    corrected_at_once(scene, scene.usual(60, answer="It adds."))
    late, judge = scene.drifted(20, answer="It adds."), Judge.judge

    def judge_slowly(self: Judge, signal: str, held: Comparison) -> Judgement:
        if signal == BAD_CORRECTIONS and held.window.index == 0:
            scene.clock.advance(60)
            corrected(scene, late)
            scene.clock.advance(60)
        return judge(self, signal, held)

    monkeypatch.setattr(Judge, "judge", judge_slowly)
    watched(scene)
    assert scene.requests() == []
    scene.drifted(20, answer="It adds.")
    watched(scene)
    assert [request.rows for request in scene.requests()] == [20]


def test_examples_of_late_ones_go_by_the_age_of_their_requests(scene: Scene) -> None:
    monitor = scene.monitor(bad_corrections=True)
    corrected_at_once(scene, scene.usual(60, answer="It adds."))
    late = scene.usual(20, answer="It adds.")
    scene.watch(monitor, serves=())
    scene.clock.advance(20 * DAY_S)
    corrected(scene, late, bad)
    scene.usual(20, answer="It adds.")
    scene.watch(monitor, serves=())
    (told,) = (score for score in scene.scores(BAD_CORRECTIONS) if score.verdict == "drift")
    shown = {example["question"] for example in told.detail["examples"]}
    assert shown
    assert shown <= {record.question for record in late}
    scene.registry.policies.set("bot", RetentionPolicy(text_days=30), by="ada", reason="what the law asks for")
    scene.clock.advance(15 * DAY_S)
    retain(scene.registry)
    left = json.dumps([score.detail for score in scene.scores(BAD_CORRECTIONS)])
    assert not any(json.dumps(question) in left for question in shown)
