"""Corrections that nothing can be learned from are told, hold retraining back, and are not among its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import pytest

from monitor.scene import Scene
from tuneloop.monitor.answers import bad_corrections
from tuneloop.monitor.comparison import Comparison
from tuneloop.monitor.delivery.page import next_commands
from tuneloop.monitor.reference import reference_of
from tuneloop.monitor.signals import BAD_CORRECTIONS
from tuneloop.monitor.windows import Window
from tuneloop.registry.nouns import Feedback, RequestRecord
from tuneloop.registry.policies import RetrainingPolicy

Says = Callable[[RequestRecord], str]


def good(record: RequestRecord) -> str:
    return f"That is what it does: {record.question}"


def corrected(scene: Scene, records: Sequence[RequestRecord], says: Says = good) -> None:
    items = [
        Feedback(id=f"fb-{r.id}", request_id=r.id, at=r.at + timedelta(seconds=1), thumb="down", correction=says(r))
        for r in records
    ]
    scene.registry.traffic.add_feedback(items)
    scene.clock.advance(1)  # the last came a second after its answer


@pytest.mark.parametrize(
    ("says", "worst"),
    [
        (lambda _: "See the manual.", "the same text for several questions"),
        (lambda record: f" {(record.answer or '').upper()}\n", "what the answer said already"),
        (lambda _: "no no no " * 20, "repeating themselves"),
        (lambda record: f"I can't help with {record.question}", "refusals"),
    ],
)
def test_each_kind_is_told_with_what_most_of_them_are(scene: Scene, says: Says, worst: str) -> None:
    monitor = scene.monitor(bad_corrections=True)
    corrected(scene, scene.usual(80, answer="It adds."))
    corrected(scene, scene.usual(20, answer="It adds."), says)
    scene.watch(monitor, serves=())  # no engine reads corrections: they would be a second signal
    assert [score.verdict for score in scene.scores(BAD_CORRECTIONS)] == ["none", "drift"]
    episode = scene.the_episode()
    assert (episode.signal, episode.runbook) == (BAD_CORRECTIONS, "docs/runbooks/bad_corrections.md")
    assert episode.severity == "ticket"
    said = f"gets more corrections that nothing can be learned from (0% → 100%, most of them {worst})"
    assert said in episode.evidence["summary"]
    assert [cause["kind"] for cause in episode.evidence["causes"]] == ["feedback"]


def test_where_few_answers_are_usual_the_same_ones_are_no_alarm(scene: Scene) -> None:
    labels = ["billing", "delivery"]
    corrected(scene, scene.usual(100), lambda record: labels[int(record.id.removeprefix("req-")) % 2])
    scene.watch(scene.monitor(bad_corrections=True), serves=())
    first, second = scene.scores(BAD_CORRECTIONS)
    assert (first.verdict, second.verdict) == ("none", "none")
    assert second.detail["shares"] == {"reference": 1.0, "window": 1.0}


def test_while_they_are_raised_nothing_is_trained_and_then_only_on_what_came_after(scene: Scene) -> None:
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=30), by="ada", reason="test")

    def window(says: Says = good) -> None:
        corrected(scene, scene.drifted(20, answer="It adds."), says)
        scene.watch(scene.monitor(bad_corrections=True), serves=())

    corrected(scene, scene.usual(60, answer="It adds."))
    window(lambda _: "See the manual.")
    drift = scene.the_episode()
    assert {"prompt_drift", BAD_CORRECTIONS} <= drift.evidence["signals"].keys()
    assert [cause["kind"] for cause in drift.evidence["causes"]] == ["feedback", "drift"]
    assert "(this episode says so); it waits until they are what they were" in drift.done[-1]
    window()
    assert scene.requests() == [], "one quiet window is none yet"
    window()
    after = scene.scores(BAD_CORRECTIONS)[1]
    assert f"20 of 30 corrections since {after.window_end:%Y-%m-%dT%H:%M:%S}Z" in scene.the_episode().done[-1]
    window()
    (request,) = scene.requests()
    assert "until then corrections were bad" in scene.the_episode().done[-1]
    assert request.window_start > after.window_end
    assert request.rows == 40


@pytest.mark.parametrize(("watched", "filed"), [(False, 30), (True, None)])
def test_what_no_window_has_been_judged_of_yet_is_not_learned_from(
    scene: Scene, watched: bool, filed: int | None
) -> None:
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=30), by="ada", reason="test")
    corrected(scene, scene.usual(60))
    corrected(scene, scene.drifted(20))
    corrected(scene, scene.drifted(10), lambda _: "See the manual.")
    scene.watch(scene.monitor(bad_corrections=watched), serves=())
    assert [request.rows for request in scene.requests()] == ([] if filed is None else [filed])


def held(scene: Scene) -> None:
    """A drift whose corrections are bad, which nobody is to learn from."""
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=10), by="ada", reason="test")
    corrected(scene, scene.usual(60))
    corrected(scene, scene.drifted(20), lambda _: "See the manual.")
    scene.watch(scene.monitor(bad_corrections=True), serves=())
    assert "it waits until they are what they were" in scene.the_episode().done[-1]


def test_they_hold_nothing_back_where_too_few_correct_to_tell(scene: Scene) -> None:
    held(scene)
    for _ in range(3):  # of nine answers nobody can tell, and the drift goes on
        corrected(scene, scene.drifted(20)[:9])
        scene.watch(scene.monitor(bad_corrections=True), serves=())
    (request,) = scene.requests()
    assert request.rows == 18, "of the window after the last that alarmed none"


def test_they_hold_nothing_back_where_nobody_watches_them_any_more(scene: Scene) -> None:
    held(scene)
    corrected(scene, scene.drifted(20))
    scene.watch(serves=())
    (request,) = scene.requests()
    assert request.rows == 20, "what was bad while they were watched stays out"


def test_they_are_the_likeliest_cause_of_what_else_corrections_raise(scene: Scene) -> None:
    monitor = scene.monitor(bad_corrections=True)
    corrected(scene, scene.usual(80))
    scene.watch(monitor)
    scene.engine.unknown = ""  # from now on every correction is unlikely
    corrected(scene, scene.usual(20), lambda _: "See the manual.")
    scene.watch(monitor)
    episode = scene.the_episode()
    assert episode.evidence["signals"].keys() == {"correction_perplexity", BAD_CORRECTIONS}
    assert episode.evidence["causes"][0]["kind"] == "feedback"
    assert episode.evidence["causes"][0]["explains"] == ["correction_perplexity", BAD_CORRECTIONS]
    assert f"tuneloop feedback {episode.model}" in next_commands(episode)


def test_a_new_version_is_held_against_its_own_beginnings_alone(scene: Scene) -> None:
    corrected(scene, scene.usual(80))
    scene.watch(scene.monitor(bad_corrections=True), serves=())
    scene.promote(2)
    answers = {"served_version": 2, "assigned_version": 2}
    corrected(scene, scene.usual(20, **answers), lambda _: "See the manual.")
    scene.watch(scene.monitor(bad_corrections=True), serves=())
    (score,) = scene.scores(BAD_CORRECTIONS, version=2)
    assert score.verdict == "not enough data"
    assert scene.registry.episodes.all("bot") == []


def test_nobody_who_corrects_ends_it(scene: Scene) -> None:
    corrected(scene, scene.usual(60, answer="It adds."))
    corrected(scene, scene.usual(20, answer="It adds."), lambda _: "See the manual.")
    for _ in range(3):
        scene.watch(scene.monitor(bad_corrections=True), serves=())
        scene.usual(20)
    assert scene.the_episode().state == "resolved"
    (*_, last) = scene.scores(BAD_CORRECTIONS)
    assert last.detail["reason"] == "0 answers of the window were corrected; 10 are needed"


def test_steady_bad_corrections_alarm_no_oftener_than_the_level(scene: Scene) -> None:
    """Also where one text is given for many questions: it is counted over both sides together."""
    records = scene.usual(100, answer="It adds.")
    alarms, level, rounds = 0, 0.05, 300
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        dealt = [records[index] for index in rng.permutation(100)]
        bad = set(rng.permutation(100)[:30].tolist())
        says = {r.id: "See the manual." if place in bad else good(r) for place, r in enumerate(dealt)}
        window = Window(0, tuple(dealt[60:]), 40, dealt[-1].at)
        held = Comparison("bot", 1, reference_of(dealt[:60], frozen=True), window, says, {})
        alarms += bad_corrections(held, level, rng).verdict == "drift"
    assert alarms <= level * rounds + 3 * (level * rounds) ** 0.5
