"""When an episode earns a retraining request: the whole table, without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests_support import alert_episode, retraining_request
from tuneloop.monitor.policy import File, Hold, Pending, decide
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
        (("prompt_drift",), {}, [past(RetrainingState.EXPIRED, 99)], 99, None),
        (("prompt_drift",), {}, [past(RetrainingState.RUNNING, 99, "other")], 99, "pending"),
        (("prompt_drift",), {}, [past(RetrainingState.PROPOSED, 0)], 0, "pending"),
        (("prompt_drift",), {"enabled": False}, [past(RetrainingState.RUNNING, 1)], 99, "disabled"),
    ],
)
def test_the_policy_table(
    signals: tuple[str, ...], policy: dict[str, Any], requests: list[Any], rows: int, kind: str | None
) -> None:
    decision = decide(episode(*signals), RetrainingPolicy(**policy), requests, rows, NOW)
    if kind == "pending":
        assert decision == Pending(requests[0])
    elif kind is None:
        assert isinstance(decision, File)
    else:
        assert isinstance(decision, Hold)
        assert decision.kind == kind


def test_the_same_moment_decided_twice_has_one_key_and_a_second_attempt_another() -> None:
    policy = RetrainingPolicy(cooldown_s=0)
    first, again = (decide(episode(), policy, [], 60, NOW + n * HOUR) for n in range(2))
    retry = decide(episode(), policy, [past(RetrainingState.FAILED, 1)], 60, NOW)
    assert isinstance(first, File)
    assert isinstance(again, File)
    assert isinstance(retry, File)
    assert first.key == again.key != retry.key


def test_the_policys_recipe_wins_over_the_champions_own() -> None:
    own = decide(episode(), RetrainingPolicy(), [], 60, NOW)
    given = decide(episode(), RetrainingPolicy(recipe="recipes/again.yaml"), [], 60, NOW)
    assert isinstance(own, File)
    assert isinstance(given, File)
    assert (own.recipe, given.recipe) == ("bot@1", "recipes/again.yaml")
    assert own.key != given.key
