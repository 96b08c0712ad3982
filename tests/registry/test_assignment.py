"""Assignment: sticky, monotone, exact in the long run, and the same everywhere (golden values)."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.registry.assignment import assign, bucket
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Arm, Route
from tuneloop.registry.promotion import arrange

weights = st.integers(min_value=0, max_value=10_000)


def _route(canary_bp: int, salt: str = "s") -> Route:
    arms = (Arm(version=2, weight_bp=canary_bp), Arm(version=1, weight_bp=10_000 - canary_bp))
    return Route(model="bot", revision=1, arms=arms, salt=salt, by="a", reason="r", at=datetime(2026, 1, 1, tzinfo=UTC))


@given(key=st.text(), low=weights, high=weights)
def test_raising_a_canary_never_moves_a_key_back(key: str, low: int, high: int) -> None:
    low, high = sorted((low, high))
    if assign(_route(low), key) == 2:
        assert assign(_route(high), key) == 2


@given(key=st.text(), share=weights)
def test_a_key_stays_in_its_arm(key: str, share: int) -> None:
    assert assign(_route(share), key) == assign(_route(share), key)


@pytest.mark.parametrize(
    ("salt", "model", "key", "place"),
    # Computed with `b2sum -l 64`: printf '00ff\0support-bot\0user-1' | b2sum -l 64, read as a big-endian integer mod
    # 10,000.
    [
        ("00ff", "support-bot", "user-1", 7313),
        ("00ff", "support-bot", "user-2", 9773),
        ("", "m", "", 4680),
        ("s", "bot", "zoë", 1343),
    ],
)
def test_buckets_are_the_published_ones(salt: str, model: str, key: str, place: int) -> None:
    assert bucket(salt, model, key) == place


def test_shares_are_exact_in_the_long_run() -> None:
    n = 100_000
    counts = Counter(assign(_route(1_000), f"user-{i}") for i in range(n))
    # Binomial with p = 0.1: six standard deviations are 570.
    assert abs(counts[2] - n // 10) < 570


def test_another_salt_draws_other_users() -> None:
    users = [f"user-{i}" for i in range(2_000)]
    first = {user for user in users if assign(_route(1_000, "a"), user) == 2}
    second = {user for user in users if assign(_route(1_000, "b"), user) == 2}
    assert len(first & second) < 60  # independent: about 20


@given(share=weights)
def test_the_champion_stays_last_while_it_has_a_share(share: int) -> None:
    arms = arrange(_route(500), {2: share, 1: 10_000 - share})
    assert arms[-1].version == (1 if share < 10_000 else 2)


def test_a_new_challenger_stands_behind_those_that_stood() -> None:
    arms = arrange(_route(1_000), {3: 500, 2: 1_000, 1: 8_500})
    assert [arm.version for arm in arms] == [2, 3, 1]


@pytest.mark.parametrize("split", [{1: 9_999}, {1: 10_001}, {1: -1, 2: 10_001}, {0: 10_000}, {}])
def test_splits_that_are_no_whole_are_refused(split: dict[int, int]) -> None:
    with pytest.raises(InvalidInput, match=r"basis points|at least one|numbered from 1"):
        arrange(None, split)
