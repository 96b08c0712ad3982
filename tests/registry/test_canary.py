"""Judging a canary: the published intervals, which hold however often one looks; no data never passes."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests_support import request_record, window_score
from tuneloop.registry import Registry
from tuneloop.registry.errors import Refused
from tuneloop.registry.nouns import Arm, WindowScore
from tuneloop.registry.rollouts.canary import ArmSample, Limits, always_valid_difference, judge
from tuneloop.registry.rollouts.rollout import RolloutPlan
from tuneloop.registry.rollouts.signals import quality
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.routes.promotion import Change
from tuneloop.registry.traffic import Opinion, Outcome

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
NOTHING = ArmSample(0, 0, (), ())


def _outcome(number: int, **changes: object) -> Outcome:
    return Outcome.model_validate(request_record(number, AT, **changes).model_dump(include=set(Outcome.model_fields)))


def _arm(answered: int, *, failed: int = 0, score: float = 0.8, ms: float = 100.0) -> ArmSample:
    """An arm whose scores lie 0.1 around `score` and whose times lie 10 % around `ms`."""
    scores = tuple(score + (0.1 if i % 2 else -0.1) for i in range(answered))
    times = tuple(ms * (1.1 if i % 2 else 1 / 1.1) for i in range(answered))
    return ArmSample(answered, failed, scores, times)


def _verdicts(champion: ArmSample, challenger: ArmSample, limits: Limits | None = None) -> dict[str, str]:
    return {
        check.name: check.verdict
        for check in judge([(champion, challenger)], limits or Limits(), step_answered=challenger.answered)
    }


def test_longer_answers_are_judged_where_they_have_a_limit() -> None:
    def arm(tokens: int) -> ArmSample:
        return replace(_arm(200), tokens=tuple(tokens + i % 3 for i in range(200)))

    limits = Limits(token_ratio=1.5)
    assert "tokens" not in _verdicts(arm(100), arm(300))
    assert _verdicts(arm(100), arm(110), limits)["tokens"] == "pass"
    assert _verdicts(arm(100), arm(300), limits)["tokens"] == "fail"
    assert _verdicts(_arm(200), arm(300), limits)["tokens"] == "inconclusive", "nobody counted the champion's"
    *_, check = judge([(arm(100), arm(300))], limits, step_answered=200)
    assert check.detail == "tokens of an answer 2.98 × the champion's (geometric mean)"


@pytest.mark.parametrize(
    ("name", "limits", "guards"), [("guards", Limits(), True), ("corrections", Limits(correction_margin=0.05), False)]
)
def test_finds_of_guards_and_corrections_are_judged_where_they_are_asked_for(
    name: str, limits: Limits, guards: bool
) -> None:
    def verdict(champion: int, challenger: int, answered: int = 400) -> str:
        arms = [replace(_arm(answered), guarded=some, corrected=some) for some in (champion, challenger)]
        found = judge([(arms[0], arms[1])], limits, step_answered=answered, has_guards=guards)
        return {check.name: check.verdict for check in found}[name]

    assert verdict(4, 4) == "pass"
    assert verdict(4, 100) == "fail"
    assert verdict(100, 100) == "inconclusive", "as many, and too few to know it within the margin"
    assert verdict(0, 1, answered=10) == "inconclusive", "too little to tell"
    assert name not in _verdicts(_arm(400), _arm(400)), "not asked for"


def _judged(version: int, signal: str, verdict: str, minute: int, **changes: object) -> WindowScore:
    end = AT + timedelta(minutes=minute)
    named = {"id": f"{version}-{signal}-{minute}", "version": version, "signal": signal, "verdict": verdict}
    return window_score(end, **(named | {"window_start": AT, "window_end": end} | changes))


@pytest.mark.parametrize(
    ("own", "theirs", "wanted", "verdict"),
    [
        ([("perplexity", "none", 5)], [], (), "pass"),
        ([("perplexity", "drift", 5)], [("perplexity", "none", 5)], (), "fail"),
        ([("perplexity", "drift", 5)], [], (), "inconclusive"),
        ([("perplexity", "drift", 5)], [("perplexity", "not enough data", 6)], (), "inconclusive"),
        ([("served_model_change", "drift", 5)], [], (), "fail"),
        ([("served_model_change", "drift", 5)], [("served_model_change", "drift", 6)], (), "inconclusive"),
        ([("trial_refusals", "drift", 5)], [], (), "fail"),
        ([("trial_refusals", "none", 5)], [], ("trial_refusals",), "pass"),
        ([("trial_refusals", "not enough data", 5)], [], ("trial_refusals",), "inconclusive"),
        ([("perplexity", "drift", 5)], [("perplexity", "drift", 6)], (), "inconclusive"),
        ([("perplexity", "drift", 5)], [("refusals", "none", 6)], (), "inconclusive"),
        ([("perplexity", "drift", 5), ("perplexity", "none", 6)], [], (), "pass"),
        ([("served_model_change", "none", 5), ("refusals", "drift", 6)], [("refusals", "none", 6)], (), "fail"),
        ([("perplexity", "not enough data", 5)], [], ("perplexity",), "inconclusive"),
        ([("refusals", "none", 5)], [], ("perplexity",), "inconclusive"),
        ([], [], ("perplexity",), "inconclusive"),
        ([("perplexity", "not enough data", 5)], [], (), None),
        ([("perplexity", "drift", -5)], [], (), None),
        ([], [("perplexity", "drift", 5)], (), None),
    ],
    ids=str,
)
def test_what_the_monitor_says_counts_against_a_challenger_only_where_its_champion_is_quiet(
    own: list[tuple[str, str, int]], theirs: list[tuple[str, str, int]], wanted: tuple[str, ...], verdict: str | None
) -> None:
    scores = ([_judged(version, *one) for one in those] for version, those in ((2, own), (1, theirs)))
    found = quality(*scores, since=AT, wanted=wanted)
    assert (None if found is None else found.verdict) == verdict


def test_a_baseline_of_the_monitor_judges_nothing() -> None:
    baseline = _judged(2, "served_model_change", "none", 5, detail={"rounds": [[0.0]]})
    assert quality([baseline], [], since=AT, wanted=()) is None
    found = quality([baseline], [], since=AT, wanted=("served_model_change",))
    assert found is not None
    assert found.verdict == "inconclusive"


def test_tokens_are_those_of_answers_whose_engine_counted_them() -> None:
    counted = [_outcome(i, completion_tokens=tokens) for i, tokens in enumerate((12, None, 0, 7))]
    failed = _outcome(9, completion_tokens=99, status=500)
    assert ArmSample.of(1, [*counted, failed], {}).tokens == (12, 7)


def test_the_feedback_interval_is_the_one_worked_out_by_hand() -> None:
    # Before: 0, 1, 1, 1: mean 0.75, squares about it 0.75; after: 0, 0, 1, 0: mean 0.25, squares 0.75. Variance with
    # four imagined values of 0.25 each: (0.75 + 4 · 0.25) / (3 + 4) = 0.25; spread V = 0.25/4 + 0.25/4 = 0.125. τ =
    # 0.5: V + τ² = 0.375; radius = √(0.125 · 0.375 / 0.25 · (2 ln 20 + ln 3)) = √(0.1875 · 7.090077) = 1.152991.
    found = always_valid_difference([([0, 1, 1, 1], [0, 0, 1, 0])], alpha=0.05, effect=0.5)
    assert found is not None
    assert found.estimate == pytest.approx(-0.5)
    assert found.low == pytest.approx(-0.5 - 1.152991, abs=1e-5)
    assert found.high == pytest.approx(-0.5 + 1.152991, abs=1e-5)
    assert found.level == 0.95


def test_revisions_are_put_together_as_worked_out_by_hand() -> None:
    # First: 0, 1, 1 against 1 (difference 1/3, weight 3·1/4 = 0.75); second: 0, 1 against 1, 1 (1/2, weight 1).
    # Estimate (0.75/3 + 1/2) / 1.75 = 0.428571. Squares about their means: before 2/3 + 1/2, after 0; free values
    # 3 and 1: variances (7/6 + 1)/7 = 0.309524 and 1/5. Spread: (0.75² (0.309524/3 + 0.2) + 1² (0.309524/2 + 0.2/2)) /
    # 1.75² = 0.138873; τ = 0.5: radius = √(0.138873 · 0.388873 / 0.25 · (5.991465 + ln 2.800208)) = 1.231534.
    found = always_valid_difference([([0, 1, 1], [1]), ([0, 1], [1, 1]), ([1, 1], [])], alpha=0.05, effect=0.5)
    assert found is not None
    assert found.estimate == pytest.approx(0.428571, abs=1e-6)
    assert found.high - found.estimate == pytest.approx(1.231534, abs=1e-5)


def test_a_step_that_was_busier_is_not_taken_for_a_slower_version() -> None:
    quiet, busy = (_arm(180), _arm(20)), (_arm(100, ms=300.0), _arm(100, ms=300.0))
    _, _, latency, _ = judge([quiet, busy], Limits(), step_answered=100)
    assert latency.interval is not None
    assert latency.interval.estimate == pytest.approx(1.0)
    assert latency.verdict == "pass"
    pooled = _arm(180).total_ms + busy[0].total_ms, _arm(20).total_ms + busy[1].total_ms
    one = ArmSample(280, 0, (), pooled[0]), ArmSample(120, 0, (), pooled[1])
    _, _, blamed, _ = judge([one], Limits(), step_answered=100)
    assert blamed.interval is not None
    assert blamed.interval.low > 1.0, "pooled, the same answers would say that it is slower"


def test_a_step_that_failed_more_is_not_blamed_on_who_had_most_of_it() -> None:
    quiet, busy = (_arm(7_200), _arm(800)), (_arm(3_400, failed=600), _arm(3_400, failed=600))
    _, errors, _, _ = judge([quiet, busy], Limits(), step_answered=3_400)
    assert errors.interval is not None
    assert errors.interval.estimate == pytest.approx(0.0, abs=1e-3)
    assert (errors.verdict, errors.detail) == ("pass", "600 of 4800 failed, champion 600 of 11200")


def test_what_only_one_of_them_answered_is_compared_with_nothing() -> None:
    _, errors, latency, feedback = judge([(_arm(40), NOTHING), (NOTHING, _arm(12))], Limits(), step_answered=12)
    assert {check.verdict for check in (errors, latency, feedback)} == {"inconclusive"}
    assert feedback.detail == "no two scores of each in the same revisions"


def test_the_error_interval_is_the_one_worked_out_by_hand() -> None:
    # Agresti and Caffo: p₀ = (0 + 1) / (98 + 2) = 0.01, p₁ = (4 + 1) / (48 + 2) = 0.1; V = 0.01 · 0.99/100 + 0.1 ·
    # 0.9/50 = 0.001899; τ = 0.05: V + τ² = 0.004399; radius = √(0.001899 · 0.004399 / 0.0025 · (5.991465 + ln
    # 2.316482)) = 0.151087.
    _, errors, _, _ = judge([(_arm(98), _arm(44, failed=4))], Limits(), step_answered=44)
    assert errors.interval is not None
    assert errors.interval.estimate == pytest.approx(0.09)
    assert errors.interval.high - errors.interval.estimate == pytest.approx(0.151087, abs=1e-5)
    assert errors.detail == "4 of 48 failed, champion 0 of 98"


def test_the_latency_ratio_is_of_geometric_means() -> None:
    _, _, latency, _ = judge([(_arm(200), _arm(200, ms=120.0))], Limits(), step_answered=200)
    assert latency.interval is not None
    assert latency.interval.estimate == pytest.approx(1.2)
    assert latency.interval.low * latency.interval.high == pytest.approx(1.2**2)  # symmetric on the log scale


@pytest.mark.parametrize("samples", [(NOTHING, NOTHING), (_arm(500), NOTHING), (NOTHING, _arm(500))])
def test_no_data_is_inconclusive_never_a_pass(samples: tuple[ArmSample, ArmSample]) -> None:
    found = _verdicts(*samples)
    assert {found[name] for name in ("errors", "latency", "feedback")} == {"inconclusive"}


def test_a_challenger_as_good_as_the_champion_passes_with_enough_samples() -> None:
    assert set(_verdicts(_arm(400), _arm(400)).values()) == {"pass"}


def test_too_few_samples_are_inconclusive() -> None:
    assert _verdicts(_arm(400), _arm(29))["samples"] == "inconclusive"
    assert _verdicts(_arm(400), _arm(30))["samples"] == "pass"


@pytest.mark.parametrize(
    ("challenger", "failing"),
    [
        (_arm(400, score=0.4), "feedback"),
        (_arm(400, ms=250.0), "latency"),
        (_arm(300, failed=100), "errors"),
        (ArmSample(0, 8, (), ()), "errors"),  # it answers nobody: eight requests are enough to know
    ],
)
def test_a_worse_challenger_fails_in_what_it_is_worse(challenger: ArmSample, failing: str) -> None:
    found = _verdicts(_arm(400), challenger)
    assert [name for name, verdict in found.items() if verdict == "fail"] == [failing]


def test_one_failed_request_or_two_slow_ones_decide_nothing() -> None:
    assert _verdicts(_arm(400), ArmSample(0, 1, (), ()))["errors"] == "inconclusive"
    assert _verdicts(_arm(400), _arm(2, ms=300.0))["latency"] == "inconclusive"
    assert _verdicts(_arm(400), ArmSample(2, 0, (0.5, 0.5), (100.0, 100.0)))["feedback"] == "inconclusive"


def _ever_wrong(seed: int, looks: int, shares: tuple[float, ...], draw: str) -> bool:
    """Whether an A/A stream, looked at after every request, ever shows a difference that is not there.

    Each share has as many of the looks, and values 0.2 above those of the one before.
    """
    rng = random.Random(seed)
    steps: list[tuple[list[float], list[float]]] = []
    for number, share in enumerate(shares):
        steps.append(([], []))
        for _ in range(looks // len(shares)):
            value = float(rng.random() < 0.3) if draw == "thumbs" else rng.betavariate(2, 5)
            steps[-1][rng.random() < share].append(value + 0.2 * number)
            found = always_valid_difference(steps, alpha=0.05, effect=0.1)
            if found is not None and not found.low <= 0.0 <= found.high:
                return True
    return False


@pytest.mark.parametrize(("shares", "draw"), [((0.1,), "thumbs"), ((0.5,), "scores"), ((0.1, 0.5), "scores")])
def test_an_a_a_stream_looked_at_all_the_time_is_wrong_less_often_than_alpha(
    shares: tuple[float, ...], draw: str
) -> None:
    """Three hundred streams of 150 looks; taking the variance of two values at its word, a third are wrong."""
    wrong = sum(_ever_wrong(seed, looks=150, shares=shares, draw=draw) for seed in range(300))
    assert wrong <= 0.05 * 300


@given(
    before=st.lists(st.floats(0, 1), min_size=2, max_size=30), after=st.lists(st.floats(0, 1), min_size=2, max_size=30)
)
def test_the_interval_holds_its_estimate_and_mirrors_when_the_arms_change_places(
    before: list[float], after: list[float]
) -> None:
    there = always_valid_difference([(before, after)], alpha=0.05, effect=0.1)
    back = always_valid_difference([(after, before)], alpha=0.05, effect=0.1)
    assert there is not None
    assert back is not None
    assert there.low < there.estimate < there.high
    assert math.isclose(there.low, -back.high, abs_tol=1e-9)


def test_what_was_assigned_counts_not_what_served() -> None:
    outcomes = [
        _outcome(0, assigned_version=2, served_version=2, total_ms=50.0),
        _outcome(1, assigned_version=2, served_version=1),  # the champion had to answer: a failure of version 2
        _outcome(2, assigned_version=2, served_version=2, status=502, error="engine died"),
        _outcome(3, assigned_version=2, served_version=2, error="the stream ended early"),
        _outcome(4, assigned_version=2, served_version=2, status=400, error="too long"),  # the client's fault
        _outcome(5, assigned_version=2, served_version=2, status=499),  # the client left
        _outcome(6, assigned_version=None, served_version=2),  # pinned: belongs to no arm
        _outcome(7, assigned_version=1, served_version=1),
    ]

    def said(request: str, minute: int, **how: object) -> Opinion:
        opinion = {"request_id": request, "at": AT + timedelta(minutes=minute), "corrected": False}
        return Opinion.model_validate(opinion | {"score": None, "thumb": None} | how)

    opinions = {
        "req-0": [said("req-0", 0, score=0.2), said("req-0", 1, thumb="up"), said("req-0", 2, corrected=True)],
        "req-1": [said("req-1", 0, score=1.0)],
    }
    expected = ArmSample(answered=1, failed=3, scores=(1.0,), total_ms=(50.0,), corrected=1)
    assert ArmSample.of(2, outcomes, opinions) == expected
    assert ArmSample.of(2, outcomes, opinions, {"req-0", "req-1"}) == replace(expected, guarded=1)


@pytest.mark.parametrize(
    "limits",
    [
        {"token_ratio": 1.0},
        {"guard_margin": 0.0},
        {"correction_margin": 0.0},
        {"feedback_margin": 0.0},
        {"error_margin": 1.5},
        {"latency_ratio": 1.0},
        {"alpha": 0.0},
        {"signals": ["perplexity"]},  # windows are the champion's alone
        {"signals": ["injections"]},
    ],
)
def test_limits_nothing_could_pass_are_refused(limits: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate(limits)


def test_a_rollout_may_wait_for_a_signal_only_where_a_monitor_judges_it(registries: Registry) -> None:
    arms = [Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)]
    registries.routes.write("bot", arms, by="a", reason="r", expected_revision=0)
    registries.gates.approve("bot", 2, by="a", reason="r")
    beside = RolloutPlan(limits=Limits(signals=("trial_refusals",)))
    with pytest.raises(Refused, match="no monitor has judged anything of bot, so none would judge trial_refusals"):
        declare(registries, "bot", 2, beside, Change("ada", "test"))
    registries.episodes.add_score(_judged(1, "prompt_drift", "none", 4))
    assert declare(registries, "bot", 2, beside, Change("ada", "test")).plan == beside
    plan = RolloutPlan(limits=Limits(signals=("served_model_change",)))
    with pytest.raises(Refused, match=r"has not judged served_model_change of bot@1.*canary_every_s above 0"):
        declare(registries, "bot", 2, plan, Change("ada", "test"))
    registries.episodes.add_score(_judged(1, "served_model_change", "none", 5, detail={"rounds": [[0.0]]}))
    assert declare(registries, "bot", 2, plan, Change("ada", "test")).plan == plan
