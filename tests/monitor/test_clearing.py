"""When an episode is over: its windows raise nothing, and do not come near it together either."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from monitor.questions import NUMPY, STDLIB, ask
from tests_support import Clock, request_record, window_score
from tuneloop.monitor.clearing import (
    LATEST,
    LONGER,
    MOST_TEXTS,
    is_quiet,
    is_silent,
    is_unspoken,
    longer_look,
    since_alarm,
    spread,
)
from tuneloop.monitor.parity import by_group, groups_of, unequal_group
from tuneloop.monitor.signals import PARITY
from tuneloop.registry.nouns import Message, RequestRecord, WindowScore

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


def test_windows_that_time_has_closed_give_an_all_clear_once_they_hold_as_many_records() -> None:
    ids = tuple(f"req-{n}" for n in range(10))
    short = [score.model_copy(update={"request_ids": ids}) for score in scores(0.0001, 0.6, 0.4, 0.8, 0.5)]
    assert is_quiet(short, 3, 30)
    assert is_quiet(short, 3, 40)
    assert not is_quiet(short, 3, 41), "the window that alarmed is among so many"
    assert not is_quiet(short[:4], 3, 50)
    silent = [one.model_copy(update={"detail": one.detail | {"not_measured": True}}) for one in short]
    assert is_silent(silent, 3, 30)
    assert is_unspoken(silent, 3, 50)
    assert not is_silent(silent, 3, 51)
    assert not is_unspoken(silent, 3, 51)


@pytest.mark.parametrize(("p_values", "over"), [((0.0001, 0.03, 0.04, 0.2), True), ((0.0001, 0.9, 0.9, 0.02), False)])
def test_of_windows_that_parity_takes_together_itself_the_last_alone_says_whether_it_is_over(
    p_values: tuple[float, ...], over: bool
) -> None:
    of_parity = [score.model_copy(update={"signal": PARITY}) for score in scores(*p_values)]
    assert is_quiet(of_parity, 3) is over


def records(questions: Sequence[str]) -> tuple[RequestRecord, ...]:
    return tuple(
        request_record(n, AT, messages=(Message(role="user", content=text),)) for n, text in enumerate(questions)
    )


def test_the_windows_since_the_last_alarm_are_those_after_it_that_could_be_judged() -> None:
    found = since_alarm(scores(0.5, 0.0001, 0.4, None, 0.3))
    assert [score.p_value for score in found] == [0.4, 0.3]
    assert len(since_alarm(scores(0.5, 0.4))) == 2


@pytest.mark.parametrize(
    ("drifted", "windows", "over", "said"),
    [
        (0, LONGER * 2, True, "are like the reference's"),
        (8, LONGER * 2, False, "are not yet like the reference's"),
        (8, LATEST * 2 - 1, False, "are not yet like the reference's"),
        (8, LATEST * 2, True, "differ still"),
    ],
)
def test_a_tenth_of_the_questions_holds_the_all_clear_back_and_none_of_them_for_ever(
    drifted: int, windows: int, over: bool, said: str
) -> None:
    rng = random.Random(5)
    reference = records(ask(STDLIB, 120, rng))
    pool = records(ask(STDLIB, 80 - drifted, rng) + ask(NUMPY, drifted, rng))
    look = longer_look(since_alarm(scores(0.0001, *[0.5] * windows)), 2, reference, pool)
    assert (look.over, said in look.why) == (over, True), look.why
    assert f"{windows} windows in a row" in look.why


def test_windows_that_time_has_closed_are_looked_at_until_they_hold_as_many_records() -> None:
    rng = random.Random(5)
    reference = records(ask(STDLIB, 120, rng))
    pool = records(ask(STDLIB, 72, rng) + ask(NUMPY, 8, rng))
    ids = tuple(f"req-{n}" for n in range(10))
    short = [one.model_copy(update={"request_ids": ids}) for one in scores(*[0.5] * LATEST * 2)]
    assert longer_look(short, 2, reference, pool, records=20).over
    assert not longer_look(short, 2, reference, pool, records=21).over


def test_records_that_retention_took_hold_no_episode_open() -> None:
    look = longer_look(since_alarm(scores(0.0001, *[0.5] * 4)), 2, records(["what?"] * 20), ())
    assert (look.over, "not held any more" in look.why) == (True, True)


def test_a_longer_look_reads_a_bounded_number_of_texts_over_all_of_their_time() -> None:
    many = records([str(n) for n in range(3 * MOST_TEXTS)])
    few = spread(many)
    assert [record.question for record in few] == [str(3 * n) for n in range(MOST_TEXTS)]
    assert spread(many[:MOST_TEXTS]) == many[:MOST_TEXTS]


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
