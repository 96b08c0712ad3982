"""What an owner may ask to have watched of answers: that they parse, what users correct of them, and that no group of
people is treated worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from monitor.questions import NUMPY, STDLIB, ask
from monitor.scene import Scene
from tests_support import window_score
from tuneloop.monitor import parity_gaps
from tuneloop.monitor.bleu import sentence_bleus, signature
from tuneloop.monitor.causes import gather
from tuneloop.monitor.parity_gaps import Gap, gaps_of, said_of
from tuneloop.monitor.parity_pool import pool_of
from tuneloop.monitor.quality import is_no_json
from tuneloop.monitor.reference import Reference
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import CORRECTION_BLEU, INVALID_FORMAT, PARITY, budget_share, signals_of
from tuneloop.registry.nouns import AlertEpisode, Feedback

REFUSES = "I can't help with that."
ASKED = {"answer_formats": {"bot": "json"}, "correction_bleu": True, "parity_windows": 3}


@pytest.mark.parametrize("answer", ["", "Sure! {}", "```json\n{}\n```", '{"a": 1', '{"a": NaN}', "[" * 100_000])
def test_an_answer_that_a_clients_parser_refuses_is_no_json(answer: str) -> None:
    assert is_no_json(answer)


@pytest.mark.parametrize("answer", ["{}", ' {"a": [1, null]}\n', "3", '"x"'])
def test_what_parses_is_json(answer: str) -> None:
    assert not is_no_json(answer)


def test_a_model_whose_answers_stop_parsing_is_told_where_a_format_is_declared(scene: Scene) -> None:
    monitor = scene.monitor(answer_formats={"bot": "json"})
    scene.usual(80, answer='{"sum": 3}')
    scene.usual(20, answer="{'sum': 3}")
    scene.watch(monitor)
    assert [score.verdict for score in scene.scores(INVALID_FORMAT)] == ["none", "drift"]
    episode = scene.the_episode()
    assert (episode.signal, episode.runbook) == (INVALID_FORMAT, "docs/runbooks/answer_quality.md")
    assert "gives more answers that do not parse (0% → 100%)" in episode.evidence["summary"]
    assert len(episode.evidence["signals"][INVALID_FORMAT]["examples"]) == 5


def test_no_model_but_the_declared_ones_is_read_for_a_format(scene: Scene) -> None:
    scene.usual(80)
    scene.watch(scene.monitor(answer_formats={"other": "json"}))
    assert scene.scores(INVALID_FORMAT) == []
    assert {score.verdict for score in scene.scores()} == {"none"}


def test_answers_further_from_what_users_want_are_told_with_sacrebleus_signature(scene: Scene) -> None:
    monitor = scene.monitor(correction_bleu=True)
    scene.correct(scene.usual(80, answer="It adds."))  # users wanted: It adds.
    scene.correct(scene.usual(20, answer="Nobody knows what that does to it."))
    scene.watch(monitor)
    first, second = scene.scores(CORRECTION_BLEU)
    assert (first.verdict, second.verdict) == ("none", "drift")
    assert first.detail["bleu"] == {"reference": 100.0, "window": 100.0}
    assert second.detail["bleu"]["window"] < 10
    assert second.detail["signature"].startswith("nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp|version:")
    assert "answers further from what users want (BLEU 100.0 → " in scene.the_episode().evidence["summary"]


def test_too_few_corrections_decide_nothing(scene: Scene) -> None:
    scene.correct(scene.usual(80)[:9])
    scene.watch(scene.monitor(correction_bleu=True))
    (score,) = scene.scores(CORRECTION_BLEU)
    assert score.detail["reason"] == "9 answers of the reference are on record and corrected; 10 needed"


def test_corrections_that_came_later_than_a_windows_could_are_left_out_of_the_reference(scene: Scene) -> None:
    monitor = scene.monitor(correction_bleu=True)
    soon = scene.usual(30, answer="It adds.")
    late = scene.usual(30, answer="Nobody knows what that does to it.")
    scene.correct([*soon, *scene.usual(20, answer="It adds.")])
    scene.clock.advance(86_400)
    items = [
        Feedback(id=f"late-{r.id}", request_id=r.id, at=scene.clock.now, thumb="down", correction="It adds.")
        for r in late
    ]
    scene.registry.traffic.add_feedback(items)
    scene.clock.advance(60)
    scene.correct(scene.usual(20, answer="It adds."))
    scene.watch(monitor)
    first, second = scene.scores(CORRECTION_BLEU)
    assert first.detail["bleu"]["reference"] < 60, "judged a day late: its own corrections had as long"
    assert second.detail["bleu"]["reference"] == 100.0


def test_bleu_is_that_of_texts_against_their_own_reference() -> None:
    found = sentence_bleus(["the cat sat on the mat", "a dog"], ["the cat sat on the mat", "the cat"])
    assert found[0] == pytest.approx(100.0)
    assert found[1] < 50
    assert signature() == signature()


def test_what_is_asked_for_shares_the_budget_and_what_is_not_costs_none() -> None:
    without, wanted = MonitorSettings(), MonitorSettings.model_validate(ASKED)
    assert {*signals_of(wanted)} - {*signals_of(without)} == {INVALID_FORMAT, CORRECTION_BLEU, PARITY}
    for settings in (without, wanted):
        assert sum(budget_share(signal, settings) for signal in signals_of(settings)) == pytest.approx(1.0)
    assert budget_share(PARITY, wanted) == budget_share("refusals", wanted) < budget_share("refusals", without)


# --- Parity ----------------------------------------------------------------------------------------------------------


WHO = ["my sister", "my brother", "work", "a test", "fun"] * 4


def asked(scene: Scene, n: int, refuses: Sequence[bool], who: Sequence[str], of: tuple[str, ...] = STDLIB) -> None:
    """Questions, for whom, and which of them are refused."""
    for question, refused, person in zip(ask(of, n, scene.rng), refuses, who, strict=True):
        scene.traffic([f"{question} It is for {person}."], answer=REFUSES if refused else "It does.")


def test_a_group_that_alone_is_refused_raises_an_alarm_though_no_more_is_refused_than_before(scene: Scene) -> None:
    monitor = scene.monitor(parity_windows=3)
    for _ in range(4):  # a reference of 60 and a window: one of five is refused, whoever asks
        asked(scene, 20, [n % 5 == n // 5 for n in range(20)], WHO)
    for _ in range(3):  # one of five is refused, and always whoever asks for a sister
        asked(scene, 20, [n % 5 == 0 for n in range(20)], WHO)
    scene.watch(monitor)
    assert [score.verdict for score in scene.scores("refusals")] == ["none"] * 4
    assert [score.verdict for score in scene.scores(PARITY)] == ["not enough data"] * 2 + ["drift"] * 2
    score = scene.scores(PARITY)[-1]
    assert score.n == 60, "three windows together"
    assert score.statistic > score.threshold
    episode = scene.the_episode()
    assert episode.signal == PARITY
    assert "questions that speak of women are refused more: +" in episode.evidence["summary"]
    assert episode.evidence["causes"][0]["kind"] == "bias"
    assert "decide" in episode.done[-1], "what is trained then is for a person"
    assert all("sister" in example["question"] for example in episode.evidence["signals"][PARITY]["examples"])
    asked(scene, 40, [False] * 40, ["work", "a test", "fun", "home"] * 10)  # two windows that speak of nobody
    scene.watch(monitor)
    assert scene.the_episode().state == "resolved"
    assert "too little asked of any group of people since to judge parity by" in scene.the_episode().done[-1]


def test_a_gap_that_always_stood_is_told_once_hides_no_drift_and_is_told_again_where_it_worsens(scene: Scene) -> None:
    monitor = scene.monitor(parity_windows=3)
    who = ["my sister", "my sister", "work", "a test", "fun"] * 4
    half, all_of_them = [n % 10 in (0, 1) for n in range(20)], [n % 5 in (0, 1) for n in range(20)]
    for _ in range(5):
        asked(scene, 20, half, who)
    scene.watch(monitor)
    assert scene.scores(PARITY)[-1].verdict == "drift"
    told = scene.the_episode()
    asked(scene, 20, half, who, NUMPY)
    scene.watch(monitor)
    by_signal = {episode.signal: episode for episode in scene.registry.episodes.all("bot")}
    assert set(by_signal) == {PARITY, "prompt_drift"}
    assert PARITY not in by_signal["prompt_drift"].evidence["signals"]
    assert "0 of 50 corrections" in by_signal["prompt_drift"].done[-1], "no bias holds its retraining back"
    assert "decide" in by_signal[PARITY].done[-1]
    assert bias_before(scene, by_signal["prompt_drift"]) == ["answers refuse one group of people more than others"]
    scene.registry.episodes.resolve(told.id, by="ada", reason="meant")
    assert bias_before(scene, by_signal["prompt_drift"]) == [], "accepted, so no cause of what is told later"
    for _ in range(3):
        asked(scene, 20, half, who)
    scene.watch(monitor)
    assert [score.verdict for score in scene.scores(PARITY)[-3:]] == ["not enough data", "none", "none"]
    for _ in range(3):
        asked(scene, 20, all_of_them, who)
    scene.watch(monitor)
    assert scene.scores(PARITY)[-1].verdict == "drift"
    newest = scene.registry.episodes.all("bot", signal=PARITY)[0]
    assert newest.id != told.id
    assert "speak of women are refused more than was accepted: +" in newest.evidence["summary"]


def bias_before(scene: Scene, episode: AlertEpisode) -> list[str]:
    changes = gather(scene.registry, episode, 3_600, scene.clock())
    return [change.what.partition(":")[0] for change in changes if change.kind == "bias"]


def test_windows_held_against_another_reference_are_not_counted_with_a_window(scene: Scene) -> None:
    (record, *_) = scene.usual(1)
    for index, digest in enumerate(["lent", "lent", "own", "own"]):
        detail = {"window": index, "reference": {"digest": digest}}
        fields = {"id": f"w{index}", "version": 1, "signal": PARITY, "detail": detail}
        scene.registry.episodes.add_score(window_score(scene.clock(), model="bot", **fields))
    pool = pool_of(scene.registry, "bot", 1, 4, Reference((record,), "own", frozen=True), 10)
    assert [score.detail["window"] for score in pool.earlier] == [2, 3]


def rows(rng: np.random.Generator, n: int, share: dict[str, float], length: dict[str, float]) -> list[list[Any]]:
    """Of `n` texts a third speak of women, a third of men; who is refused how often, and answered at what length."""
    who = rng.choice(["women", "men", ""], n)
    return [
        [[name] if name else [], int(rng.random() < share[name]), rng.normal(length[name], 0.5)]
        for name in map(str, who)
    ]


def alarms(gaps: Sequence[Gap], alpha: float) -> list[tuple[str, str]]:
    return [(gap.group, gap.of) for gap in gaps if gap.p_holm <= alpha]


def test_equal_treatment_alarms_at_most_at_the_level_whatever_is_usual_of_a_groups_lengths() -> None:
    rng, alpha, wrong = np.random.default_rng(41), 0.01, 0
    share, length = dict.fromkeys(("women", "men", ""), 0.2), {"women": 4.5, "men": 4.0, "": 3.0}
    for _ in range(300):
        wrong += bool(alarms(gaps_of(rows(rng, 120, share, length), rows(rng, 200, share, length), alpha, rng), alpha))
    assert wrong <= 10, "binomial 1e-3 bound of 300 trials at 1 %, over both groups and both figures together"


def test_a_group_refused_more_and_one_answered_at_half_the_length_are_found_as_large_as_they_are() -> None:
    rng, alpha = np.random.default_rng(42), 0.001
    usual, length = dict.fromkeys(("women", "men", ""), 0.1), dict.fromkeys(("women", "men", ""), 4.0)
    before = rows(rng, 120, usual, length)
    now = rows(rng, 400, usual | {"women": 0.4}, length | {"men": 4.0 - np.log(2)})
    found = {(gap.group, gap.of): gap for gap in gaps_of(before, now, alpha, rng)}
    assert alarms(list(found.values()), alpha) == [("women", "refusals"), ("men", "lengths")]
    refused, shorter = found["women", "refusals"], found["men", "lengths"]
    assert refused.low < 0.3 < refused.high
    assert shorter.low < 0.5 < shorter.high
    assert said_of(refused).startswith("questions that speak of women are refused more: +")
    assert "times as long as others', against before" in said_of(shorter)
    assert shorter.permutations > 0, "the alarm rests on the exact test"


def test_an_accepted_gap_is_no_alarm_until_it_is_larger() -> None:
    rng, alpha, length = np.random.default_rng(43), 0.001, dict.fromkeys(("women", "men", ""), 4.0)
    stands, worse = {"women": 0.4, "men": 0.1, "": 0.1}, {"women": 0.8, "men": 0.1, "": 0.1}
    before, accepted, now = (rows(rng, 300, stands, length) for _ in range(3))
    assert alarms(gaps_of(before, now, alpha, rng), alpha) == [("women", "refusals")]
    assert alarms(gaps_of(before, now, alpha, rng, accepted), alpha) == []
    found = gaps_of(before, rows(rng, 300, worse, length), alpha, rng, accepted)
    assert alarms(found, alpha) == [("women", "refusals")]
    assert found[0].low < 0.4 < found[0].high


@pytest.mark.parametrize(("errors", "fewest", "most"), [(12.0, 20_000, 20_000), (3.2, 50, 19_999), (1.0, 0, 0)])
def test_of_deals_no_more_are_made_than_a_cap_says_and_few_where_nothing_is_rare(
    monkeypatch: pytest.MonkeyPatch, errors: float, fewest: int, most: int
) -> None:
    monkeypatch.setattr(parity_gaps, "MOST_DEALS", 20_000)
    rng, alike = np.random.default_rng(44), dict.fromkeys(("women", "men", ""), 0.0)
    before, now = rows(rng, 100, alike, alike), rows(rng, 100, alike, alike)

    def of_men() -> Gap:
        found = gaps_of(before, now, 1e-7, rng)
        assert alarms(found, 1e-7) == [], "it can only be missed"
        return next(gap for gap in found if (gap.group, gap.of) == ("men", "lengths"))

    usual = of_men()
    error = np.log(usual.high / usual.low) / (2 * 1.96)
    for row in now:
        row[2] += (errors * error - np.log(usual.estimate)) * ("men" in row[0])
    gap = of_men()
    assert fewest <= gap.permutations <= most
    assert gap.p_value >= 1 / 20_001


def test_nine_texts_of_a_group_decide_nothing() -> None:
    women = [[["women"], 1, 4.0]] * 9
    others = [[[], 0, 4.0]] * 50
    assert gaps_of(women + others, women + others, 0.01, np.random.default_rng(1)) == []
