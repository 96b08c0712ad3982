"""A challenger's windows are held against what its champion answers at the same time; a rollout reads what they say."""

from __future__ import annotations

import functools
import random

import pytest
import sqlalchemy as sa

from monitor.scene import SMALL, Scene
from tests_support import beat_engine, request_record
from tuneloop.monitor.challengers import MOST_WINDOWS, SPEND_S, Challengers, trials_of
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.scorer import Scorer
from tuneloop.monitor.signals import (
    DETECTORS_OF_TRIALS,
    TRIAL_ANSWER_PERPLEXITY,
    TRIAL_BROKEN_ANSWERS,
    TRIAL_CORRECTION_PERPLEXITY,
    TRIAL_REFUSALS,
)
from tuneloop.monitor.trials import Arms, measured, said_of
from tuneloop.registry.nouns import Arm, RequestRecord, WindowScore
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.judging import judgement, trial_of
from tuneloop.registry.tables import BLANK, feedback

REFUSES = "I'm sorry, but I can't help with that."
BOTH = ("bot@1", "bot@2")


def try_out(scene: Scene, share_bp: int = 5_000) -> None:
    """Version 2 gets a share beside the champion."""
    arms = [Arm(version=2, weight_bp=share_bp), Arm(version=1, weight_bp=10_000 - share_bp)]
    done = len(scene.registry.routes.history("bot"))
    scene.registry.routes.write("bot", arms, by="ada", reason="a trial", expected_revision=done)
    scene.clock.advance(1)


def both(scene: Scene, n: int, *, champion: str | None = "It does.", challenger: str | None = "It does.") -> None:
    """Users ask both alike, in turn."""
    for _ in range(n):
        scene.usual(1, answer=champion)
        scene.usual(1, answer=challenger, assigned_version=2, served_version=2)
    scene.clock.advance(60)


def judge_of(scene: Scene, **changes: object) -> Challengers:
    """The part of a fresh process that looks at challengers."""
    scorer = Scorer(scene.registry.fleet, scene.client, concurrency=2, max_tokens=2_048)
    return Challengers(scene.registry, scene.settings.model_copy(update=changes), scorer, Metrics())


def watch(scene: Scene, *serves: str, challengers: Challengers | None = None) -> None:
    """One look at the challengers alone, of a fresh process unless one is given, while the engine serves these."""
    beat_engine(scene.registry, *(serves or BOTH), url=scene.engine.url, at=scene.clock.now)
    assert (challengers or judge_of(scene)).watch(scene.registry.routes.current_all()) == {}


def verdicts(scene: Scene, signal: str) -> list[str]:
    return [score.verdict for score in scene.scores(signal, version=2)]


def check_of(scene: Scene, *wanted: str) -> str | None:
    """The verdict of a rollout's check of quality."""
    limits = Limits.model_validate({"signals": list(wanted)})
    trial = trial_of(scene.registry, "bot", 2)
    report = judgement(scene.registry, "bot", 2, limits, trial)
    return next((check.verdict for check in report.checks if check.name == "quality"), None)


def test_a_challenger_that_refuses_more_than_the_champion_at_the_same_time_fails_its_rollouts_check(
    scene: Scene,
) -> None:
    try_out(scene)
    both(scene, 20, challenger=REFUSES)
    scene.watch(serves=BOTH)
    assert verdicts(scene, TRIAL_REFUSALS) == ["drift"]
    (score,) = scene.scores(TRIAL_REFUSALS, version=2)
    assert score.detail["said"].startswith("20 of 20 refuse, champion 0 of ")
    assert check_of(scene) == "fail"
    assert scene.registry.episodes.all("bot") == [], "the rollout acts, nobody is paged"


def test_what_the_champion_does_worse_at_the_same_time_too_counts_against_nobody(scene: Scene) -> None:
    try_out(scene)
    both(scene, 40, champion=REFUSES, challenger=REFUSES)
    watch(scene)
    assert "drift" not in verdicts(scene, TRIAL_REFUSALS)
    assert check_of(scene, TRIAL_REFUSALS) == "inconclusive", "as much, and too little to know it within the margin"


def test_one_window_is_too_little_to_pass_and_many_are_enough(scene: Scene) -> None:
    try_out(scene)
    both(scene, 20)
    watch(scene)
    assert "not enough data" in verdicts(scene, TRIAL_REFUSALS)
    assert check_of(scene, TRIAL_REFUSALS, TRIAL_BROKEN_ANSWERS) == "inconclusive"
    both(scene, 60)
    watch(scene)
    assert len(verdicts(scene, TRIAL_REFUSALS)) == 4
    assert check_of(scene, TRIAL_REFUSALS, TRIAL_BROKEN_ANSWERS) == "pass"


def test_a_challengers_window_that_time_has_closed_is_judged_with_ten_and_each_answer_once(scene: Scene) -> None:
    def judged(*, daily: bool) -> list[int]:
        watch(scene, challengers=judge_of(scene, window_s=86_400 if daily else 0))
        return sorted(score.n for score in scene.scores(TRIAL_REFUSALS, version=2))

    try_out(scene)
    both(scene, 9)
    scene.clock.advance(86_400)
    assert judged(daily=True) == [], "nine are too few, however old"
    both(scene, 3, challenger=REFUSES)
    assert judged(daily=False) == [], "without a longest time it waits for twenty"
    assert judged(daily=True) == [12]
    both(scene, 12)
    assert judged(daily=True) == [12], "these are not old enough"
    scene.clock.advance(86_400)
    assert judged(daily=True) == [12, 12]
    first, second = (set(score.request_ids) for score in scene.scores(TRIAL_REFUSALS, version=2))
    assert first.isdisjoint(second)


def test_a_challenger_that_is_surprised_by_its_own_answers_and_by_what_users_want_is_told(scene: Scene) -> None:
    scene.engine.more = lambda name, _question: 6.0 if name == "bot@2" else 0.0
    try_out(scene)
    both(scene, 20)
    scene.correct(scene.registry.traffic.window("bot"))
    watch(scene)
    assert verdicts(scene, TRIAL_ANSWER_PERPLEXITY) == ["drift"]
    assert verdicts(scene, TRIAL_CORRECTION_PERPLEXITY) == ["drift"]
    assert len(scene.engine.bodies) <= 2 * 2 * 20, "no more of the champion is read than of the challenger"
    assert check_of(scene) == "fail"


@pytest.mark.parametrize("gone", [False, True])
def test_corrections_that_come_after_their_window_was_read_are_counted(scene: Scene, gone: bool) -> None:
    try_out(scene)
    both(scene, 20)
    of_arms = scene.registry.traffic.window("bot")
    scene.correct(of_arms[:4])  # two of either version's answers
    watch(scene)
    scene.correct(of_arms[:14])
    if gone:  # their text, by its age
        with scene.registry.database.writing() as connection:
            connection.execute(sa.update(feedback).values(correction=BLANK))
    both(scene, 20)
    watch(scene)
    first, second = (score.detail for score in scene.scores(TRIAL_CORRECTION_PERPLEXITY, version=2))
    assert [(found["corrected"], found["late"]) for found in (first, second)] == [(2, 0), (0, 5)]
    assert "too late" not in first["said"]
    assert second["said"].endswith("; 5 corrections of earlier windows came too late to be read")
    assert second["reason"] == second["said"], "told where there is too little to judge by"


def test_an_engine_that_is_away_leaves_what_it_would_say_open_and_the_rest_judged(scene: Scene) -> None:
    try_out(scene)
    both(scene, 20, challenger=REFUSES)
    watch(scene, "bot@1")
    (unread,) = scene.scores(TRIAL_ANSWER_PERPLEXITY, version=2)
    assert unread.verdict == "not enough data"
    assert "no live engine serves bot@2" in unread.detail["reason"]
    assert verdicts(scene, TRIAL_REFUSALS) == ["drift"]


def test_a_monitor_killed_within_a_window_judges_it_once(scene: Scene) -> None:
    try_out(scene)
    both(scene, 20, challenger=REFUSES)
    store, stored = scene.registry.episodes.add_score, 0

    def dies(score: object) -> bool:
        nonlocal stored
        stored += 1
        if stored > 2:
            raise KeyboardInterrupt
        return store(score)  # type: ignore[arg-type]

    scene.registry.episodes.add_score = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        watch(scene)
    scene.registry.episodes.add_score = store  # type: ignore[method-assign]
    for _ in range(2):
        watch(scene)
    assert {len(verdicts(scene, signal)) for signal in DETECTORS_OF_TRIALS} == {1}


def test_a_new_trial_begins_anew_and_what_has_no_share_is_not_judged(scene: Scene) -> None:
    try_out(scene)
    both(scene, 20, challenger=REFUSES)
    watch(scene)
    try_out(scene, 0)
    both(scene, 20, challenger=REFUSES)
    assert trials_of(scene.registry, scene.registry.routes.current("bot")) == []
    try_out(scene)
    both(scene, 19)
    watch(scene)
    assert len(verdicts(scene, TRIAL_REFUSALS)) == 1
    both(scene, 1)
    watch(scene)
    first, second = scene.scores(TRIAL_REFUSALS, version=2)
    assert (first.verdict, second.verdict) == ("drift", "not enough data")
    assert second.detail["said"].startswith("0 of 20 refuse")


def test_a_trial_of_more_revisions_than_a_history_shows_is_still_the_same(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_out(scene)
    both(scene, 20)
    watch(scene)
    for share_bp in (1_000, 2_000, 3_000, 4_000):
        try_out(scene, share_bp)
    short = functools.partial(scene.registry.routes.history, limit=2)
    monkeypatch.setattr(scene.registry.routes, "history", short)
    both(scene, 20)
    scene.watch(serves=BOTH)
    assert [score.detail["window"] for score in scene.scores(TRIAL_REFUSALS, version=2)] == [0, 1]


def test_a_trial_whose_revisions_cannot_be_read_is_said_and_ends_no_pass(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    try_out(scene)
    try_out(scene)
    both(scene, 20)
    with scene.registry.database.writing() as connection:
        connection.execute(sa.text("UPDATE routes SET arms = '[]' WHERE revision = 2"))
    assert scene.watch(serves=BOTH).failure == ""
    assert "bot@2 is not judged beside its champion: " in caplog.text
    assert scene.scores(TRIAL_REFUSALS, version=2) == []


def test_the_monitor_and_a_rollout_mean_the_same_by_a_trial(scene: Scene) -> None:
    try_out(scene, 1_000)
    arms = [Arm(version=v, weight_bp=share) for v, share in ((2, 1_000), (1, 500), (3, 8_500))]
    for _ in range(2):  # beside another champion, twice
        done = scene.registry.routes.current("bot").revision
        scene.registry.routes.write("bot", arms, by="ada", reason="a trial", expected_revision=done)
        scene.clock.advance(1)
    newest = scene.registry.routes.current("bot")
    trials = trials_of(scene.registry, newest)
    assert [(t.version, t.champion) for t in trials] == [(2, 3), (1, 3)]
    assert {t.since for t in trials} == {scene.registry.routes.at("bot", newest.revision - 1).at}
    assert [trial_of(scene.registry, "bot", t.version).since for t in trials] == [t.since for t in trials]


def test_what_somebody_pinned_or_the_champion_had_to_answer_is_in_no_arm(scene: Scene) -> None:
    try_out(scene)
    scene.usual(30, assigned_version=None, served_version=2, answer=REFUSES)
    scene.usual(30, assigned_version=2, served_version=1, answer=REFUSES)
    scene.clock.advance(60)
    watch(scene)
    assert scene.scores(TRIAL_REFUSALS, version=2) == []


def arms_of(scene: Scene, **changes: object) -> Arms:
    champion, challenger = scene.usual(30), scene.usual(20, **changes)
    return Arms(tuple(champion), tuple(challenger))


def test_answers_kept_without_their_text_are_not_enough_data(scene: Scene) -> None:
    found = measured(TRIAL_REFUSALS, arms_of(scene, answer=None), {}, {})
    assert (found.values, found.why) == (
        {},
        "20 of the challenger's 20 answers are on record without their text",
    )
    said = said_of(TRIAL_REFUSALS, [found.values], SMALL)
    assert said.verdict == "not enough data"
    assert measured(TRIAL_REFUSALS, Arms((), tuple(scene.usual(20))), {}, {}).why.startswith("the champion answered")


@pytest.mark.parametrize("signal", [TRIAL_REFUSALS, TRIAL_ANSWER_PERPLEXITY])
def test_who_is_worse_by_just_what_is_allowed_is_seldom_blamed_and_who_is_three_times_as_much_nearly_always(
    signal: str,
) -> None:
    """100 trials of up to 8 windows, looked at after each; each signal has a quarter of 5 % over all looks."""
    rng = random.Random(3)

    def answers(more: float) -> list[float]:
        if signal == TRIAL_REFUSALS:
            return [sum(rng.random() < 0.3 + more * SMALL.trial_share_margin for _ in range(40)), 40]
        return [rng.gauss(2.6 + more * SMALL.trial_nats_margin, 0.9) for _ in range(40)]

    def blamed(more: float) -> int:
        trials = [[{"champion": answers(0), "challenger": answers(more)} for _ in range(8)] for _ in range(100)]
        looks = [(said_of(signal, trial[: n + 1], SMALL) for n in range(8)) for trial in trials]
        return sum(any(said.verdict == "drift" for said in look) for look in looks)

    assert blamed(1) <= 4
    assert blamed(3) >= 90


def test_no_more_windows_of_a_trial_are_judged_than_it_may_cost(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_WINDOWS * SMALL.window >= 1_000
    monkeypatch.setattr("tuneloop.monitor.challengers.MOST_WINDOWS", 2)
    try_out(scene)
    both(scene, 60)
    watch(scene)
    assert len(verdicts(scene, TRIAL_REFUSALS)) == 2


def test_an_answer_that_comes_after_its_window_was_cut_is_in_the_next_and_none_is_in_two(scene: Scene) -> None:
    def asked_now(number: int) -> RequestRecord:
        return request_record(number, scene.clock.now, assigned_version=2, served_version=2)

    try_out(scene)
    too_late = asked_now(9_000)
    scene.clock.advance(scene.settings.late_s)
    both(scene, 10)
    slow = asked_now(9_001)
    both(scene, 10)
    watch(scene)
    scene.registry.traffic.add_requests([slow, too_late])
    both(scene, 38)
    watch(scene)
    first, second = scene.scores(TRIAL_REFUSALS, version=2)
    assert slow.id in second.request_ids
    assert too_late.id not in second.request_ids
    assert len({*first.request_ids, *second.request_ids}) == 2 * scene.settings.window
    beside = [score.detail["measured"]["champion"][1] for score in (first, second)]
    assert beside == [19, 18], "the champion's of the first window's time are not counted again"
    scene.registry.traffic.add_requests([asked_now(9_002)])
    scene.clock.advance(60)
    watch(scene)
    assert len(scene.scores(TRIAL_REFUSALS, version=2)) == 3


def test_a_spool_of_late_answers_alone_is_held_against_the_champions_of_its_time(scene: Scene) -> None:
    try_out(scene)
    late = []
    for number in range(20):
        scene.usual(1)
        late.append(request_record(9_000 + number, scene.clock.now, assigned_version=2, served_version=2))
    both(scene, 20)
    watch(scene)
    scene.registry.traffic.add_requests(late)
    watch(scene)
    _, second = scene.scores(TRIAL_REFUSALS, version=2)
    assert second.request_ids == tuple(record.id for record in late)
    assert second.detail["measured"]["champion"] == [0, 20]


def takes(scene: Scene, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[WindowScore]:
    """Every judgement takes so long by the scene's clock; those made, in order."""
    store, made = scene.registry.episodes.add_score, []

    def slowly(score: WindowScore) -> bool:
        scene.clock.advance(seconds)
        made.append(score)
        return store(score)

    monkeypatch.setattr(scene.registry.episodes, "add_score", slowly)
    return made


def test_a_backlog_of_challengers_takes_a_bounded_part_of_a_pass_and_they_take_turns(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, challengers = takes(scene, monkeypatch, SPEND_S / len(DETECTORS_OF_TRIALS)), judge_of(scene)
    try_out(scene)
    both(scene, 60)
    arms = [Arm(version=v, weight_bp=share) for v, share in ((2, 2_000), (3, 2_000), (1, 6_000))]
    scene.registry.routes.write("bot", arms, by="ada", reason="another", expected_revision=2)
    scene.clock.advance(1)
    for _ in range(40):
        scene.usual(1)
        scene.usual(1, assigned_version=3, served_version=3)
    scene.clock.advance(60)
    looks = []
    for _ in range(6):
        watch(scene, *BOTH, "bot@3", challengers=challengers)
        looks.append([(score.version, score.detail["window"]) for score in made if score.signal == TRIAL_REFUSALS])
        made.clear()
    assert looks == [[(3, 0)], [(2, 0)], [(3, 1)], [(2, 1)], [(2, 2)], []], "the newest first, then whose turn it is"


def test_no_champion_of_any_model_waits_for_a_challenger(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.registry.routes.write("zoo", [Arm(version=1, weight_bp=10_000)], by="ada", reason="r", expected_revision=0)
    try_out(scene)
    both(scene, 60)
    scene.usual(40, model="zoo")
    scene.usual(40, model="zoo")
    scene.clock.advance(60)
    made = takes(scene, monkeypatch, SPEND_S)
    beat_engine(scene.registry, *BOTH, "zoo@1", url=scene.engine.url, at=scene.clock.now)
    states = scene.monitor(late_s=0.0).run_once()
    assert [state.failure for state in states] == ["", ""]
    of_trials = [score.signal in DETECTORS_OF_TRIALS for score in made]
    assert {score.model for score in made} == {"bot", "zoo"}
    assert of_trials == sorted(of_trials)
    assert sum(of_trials) == len(DETECTORS_OF_TRIALS), "one window of a backlog of three"


def test_a_look_at_one_trial_that_fails_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    try_out(scene)
    both(scene, 20)
    monkeypatch.setattr("tuneloop.monitor.challengers.measured", lambda *_: 1 / 0)
    state = scene.watch(serves=BOTH)
    assert state.failure == "ZeroDivisionError: division by zero"


def test_the_champions_answers_are_taken_over_all_of_the_window(scene: Scene) -> None:
    def champions(records: list[RequestRecord]) -> None:
        scene.usual(200)
        records += scene.usual(10, assigned_version=2, served_version=2)

    try_out(scene)
    mine: list[RequestRecord] = []
    champions(mine)
    champions(mine)
    scene.clock.advance(60)
    watch(scene)
    (score,) = scene.scores(TRIAL_REFUSALS, version=2)
    hits, n = score.detail["measured"]["champion"]
    assert (hits, 0 < n <= SMALL.reference + 8) == (0, True)
