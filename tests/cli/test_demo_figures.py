"""What the demo counts: keys that moved back, and how well an answer agrees with the truth."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.cli.demo.evidence import NEW_DOMAIN, failures, moved_back
from tuneloop.cli.demo.traffic import token_f1


def _route(revision: int, *arms: tuple[int, int]) -> dict[str, Any]:
    return {"revision": revision, "arms": [{"version": v, "weight_bp": share} for v, share in arms]}


# 1 alone, 2 at 10 %, at 50 %, everything, rolled back, promoted again.
ROUTES = [
    _route(1, (1, 10_000)),
    _route(2, (2, 1_000), (1, 9_000)),
    _route(3, (2, 5_000), (1, 5_000)),
    _route(4, (1, 0), (2, 10_000)),
    _route(5, (2, 0), (1, 10_000)),
    _route(6, (1, 0), (2, 10_000)),
]


def _asked(*seen: tuple[int, int], key: str = "k") -> list[dict[str, Any]]:
    """Requests of one key: (revision, assigned version), in order of time."""
    return [
        {"key_hash": key, "revision": revision, "assigned_version": version, "at": f"2026-11-01T12:00:{second:02d}Z"}
        for second, (revision, version) in enumerate(seen)
    ]


@pytest.mark.parametrize(
    ("requests", "count"),
    [
        ([], 0),
        (_asked((1, 1)), 0),
        (_asked((1, 1), (2, 2), (3, 2), (4, 2)), 0),  # it rises with the canary
        (_asked((2, 1), (3, 2)), 0),  # the champion gave way
        (_asked((2, 2), (3, 1)), 1),  # the canary rose, and the key went back
        (_asked((2, 2), (2, 1)), 1),  # one revision, two arms
        (_asked((2, 1), (2, 2)), 1),  # the other way round it is as wrong
        (_asked((4, 2), (5, 1)), 0),  # a rollback takes it back on purpose
        (_asked((4, 2), (5, 1), (6, 2)), 0),
        (_asked((2, 2), (3, 1), (3, 2), (3, 1)), 3),
        (_asked((2, 2), key="a") + _asked((3, 1), key="b"), 0),  # two keys
        (_asked((2, 2), (3, 1), key="a") + _asked((2, 2), (3, 1), key="b"), 2),
        (_asked((3, 1), (2, 2)), 1),  # recorded out of order: revision 2 comes first
    ],
)
def test_keys_that_moved_back_are_counted(requests: list[dict[str, Any]], count: int) -> None:
    assert moved_back(requests, ROUTES) == count


def test_requests_without_a_revision_do_not_count() -> None:
    requests = _asked((2, 2), (3, 2))
    requests[0]["revision"] = None
    assert moved_back(requests, ROUTES) == 0


@pytest.mark.parametrize(
    ("answer", "truth", "f1"),
    [
        ("Return the sum.", "Return the sum.", 1.0),
        ("return THE sum", "Return the sum.", 1.0),  # case and punctuation do not count
        ("the sum", "Return the sum.", 0.8),  # precision 1, recall 2/3
        ("Return the the the", "Return the sum.", 4 / 7),  # a word counts as often as the truth has it
        ("something else", "Return the sum.", 0.0),
        ("", "Return the sum.", 0.0),
        ("Return the sum.", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_token_f1_is_the_harmonic_mean_of_precision_and_recall(answer: str, truth: str, f1: float) -> None:
    assert token_f1(answer, truth) == pytest.approx(f1)
    assert token_f1(truth, answer) == pytest.approx(f1)


def _shown(**changes: Any) -> dict[str, Any]:
    """Evidence of a run that showed everything, but for the changes."""
    better = {"verdict": "pass", "detail": "", "interval": {"estimate": -0.2, "low": -0.3, "high": -0.1}}
    whole: dict[str, Any] = {
        "traffic": {"sent": 100, "failed": 0, "moved_back": 0},
        "swaps": [{"streams_in_flight": 3, "streams_broken": 0}],
        "gate": {NEW_DOMAIN: better},
        "verdict": {"outcome": "pass"},
        "retraining": {"state": "shipped"},
        "trace": {"steps": ["request req_1", "window w_1"]},
    }
    return whole | changes


def test_a_run_that_showed_everything_is_no_failure() -> None:
    assert failures(_shown()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"traffic": {"sent": 100, "failed": 1, "moved_back": 0}}, "1 of 100 requests failed"),
        ({"traffic": {"sent": 100, "failed": 0, "moved_back": 2}}, "2 keys moved back"),
        ({"swaps": [{"streams_in_flight": 3, "streams_broken": 1}]}, "1 streams broke"),
        ({"swaps": [{"streams_in_flight": 0, "streams_broken": 0}]}, "no stream was in flight"),
        (
            {"gate": {NEW_DOMAIN: {"verdict": "pass", "detail": "", "interval": {"high": 0.01}}}},
            "not better on the new",
        ),
        ({"verdict": {"outcome": "inconclusive"}}, "verdict is inconclusive"),
        ({"retraining": {"state": "rejected"}}, "ended as rejected"),
        ({"trace": {"steps": ["request req_1", "version v"]}}, "ends at version"),
    ],
)
def test_whatever_was_not_shown_fails_the_demo(changes: dict[str, Any], said: str) -> None:
    [reason] = failures(_shown(**changes))
    assert said in reason
