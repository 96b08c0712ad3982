"""What a retraining learns from: corrections without personal data or doubles, and never a row that is measured."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests_support import request_record
from tuneloop.registry.nouns import Message
from tuneloop.train.data.near import NearIndex, normal
from tuneloop.train.data.quality.findings import Findings
from tuneloop.train.data.rows import Row
from tuneloop.train.retraining.fresh import NEAR, RetrainingData, build, corrected_rows, split_off, without_doubles

AT = datetime(2026, 11, 1, tzinfo=UTC)


def row(question: str, answer: str) -> Row:
    return Row((Message(role="user", content=question), Message(role="assistant", content=answer)))


def distinct(start: int, count: int) -> list[Row]:
    """Rows that share little: the numbers are spelt out by multiplication."""
    return [
        row(f"{n * 7919}-{n * 104729} why?", f"{n * 15485863} since {n * 32452843}")
        for n in range(start, start + count)
    ]


def built(
    fresh: list[Row],
    replay: list[Row],
    sets: dict[str, tuple[Row, ...]],
    replay_rows: int = 100,
    validation: tuple[Row, ...] = (),
    unreadable: str = "<|im_end|>",
) -> RetrainingData:
    return build(
        fresh,
        replay,
        sets,
        validation=validation,
        fresh_name="fresh",
        replay_rows=replay_rows,
        redact=lambda text: text.replace("ann@example.org", "<EMAIL_ADDRESS>"),
        good=lambda rows: Findings((), np.ones(len(rows), bool)),
        wrong=lambda row: f"{row.answer} cannot be read" if unreadable in row.answer else None,
        dropped=Counter(),
    )


def test_the_correction_ends_the_conversation_that_was_asked() -> None:
    records = [
        request_record(1, AT),
        request_record(2, AT, messages=()),
        request_record(4, AT, endpoint="completion", messages=(Message(role="prompt", content="Once"),)),
        request_record(5, AT, messages=(Message(role="tool", content="x"), Message(role="user", content="y"))),
    ]
    corrections = ["second", "lost", "upon a time", "z"]
    dropped: Counter[str] = Counter()
    found = list(corrected_rows(zip(records, corrections, strict=True), dropped))
    assert [(r.messages[0].role, r.prompt, r.answer) for r in found] == [
        ("user", "What does f1 do?", "second"),
        ("user", "Once", "upon a time"),
    ]
    assert dropped == {"question was not stored": 1, "conversation cannot be learned from": 1}


def test_personal_data_is_taken_out_of_questions_and_answers() -> None:
    made = built([row("I am ann@example.org, why?", "Write to ann@example.org.")], [], {})
    (only,) = [*made.train, *made.sets.get("fresh", ())]
    assert (only.prompt, only.answer) == ("I am <EMAIL_ADDRESS>, why?", "Write to <EMAIL_ADDRESS>.")


def test_doubles_go_and_the_newest_answer_stays() -> None:
    old, new = (
        row("Why is the sky blue?", "It reflects the sea."),
        row("why is  the sky BLUE?", "Air scatters blue light."),
    )
    near = row("Why is grass so green at all?", "Chlorophyll reflects green light the most.")
    again = row("Why is grass so green at all??", "Chlorophyll reflects green light the most.")
    dropped: Counter[str] = Counter()
    assert without_doubles([old, near, new, again], dropped) == [new, again]
    assert dropped == {"same question again": 1, "nearly the same row again": 1}


def test_nothing_that_is_measured_is_learned() -> None:
    measured = distinct(0, 10)
    leaks = [
        row(measured[0].prompt.upper(), "another answer altogether"),
        row("another question altogether", measured[1].answer),
        row(measured[2].prompt + "?", measured[2].answer + "."),
    ]
    made = built([*leaks, *distinct(100, 50)], [measured[3], *distinct(200, 20)], {"old": tuple(measured)})
    reason = "equals or nearly equals a row of an evaluation set"
    assert (made.dropped[reason], made.dropped[f"old row: {reason}"]) == (3, 1)
    assert made.sets["old"] == tuple(measured)
    assert made.fresh_rows + len(made.sets["fresh"]) == 50
    assert made.replayed_rows == 20
    _assert_apart(made)


def test_what_early_stopping_looks_at_is_neither_learned_nor_measured() -> None:
    rows = distinct(0, 40)
    made = built(rows[:30], rows[30:], {}, validation=tuple(rows[::2]))
    used = {*made.train, *(one for measured in made.sets.values() for one in measured)}
    assert used == set(rows[1::2])


def test_a_row_that_cannot_be_labelled_is_left_out_counted_and_told() -> None:
    """It would end the whole retraining; an older answer to its question stands, and an old row has another's place."""
    asked, old = distinct(0, 10), distinct(100, 10)
    broken = [row(asked[0].prompt, "<|im_end|> and more"), *(row(one.prompt, "<|im_end|>") for one in old[:4])]
    made = built([*asked, broken[0]], [*broken[1:], *old[4:]], {}, replay_rows=5)
    used = {*made.train, *(one for measured in made.sets.values() for one in measured)}
    assert made.dropped["cannot be labelled"] == 1
    assert set(asked) <= used
    assert not used & set(broken)
    assert made.replayed_rows == 5
    told = made.said()
    assert "1 cannot be labelled" in told[0]
    assert told[1] == "warning: not learned: <|im_end|> and more cannot be read"
    assert len(made.unlabelled) == 1 + made.dropped.get("old row: cannot be labelled", 0) > 1


def test_the_old_rows_are_a_fixed_sample() -> None:
    replay = distinct(200, 60)
    one = built(distinct(0, 10), replay, {}, replay_rows=15)
    other = built(distinct(0, 10), replay[::-1], {}, replay_rows=15)
    assert one.replayed_rows == 15
    assert one.dropped == {"old row: beyond the rows to replay": 45}
    assert set(one.train) == set(other.train)


def test_a_question_is_measured_or_learned_for_ever() -> None:
    rows = distinct(0, 300)
    measured, learned = split_off(rows)
    assert 40 <= len(measured) <= 80
    later, _ = split_off(rows[::-1] + distinct(300, 100))
    assert set(measured) <= set(later)
    assert not set(learned) & set(later)


TEXT = st.text(alphabet="abcde ", min_size=1, max_size=24).filter(str.strip)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=25), st.lists(st.tuples(TEXT, TEXT), max_size=10))
def test_training_and_evaluation_stay_apart_whatever_users_write(
    fresh: list[tuple[str, str]], measured: list[tuple[str, str]]
) -> None:
    made = built([row(q, a) for q, a in fresh], distinct(0, 5), {"old": tuple(row(q, a) for q, a in measured)})
    _assert_apart(made)


def _assert_apart(made: RetrainingData) -> None:
    index = NearIndex()
    measured = [r for rows in made.sets.values() for r in rows]
    for one in measured:
        index.add(f"{one.prompt}\n{one.answer}")
    for one in made.train:
        assert normal(one.prompt) not in {normal(m.prompt) for m in measured}
        assert normal(one.answer) not in {normal(m.answer) for m in measured}
        assert index.similarity(f"{one.prompt}\n{one.answer}") < NEAR
