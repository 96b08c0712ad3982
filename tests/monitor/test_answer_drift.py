"""Drift of what answers say: seen by the test that sees other questions, inside the same budget, and never by itself a
reason to train."""

from __future__ import annotations

from datetime import timedelta

import pytest

from monitor.questions import NUMPY, STDLIB, ask, topics
from monitor.scene import SMALL, Scene
from tests_support import Clock, alert_episode
from tuneloop.monitor.causes import Change, causes_of, explained
from tuneloop.monitor.policy import File, Hold, decide
from tuneloop.monitor.signals import ANSWER_DRIFT, PROMPT_DRIFT, budget_share, signals_of
from tuneloop.registry.policies import RetrainingPolicy

WATCHED = SMALL.model_copy(update={"answer_drift": True})


def answered(scene: Scene, n: int, modules: tuple[str, ...]) -> None:
    """Usual questions, answered out of these modules' documentation."""
    said = [text for _, text in scene.rng.sample(topics(modules), n)]
    for question, answer in zip(ask(STDLIB, n, scene.rng), said, strict=True):
        scene.traffic([question], answer=answer)


def test_other_answers_to_the_same_questions_are_seen_and_ask_for_no_training(scene: Scene) -> None:
    scene.settings = WATCHED
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=1), by="ada", reason="test")
    answered(scene, 80, STDLIB)
    answered(scene, 20, NUMPY)
    scene.correct(scene.usual(1))
    scene.watch(serves=())
    assert [score.verdict for score in scene.scores(ANSWER_DRIFT)] == ["none", "drift"]
    assert [score.verdict for score in scene.scores(PROMPT_DRIFT)] == ["none", "none"]
    episode = scene.the_episode()
    assert (list(episode.evidence["signals"]), episode.severity) == ([ANSWER_DRIFT], "ticket")
    assert episode.evidence["summary"].startswith("bot@1 gives other answers than before ('")
    assert "no retraining yet: the policy of bot retrains on" in episode.done[-1]
    assert scene.requests() == []
    (score, _) = scene.scores(ANSWER_DRIFT)
    assert score.detail["alpha"] == scene.scores(PROMPT_DRIFT)[0].detail["alpha"], "a part as large, one level"


def test_answers_without_their_text_and_those_of_a_new_champion_are_not_enough_data(scene: Scene) -> None:
    scene.settings = WATCHED
    answered(scene, 60, STDLIB)
    scene.traffic(ask(STDLIB, 20, scene.rng), answer=None)
    scene.watch(serves=())
    (score,) = scene.scores(ANSWER_DRIFT)
    assert (score.verdict, score.detail["too_little_text"]) == ("not enough data", True)
    scene.promote(2)
    scene.traffic(ask(STDLIB, 20, scene.rng), answer="Something else.", served_version=2)
    scene.watch(serves=())
    (lent,) = scene.scores(ANSWER_DRIFT, version=2)
    assert lent.verdict == "not enough data", "each version is held against its own beginnings"


def test_it_has_its_part_of_the_budget_where_it_is_asked_for_and_takes_nothing_elsewhere() -> None:
    assert ANSWER_DRIFT not in signals_of(SMALL)
    assert sum(budget_share(signal, WATCHED) for signal in signals_of(WATCHED)) == pytest.approx(1.0)
    assert (
        budget_share(ANSWER_DRIFT, WATCHED) == budget_share(PROMPT_DRIFT, WATCHED) < budget_share(PROMPT_DRIFT, SMALL)
    )


@pytest.mark.parametrize(
    ("signals", "likeliest", "files"),
    [
        ((ANSWER_DRIFT,), "deploy", False),
        ((ANSWER_DRIFT, "perplexity"), "deploy", False),
        ((ANSWER_DRIFT, "perplexity", PROMPT_DRIFT), "drift", True),
    ],
)
def test_other_answers_after_a_deploy_are_its_doing_unless_questions_changed_too(
    clock: Clock, signals: tuple[str, ...], likeliest: str, *, files: bool
) -> None:
    now = clock()
    before = {"to": (now - timedelta(hours=2)).isoformat()}
    episode = alert_episode(now, evidence={"signals": {name: {} for name in signals}, "reference": before})
    deploy = Change((now - timedelta(hours=1)).isoformat(), "deploy", "route.set of bot by ada")
    assert causes_of(episode, [deploy])[0].kind == likeliest
    decision = decide(explained(episode, [deploy]), RetrainingPolicy(min_rows=1), [], lambda _after: 9, now)
    assert isinstance(decision, File if files else Hold)


def test_no_policy_may_name_it() -> None:
    with pytest.raises(ValueError, match="Input should be"):
        RetrainingPolicy.model_validate({"signals": ["answer_drift"]})
