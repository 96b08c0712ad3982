"""What the database is asked so that nobody reads all traffic: how many were corrected, and whose question is known."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from tests_support import Clock, request_record, statements
from tuneloop.registry import Registry
from tuneloop.registry.corrections import LeftOut
from tuneloop.registry.nouns import Feedback, Message, RequestRecord
from tuneloop.registry.tables import BLANK, requests


def test_corrections_are_counted_as_those_who_read_them_find_them(registries: Registry, clock: Clock) -> None:
    def said(number: int, of: int, correction: str | None, later_s: float = 1, api_key: str | None = None) -> Feedback:
        at = began + timedelta(seconds=of + later_s)
        return Feedback(id=f"f{number}", request_id=f"req-{of}", at=at, correction=correction, api_key=api_key)

    began = clock()
    records = [request_record(n, began + timedelta(seconds=n)) for n in range(9)]
    records.append(request_record(9, began + timedelta(seconds=9), model="cat"))
    registries.traffic.add_requests(records)
    registries.traffic.add_feedback(
        [
            said(0, 0, "It adds."),  # of the first record, which `since` leaves out
            said(1, 1, "It adds."),
            said(2, 1, "It subtracts."),
            said(3, 2, " \n\t"),
            said(4, 3, None),
            said(5, 4, "It adds.", api_key="key_2"),  # somebody else's
            said(6, 5, "It adds.", api_key="key_1"),
            said(7, 6, "It adds.", later_s=3_600),
            said(8, 7, "It adds.", later_s=-60),  # by a gateway whose clock is behind
            said(9, 8, "It adds."),  # of a record that came later
            said(10, 9, "It adds."),  # another model's
            said(11, 99, "It adds."),  # not on record
        ]
    )
    since, until = began, began + timedelta(seconds=7)
    read = registries.traffic.window("bot", since=since, until=until)
    corrected = set(registries.traffic.corrections_for([record.id for record in read]))
    assert corrected == {"req-1", "req-5", "req-6", "req-7"}
    with statements(registries) as asked:
        assert registries.traffic.corrected("bot", since=since, until=until) == 4
    assert sum("FROM" in statement for statement in asked) == 1
    with statements(registries) as asked:
        taught = list(registries.traffic.corrections("bot", since=since, until=until, by=began + timedelta(days=1)))
    assert len(asked) == 1
    assert taught == [
        (record, "It subtracts." if record.id == "req-1" else "It adds.") for record in read if record.id in corrected
    ]
    early = registries.traffic.corrections("bot", since=since, until=until, by=began + timedelta(seconds=2.5))
    assert [(record.id, text) for record, text in early] == [("req-1", "It subtracts."), ("req-7", "It adds.")]
    later = began + timedelta(seconds=1.5)
    at_last = began + timedelta(days=1)
    assert registries.traffic.corrected("bot", since=since, until=at_last, after=later) == 4  # 1 again, 5, 6, 8
    assert registries.traffic.corrected("bot", since=since, until=until, after=later) == 2  # 6 is not said by then


def test_corrections_that_do_not_count_are_told_by_why_each_request_once(registries: Registry, clock: Clock) -> None:
    began = clock()
    minutes = [began + timedelta(minutes=n) for n in range(10)]
    records = [request_record(n, at, **({"messages": ()} if n == 7 else {})) for n, at in enumerate(minutes)]
    registries.traffic.add_requests(records)

    def said(n: int, at_minute: float, text: str = "It adds.") -> Feedback:
        at = began + timedelta(minutes=at_minute)
        return Feedback(id=f"fb-{n}-{at_minute}", request_id=f"req-{n}", at=at, correction=text)

    registries.traffic.add_feedback(
        [
            said(0, 7),  # of the first record, which `begun` leaves out
            said(1, 7),  # asked too early
            said(3, 4),  # too early
            said(4, 4, " "),  # none
            *(said(5, minute) for minute in (5, 7, 9)),  # counts, and is also too early and too late
            *(said(6, minute) for minute in (6, 9)),  # both, and none that counts
            said(7, 7.5),  # the question is not on record
            said(8, 8.5),  # asked too late
            said(3, 9, BLANK),
            said(2, 8.5, BLANK),
        ]
    )
    span: dict[str, Any] = {"since": minutes[2], "until": minutes[7], "after": minutes[6], "by": minutes[8]}
    assert registries.traffic.left_out("bot", begun=began, **span) == LeftOut(2, 1, 1, 2, 1)
    assert registries.traffic.corrected("bot", **span) == 1
    assert registries.traffic.left_out("other", begun=began, **span) == LeftOut()
    nothing = span | {"after": None, "by": None}
    assert registries.traffic.left_out("bot", begun=began, **nothing) == LeftOut(1, 0, 1, 2, 3)


def test_only_answers_whose_question_is_on_record_are_read_where_those_are_asked_for(
    registries: Registry, clock: Clock
) -> None:
    def turns(*texts: tuple[str, str]) -> tuple[Message, ...]:
        return tuple(Message(role=role, content=content) for role, content in texts)

    told = [
        turns(("user", "Why?")),
        turns(),
        turns(("user", "")),
        turns(("system", "Be brief."), ("assistant", "Yes?")),
        turns(("prompt", "Once ")),
        turns(("user", "Why?"), ("assistant", "So."), ("user", "")),
        turns(("user", ""), ("assistant", '"role": "user", "content": "'), ("user", 'What is "role"?')),
        turns(("user", "Why?"), ("tool", "")),
        *(turns((("user", "assistant")[n % 2], str(n))) for n in range(2)),
        turns(*((("user", "assistant")[n % 2], "Why?" if n == 10 else "") for n in range(12))),
    ]
    records = [request_record(n, clock() + timedelta(seconds=n), messages=said) for n, said in enumerate(told)]
    records.append(request_record(len(told), clock() + timedelta(seconds=60), status=503))
    registries.traffic.add_requests(records)

    def ids(found: list[RequestRecord]) -> list[str]:
        return [record.id for record in found]

    wanted = [record for record in registries.traffic.window("bot") if record.status == 200 and record.question]
    assert ids(wanted) == [f"req-{n}" for n in (0, 4, 6, 7, 8, 10)]
    assert ids(registries.traffic.window("bot", asked=True)) == ids(wanted)
    assert ids(registries.traffic.window("bot", asked=True, oldest=2)) == ids(wanted[:2])
    odd: list[object] = [7, {"user": 1}, ["a"], [[]]]
    damaged: list[object] = [sa.literal(value, requests.c.messages.type) for value in odd]
    if registries.database.is_sqlite:  # a JSONB holds nothing that is no JSON
        damaged[0] = sa.text("'{'")
    with registries.database.writing() as connection:
        for number, value in enumerate(damaged):
            damage = sa.update(requests).where(requests.c.id == f"req-{number}").values(messages=value)
            connection.execute(damage)
    assert ids(registries.traffic.window("bot", asked=True)) == ids(wanted[1:])
