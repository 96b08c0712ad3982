"""Quality of answers as windows: worse answers are seen and join their problem's episode, others raise nothing."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from monitor.questions import STDLIB, ask
from monitor.scene import Scene
from tests_support import Clock, request_record
from tuneloop.monitor.detectors import window_alpha
from tuneloop.monitor.quality import (
    is_broken,
    is_refusal,
    length_change_test,
    share_rise_test,
    thumbs_of,
)
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import budget_share
from tuneloop.registry.nouns import Feedback, RequestRecord

AT = Clock().now
DEFAULT_ALPHA = window_alpha(40, 10_000, 1) * budget_share("refusals", MonitorSettings())


def thumb(scene: Scene, records: list[RequestRecord], down: int) -> None:
    """Users' thumbs on all of these, so many of them down."""
    items = [
        Feedback(id=f"t-{r.id}", request_id=r.id, at=r.at + timedelta(seconds=1), thumb="down" if n < down else "up")
        for n, r in enumerate(records)
    ]
    scene.registry.traffic.add_feedback(items)


@pytest.mark.parametrize(
    "answer",
    ["I'm sorry, but that is not something I do.", "I can't help with that.", "As a model I am unable to assist you.",
     "I won’t provide this.", "I cannot really answer that question.", "I must decline."],
)  # fmt: skip
def test_a_refusal_is_known_by_its_words(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    ["`os.remove` raises an error when you cannot help it.", "You can't answer a signal in a thread.",
     "The function cannot create a file.", "I helped.", "x" * 300 + " I can't help with that."],
)  # fmt: skip
def test_an_answer_that_only_speaks_of_not_being_able_to_is_none(answer: str) -> None:
    assert not is_refusal(answer)


def test_an_answer_that_is_empty_or_repeats_itself_is_broken() -> None:
    assert is_broken("  ")
    assert is_broken("it adds one " * 9)
    assert not is_broken("yes yes yes")
    assert not is_broken(" ".join(f"word{n % 20}" for n in range(30)))


def test_the_newest_thumb_counts() -> None:
    def said(number: int, thumb: str | None) -> Feedback:
        return Feedback.model_validate({"id": f"f{number}", "request_id": "r", "at": AT, "thumb": thumb})

    assert thumbs_of({"r": [said(1, "up"), said(2, "down"), said(3, None)], "s": [said(4, None)]}) == {"r": True}


def test_a_share_that_did_not_rise_alarms_at_most_at_the_level_and_a_real_rise_is_seen() -> None:
    """Exact, so a level of 1 % is kept; at the defaults 15 % to 55 % is seen in four of five windows."""
    rng = np.random.default_rng(31)
    false = sum(
        share_rise_test((rng.binomial(120, 0.15), 120), (rng.binomial(40, 0.15), 40), 0.01).alarm for _ in range(500)
    )
    assert false <= 14, "binomial 1e-3 bound of 500 trials at 1 %"
    rng = np.random.default_rng(32)
    seen = sum(
        share_rise_test((rng.binomial(120, 0.15), 120), (rng.binomial(40, 0.55), 40), DEFAULT_ALPHA).alarm
        for _ in range(200)
    )
    assert seen >= 160


def test_the_threshold_of_a_share_is_where_the_alarm_begins() -> None:
    for hits in range(41):
        found = share_rise_test((12, 120), (hits, 40), DEFAULT_ALPHA)
        assert found.alarm == (found.statistic > found.threshold)


def test_answers_twice_or_half_as_long_are_seen_either_way_and_the_same_are_not() -> None:
    rng = np.random.default_rng(33)

    def lengths(n: int, factor: float) -> list[RequestRecord]:
        return [
            request_record(i, AT, completion_tokens=int(factor * x)) for i, x in enumerate(rng.lognormal(4, 0.7, n))
        ]

    reference = lengths(120, 1.0)
    for factor, alarm in ((1.0, False), (2.5, True), (0.4, True)):
        found = length_change_test(reference, lengths(40, factor), DEFAULT_ALPHA, rng)
        assert found.alarm == alarm == (found.statistic > found.threshold), factor


def test_thumbs_down_alone_open_a_ticket_and_with_refusals_a_page(scene: Scene) -> None:
    questions = ask(STDLIB, 120, scene.rng)
    thumb(scene, scene.traffic(questions[:80]), down=8)
    scene.watch()
    assert [s.verdict for s in scene.scores("thumbs_down")] == ["none"]
    thumb(scene, scene.traffic(questions[80:100]), down=14)
    scene.watch()
    (episode,) = scene.registry.episodes.all("bot")
    assert (episode.signal, episode.severity, episode.runbook) == (
        "thumbs_down", "ticket", "docs/runbooks/answer_quality.md",
    )  # fmt: skip
    assert "gives more answers that users dislike (" in episode.evidence["summary"]
    assert len(episode.evidence["signals"]["thumbs_down"]["examples"]) == 5
    assert episode.evidence["held"] == "signal", "no retraining unless the policy names it"
    thumb(scene, scene.traffic(questions[100:], answer="I'm sorry, but I can't help with that."), down=14)
    scene.watch()
    (episode,) = scene.registry.episodes.all("bot")
    assert episode.severity == "page"
    assert {"thumbs_down", "refusals"} <= set(episode.evidence["signals"])


def test_answers_without_text_or_thumbs_are_not_enough_data_and_say_so(scene: Scene) -> None:
    scene.usual(80, answer=None)
    scene.watch()
    for signal, reason in (
        ("thumbs_down", "0 answers of the reference have a thumb; 10 are needed"),
        ("refusals", "60 of the reference's 60 answers are on record without their text"),
        ("answer_length", "60 of the reference's 60 answers are on record without their text"),
    ):
        (score,) = scene.scores(signal)
        assert (score.verdict, score.detail["reason"]) == ("not enough data", reason)


def test_a_few_answers_without_text_are_left_out_and_the_others_judged(scene: Scene) -> None:
    questions = ask(STDLIB, 100, scene.rng)
    scene.traffic(questions[:12], answer=None)  # a fifth of the reference
    scene.traffic(questions[12:60])
    scene.traffic(questions[60:63], answer=None)
    scene.traffic(questions[63:80], answer="")
    scene.traffic(questions[80:85], answer=None)
    scene.traffic(questions[85:], answer="")
    scene.watch()
    first, second = scene.scores("broken_answers")
    assert (first.verdict, first.n) == ("drift", 17)
    assert first.detail["shares"] == {"reference": 0.0, "window": 1.0}
    assert (second.verdict, second.n) == ("not enough data", 15)
    assert second.detail["reason"] == "5 of the window's 20 answers are on record without their text"


def test_empty_answers_are_broken_answers(scene: Scene) -> None:
    questions = ask(STDLIB, 80, scene.rng)
    scene.traffic(questions[:60])
    scene.traffic(questions[60:], answer="")
    scene.watch()
    assert [s.verdict for s in scene.scores("broken_answers")] == ["drift"]
    (episode,) = scene.registry.episodes.all("bot")
    assert "gives more answers that are empty or repeat themselves (0% → 100%)" in episode.evidence["summary"]
