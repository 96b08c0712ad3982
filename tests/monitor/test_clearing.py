"""When an episode is over: its windows raise nothing, and do not come near it together either."""

from __future__ import annotations

import pytest

from tests_support import Clock, window_score
from tuneloop.monitor.alerts import is_quiet
from tuneloop.monitor.parity import by_group, groups_of, unequal_group
from tuneloop.registry.nouns import WindowScore

AT = Clock().now


def scores(*p_values: float | None) -> list[WindowScore]:
    """Windows of one stream; None had too little to judge by, an alarm is below one in a thousand."""
    return [
        window_score(
            AT,
            id=f"w{number}",
            p_value=p,
            verdict="not enough data" if p is None else "drift" if p < 0.001 else "none",
            detail={"window": number},
        )
        for number, p in enumerate(p_values)
    ]


@pytest.mark.parametrize(
    ("p_values", "over"),
    [
        ((0.0001, 0.6, 0.4, 0.8), True),
        ((0.0001, 0.6, 0.0001, 0.8), False),
        ((0.0001, 0.6, 0.4), False),
        ((0.0001, 0.6, None, 0.4, None, 0.8), True),
        ((0.0001, 0.03, 0.04, 0.02), False),
        ((0.0001, 0.01, 0.9, 0.9), True),
        ((0.0001, 0.002, 0.002, 0.9, 0.9, 0.9), True),
    ],
)
def test_an_episode_is_over_when_its_last_windows_together_are_nothing_either(
    p_values: tuple[float | None, ...], over: bool
) -> None:
    assert is_quiet(scores(*p_values), 3) is over


def test_a_question_speaks_of_a_group_by_its_words_and_of_neither_where_it_names_two() -> None:
    assert groups_of("My Sister asks what it does") == {"gender": "women"}
    assert groups_of("for my grandfather") == {"gender": "men", "age": "old people"}
    assert groups_of("his and her towels, other theories") == {}


def test_one_group_that_is_refused_more_than_everybody_else_is_named_and_chance_is_not() -> None:
    texts = ["for my sister"] * 8 + ["for my brother"] * 8 + ["what is it?"] * 24
    assert unequal_group(by_group(texts, [True] * 5 + [False] * 35)) == "5 of 8 that speak of women, 0 of 32 others"
    assert unequal_group(by_group(texts, [n % 4 == 0 for n in range(40)])) is None
    assert unequal_group(by_group(["what is it?"] * 9, [True] * 9)) is None
    assert unequal_group({}) is None
