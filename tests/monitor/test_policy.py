"""When an episode earns a retraining request: the whole table, without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests_support import alert_episode, retraining_request
from tuneloop.monitor.attacks import Attacks
from tuneloop.monitor.policy import Corrected, File, Hold, Pending, decide
from tuneloop.monitor.uncounted import Uncounted
from tuneloop.registry.corrections import LeftOut
from tuneloop.registry.nouns import RetrainingState
from tuneloop.registry.policies import RetrainingPolicy

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def episode(*signals: str) -> Any:
    evidence = {
        "summary": "other questions",
        "since": (NOW - HOUR).isoformat(),
        "window_digest": "d1",
        "signals": {signal: {} for signal in signals or ("prompt_drift",)},
    }
    return alert_episode(NOW - HOUR, evidence=evidence)


def corrected(rows: int) -> Corrected:
    """So many, all of them after whatever time is asked about."""
    return lambda _after: rows


def never(_after: datetime | None) -> int:
    raise AssertionError("corrections were counted where the answer does not hang on them")


def past(state: RetrainingState, hours_ago: float, episode_id: str | None = "ep1", **changes: Any) -> Any:
    at = NOW - hours_ago * HOUR
    return retraining_request(at, state=state, episode_id=episode_id, **changes)


@pytest.mark.parametrize(
    ("signals", "policy", "requests", "rows", "kind"),
    [
        (("prompt_drift",), {"enabled": False}, [], 99, "disabled"),
        (("latency",), {}, [], 99, "signal"),
        (("prompt_drift",), {"signals": ("perplexity",)}, [], 99, "signal"),
        (("prompt_drift", "perplexity"), {"signals": ("perplexity",)}, [], 99, None),
        (("prompt_drift",), {}, [], 49, "rows"),
        (("prompt_drift",), {}, [], 50, None),
        (("prompt_drift",), {}, [past(RetrainingState.SHIPPED, 5, "other")], 99, "cooldown"),
        (("prompt_drift",), {}, [past(RetrainingState.SHIPPED, 7, "other")], 99, None),
        (("prompt_drift",), {"cooldown_s": 0}, [past(RetrainingState.FAILED, 0.1)], 99, None),
        (("prompt_drift",), {}, [past(RetrainingState.CANCELLED, 99)], 99, "cancelled"),
        (("prompt_drift",), {}, [past(RetrainingState.CANCELLED, 99, "other")], 99, None),
        (("prompt_drift",), {}, [past(RetrainingState.REJECTED, 99)], 99, "rejected"),
        (("prompt_drift",), {}, [past(RetrainingState.REJECTED, 99, result_version=2)], 99, None),
        (("prompt_drift",), {}, [past(RetrainingState.REJECTED, 11, result_version=2)], 99, "cooldown"),
        (("prompt_drift",), {}, [past(RetrainingState.REJECTED, 13, result_version=2)], 99, None),
        (("prompt_drift",), {}, [past(RetrainingState.FAILED, n) for n in (99, 23)], 99, "cooldown"),
        (("prompt_drift",), {}, [past(RetrainingState.FAILED, n) for n in (99, 25)], 99, None),
        (("prompt_drift",), {}, [past(RetrainingState.FAILED, n, "other") for n in (9, 8, 7)], 99, None),
        (("prompt_drift",), {"cooldown_s": 1e8}, [past(RetrainingState.FAILED, n) for n in range(99)], 99, "cooldown"),
        (("prompt_drift",), {"cooldown_s": 0}, [past(RetrainingState.FAILED, n) for n in range(2_000)], 99, None),
        (("prompt_drift",), {}, [past(RetrainingState.EXPIRED, 7)], 99, None),
        (("prompt_drift",), {}, [past(RetrainingState.EXPIRED, 99)], 99, None),
        (("prompt_drift",), {}, [past(RetrainingState.RUNNING, 99, "other")], 99, "pending"),
        (("prompt_drift",), {}, [past(RetrainingState.PROPOSED, 0)], 0, "pending"),
        (("prompt_drift",), {"enabled": False}, [past(RetrainingState.RUNNING, 1)], 99, "disabled"),
    ],
)
def test_the_policy_table(
    signals: tuple[str, ...], policy: dict[str, Any], requests: list[Any], rows: int, kind: str | None
) -> None:
    decision = decide(episode(*signals), RetrainingPolicy(**policy), requests, corrected(rows), NOW)
    if kind == "pending":
        assert decision == Pending(requests[0])
    elif kind is None:
        assert isinstance(decision, File)
    else:
        assert isinstance(decision, Hold)
        assert decision.kind == kind


def test_what_did_not_help_says_so_and_only_corrections_after_its_filing_earn_another_attempt() -> None:
    tried = past(RetrainingState.REJECTED, 20, result_version=2, outcome="no better on users' corrections")
    held = decide(episode(), RetrainingPolicy(cooldown_s=12 * 3600.0), [tried], never, NOW)
    assert held == Hold(
        "cooldown",
        f"{tried.id} did not help: rejected (no better on users' corrections); after 1 of this episode that did not "
        "ship the cooldown is 24 h and lasts until 2026-11-01 16:00:00Z",
    )
    asked: list[datetime | None] = []

    def since_then(after: datetime | None) -> int:
        asked.append(after)
        return 49

    held = decide(episode(), RetrainingPolicy(), [tried], since_then, NOW)
    assert held == Hold(
        "rows",
        f"49 of 50 corrections since 2026-10-31T16:00:00Z, when {tried.id} was filed, that can be learned from; it "
        "waits for more. `tuneloop feedback bot` shows what users said, `min_rows` in `tuneloop retraining policy bot` "
        "how many it takes",
    )
    assert asked == [tried.created_at]
    judged = tried.model_copy(update={"judged_until": tried.created_at - HOUR})
    decide(episode(), RetrainingPolicy(), [judged], since_then, NOW)
    assert asked[1:] == [judged.judged_until], "what came after that it has not learned from"


@pytest.mark.parametrize(
    ("found", "kind", "said"),
    [
        (LeftOut(unjudged=49), "rows", "49 came after the newest judged window of bot@1; it waits for more"),
        (LeftOut(unjudged=50), "rows to be judged", "; it waits until the next window is judged, with these"),
        (LeftOut(spoilt=9), "rows", "9 are of what was asked by 2026-11-01 11:30:00Z, until when there was an attack"),
        (LeftOut(used=9), "rows", "9 an earlier one has learned from"),
        (LeftOut(without_text=9), "rows", "9 have no text on record any more (`tuneloop retention bot`)"),
        (
            LeftOut(3, 0, 2, 1),
            "rows",
            "window of bot@1, 2 are of what was asked by 2026-11-01 11:30:00Z, until when there",
        ),
    ],
)
def test_too_few_corrections_say_why_the_others_do_not_count(found: LeftOut, kind: str, said: str) -> None:
    why = Uncounted(lambda _after: found, "there was an attack", judged_first=True)
    until = NOW - HOUR / 2
    held = decide(episode(), RetrainingPolicy(), [], corrected(0), NOW, spoilt_until=until, uncounted=why)
    assert isinstance(held, Hold)
    assert held.kind == kind
    assert held.reason.startswith("0 of 50 corrections since 2026-11-01T11:30:00Z that can be learned from; of the ")
    assert said in held.reason
    assert not held.refused


@pytest.mark.parametrize(("judged_first", "rows", "ends"), [(True, 49, True), (True, 50, False), (False, 49, False)])
def test_what_is_never_judged_is_not_waited_for(judged_first: bool, rows: int, ends: bool) -> None:
    why = Uncounted(judged_first=judged_first, stopped="its reference is lost")
    decided = decide(episode(), RetrainingPolicy(), [], corrected(rows), NOW, uncounted=why)
    assert (isinstance(decided, Hold) and decided.refused) is ends
    if ends:
        assert "no more will count, since they are to be judged first, and its reference is lost" in str(decided)


def test_what_shipped_in_vain_doubles_the_cooldown_like_what_did_not_ship() -> None:
    def decided(hours_ago: float, *more: Any) -> Any:
        vain = past(RetrainingState.SHIPPED, hours_ago, "other", outcome="bot@2 serves everything")
        return decide(episode(), RetrainingPolicy(), [vain, *more], corrected(99), NOW, in_vain=[vain])

    held = decided(11)
    assert isinstance(held, Hold)
    assert "did not help: shipped (bot@2 serves everything); after 1 that shipped the cooldown is 12 h" in held.reason
    assert isinstance(decided(13), File)
    held = decided(30, past(RetrainingState.FAILED, 23))
    assert isinstance(held, Hold)
    assert "after 1 of this episode that did not ship and 1 that shipped the cooldown is 24 h" in held.reason


@pytest.mark.parametrize(
    ("signals", "policy", "requests"),
    [
        (("prompt_drift",), {"enabled": False}, []),
        (("latency",), {}, []),
        (("prompt_drift",), {}, [past(RetrainingState.SHIPPED, 5, "other")]),
        (("prompt_drift",), {}, [past(RetrainingState.CANCELLED, 99)]),
        (("prompt_drift",), {}, [past(RetrainingState.RUNNING, 99)]),
    ],
)
def test_corrections_are_counted_only_where_the_answer_hangs_on_them(
    signals: tuple[str, ...], policy: dict[str, Any], requests: list[Any]
) -> None:
    assert not isinstance(decide(episode(*signals), RetrainingPolicy(**policy), requests, never, NOW), File)
    if not requests:
        return
    attacked = alert_episode(NOW, signal="injections", evidence={"signals": {"injections": {}}})
    assert not isinstance(decide(episode(), RetrainingPolicy(), [], never, NOW, attacks=Attacks(on=attacked)), File)


def test_the_same_moment_decided_twice_has_one_key_and_a_second_attempt_another() -> None:
    policy = RetrainingPolicy(cooldown_s=0)
    first, again = (decide(episode(), policy, [], corrected(60), NOW + n * HOUR) for n in range(2))
    retry = decide(episode(), policy, [past(RetrainingState.FAILED, 1)], corrected(60), NOW)
    assert isinstance(first, File)
    assert isinstance(again, File)
    assert isinstance(retry, File)
    assert first.key == again.key != retry.key


def test_the_policys_recipe_wins_over_the_champions_own() -> None:
    own = decide(episode(), RetrainingPolicy(), [], corrected(60), NOW)
    given = decide(episode(), RetrainingPolicy(recipe="recipes/again.yaml"), [], corrected(60), NOW)
    assert isinstance(own, File)
    assert isinstance(given, File)
    assert (own.recipe, given.recipe) == ("bot@1", "recipes/again.yaml")
    assert own.key != given.key
