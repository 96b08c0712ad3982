"""Rounds: who is away stops nobody else, what is silenced waits, what fails is tried later and later, and given up."""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from threading import Event
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest

from monitor.delivery.post import DEAD, chat, deliverer, end, open_episode, rounds, row_of, tell, titles, worsen
from monitor.delivery.servers import HttpReceiver, Told, http_receiver
from monitor.scene import failing
from tests_support import Clock, alert_episode
from tuneloop.monitor.delivery.deciding import FIRST_WAIT_S, LONGEST_WAIT_S, wait_s
from tuneloop.monitor.delivery.page import Redact, page_of
from tuneloop.monitor.metrics import Metrics
from tuneloop.registry import Registry
from tuneloop.registry.episodes import shown_state
from tuneloop.registry.errors import InvalidInput, NotFound, Refused
from tuneloop.registry.tables import episodes


def test_a_receiver_that_is_away_or_hangs_stops_no_other(ours: Registry, clock: Clock, hook: HttpReceiver) -> None:
    with ExitStack() as stack:
        slow, arrived, go_on = stack.enter_context(http_receiver()), Event(), Event()
        stack.callback(go_on.set)

        def hang(_told: Told) -> None:
            arrived.set()
            go_on.wait(60)

        slow.before_answer = hang
        tell(ours, chat(DEAD, "dead"), chat(slow, "slow"), chat(hook))
        with deliverer(ours, delivery_timeout_s=30.0) as made:
            open_episode(ours, id="ep1")
            made.round()
            assert arrived.wait(60)
            made._standing["chat"].task.result()  # type: ignore[union-attr]
            open_episode(ours, id="ep2", signal="latency")
            made.round()
            made._standing["chat"].task.result()  # type: ignore[union-attr]
            assert len(hook.told) == 2
            assert len(slow.told) == 1, "it is being tried still"
            go_on.set()
            made._standing["slow"].task.result()  # type: ignore[union-attr]
            made.round(to_the_end=True)
            made.round(to_the_end=True)
        assert len(slow.told) == 2
    assert {row.receiver: row.state for row in ours.outbox.all()} == {"dead": "waiting", "slow": "sent", "chat": "sent"}


def test_attempts_come_later_and_later_and_never_all_at_once() -> None:
    for attempts in range(1, 60):
        waits = [wait_s(attempts, random.Random(seed)) for seed in range(50)]
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempts - 1))
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(set(waits)) == 50


def test_a_receiver_comes_back_and_is_told_everything_in_order(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    hook.status = 503
    tell(ours, chat(hook))
    end(ours, worsen(ours, open_episode(ours)))
    rounds(ours, clock, 100, every_s=6)
    tried = len(hook.told)
    assert 5 <= tried <= 12, "each wait is up to twice the one before"
    assert len(set(hook.ids())) == 1, "the first holds up the others"
    hook.status = 200
    rounds(ours, clock, 4, every_s=LONGEST_WAIT_S)
    assert [title.split(":")[0] for title in titles(hook)[tried:]] == [
        "[page] bot@1 is asked other questions than before",
        "[page] resolved",
    ]


def test_what_is_a_page_before_anybody_was_told_is_one_page(ours: Registry, clock: Clock, hook: HttpReceiver) -> None:
    tell(ours, chat(hook))
    worse = worsen(ours, open_episode(ours))
    rounds(ours, clock, 2)
    end(ours, worse)
    rounds(ours, clock)
    assert [title.split(":")[0] for title in titles(hook)] == [
        "[page] bot@1 is asked other questions than before",
        "[page] resolved",
    ]
    assert [(row.transition, row.state) for row in ours.outbox.all() if row.error] == [("worse", "dropped")]


def test_a_ticket_that_may_have_arrived_is_followed_by_the_page(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    """Who keeps keys takes the second attempt for the first one again."""
    tell(ours, chat(hook))
    hook.status = 503
    episode = open_episode(ours)
    rounds(ours, clock)
    hook.status = 200
    worsen(ours, episode)
    rounds(ours, clock, 2, every_s=LONGEST_WAIT_S)
    assert [title.split(":")[0] for title in titles(hook)][-1] == "[page] got worse"
    assert {row.state for row in ours.outbox.all()} == {"sent"}


def test_a_receiver_says_itself_when_it_may_be_tried_again(ours: Registry, clock: Clock, hook: HttpReceiver) -> None:
    hook.status, hook.answer_headers = 429, {"Retry-After": "120"}
    tell(ours, chat(hook))
    open_episode(ours)
    rounds(ours, clock, 50, every_s=2)
    assert len(hook.told) == 1
    rounds(ours, clock, 12, every_s=2)
    assert len(hook.told) == 2


def test_what_is_given_up_is_counted_and_what_comes_after_goes_on(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    metrics = Metrics()
    hook.status = 500
    tell(ours, chat(hook))
    open_episode(ours)

    def shown() -> dict[str, float]:
        lines = [line for line in generate_latest(metrics.collectors).decode().splitlines() if line[0] != "#"]
        found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
        return {name.removeprefix("tuneloop_alert_"): v for name, v in found.items() if "tuneloop_alert_" in name}

    with deliverer(ours, metrics, delivery_give_up_s=3_600) as made:
        made.round(to_the_end=True)
        clock.advance(1_800)
        made.round(to_the_end=True)
        made.round(to_the_end=True)
        assert shown()['delivery_failing_seconds{receiver="chat"}'] == 1_800
        assert shown()['deliveries_given_up{receiver="chat"}'] == 0
        for _ in range(4):
            clock.advance(LONGEST_WAIT_S)
            made.round(to_the_end=True)
        made.round(to_the_end=True)
        assert shown() == {
            "receivers": 1,
            'delivery_failing_seconds{receiver="chat"}': 0,
            'deliveries_given_up{receiver="chat"}': 1,
        }
        (row,) = ours.outbox.all()
        assert (row.state, row.error) == ("given up", "it answers 500")
        hook.status = 200
        end(ours, ours.episodes.get("ep1"))
        clock.advance(LONGEST_WAIT_S)
        made.round(to_the_end=True)
    assert titles(hook)[-1].startswith("[ticket] resolved")


def test_an_episode_that_cannot_be_read_stops_no_other_and_counts_as_failing_until_it_can(
    ours: Registry, clock: Clock, hook: HttpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    tell(ours, chat(hook))
    open_episode(ours, id="ep_a")
    open_episode(ours, id="ep_b", model="other")

    def set_severity(severity: str) -> None:
        with ours.database.writing() as connection:
            connection.execute(sa.update(episodes).where(episodes.c.id == "ep_a").values(severity=severity))

    set_severity("other")  # what another release may write
    with deliverer(ours, metrics, delivery_give_up_s=3_600) as made:
        for _ in range(3):
            made.round(to_the_end=True)
            clock.advance(2)
        assert len(hook.told) == 1, "the sound one"
        (waits,) = (row for row in ours.outbox.all("ep_a") if row.state == "waiting")
        assert "run the version that wrote it" in waits.error
        assert caplog.messages.count(f"chat: {waits.id} is not told: {waits.error}") == 1, "not in every round"
        clock.advance(2 * 86_400)
        made.round(to_the_end=True)
        failing = metrics.collectors.get_sample_value("tuneloop_alert_delivery_failing_seconds", {"receiver": "chat"})
        assert failing == 2 * 86_400 + 6
        set_severity("page")
        clock.advance(LONGEST_WAIT_S)
        made.round(to_the_end=True)
    assert titles(hook)[1].startswith("[page] bot@1")
    assert {row.state for row in ours.outbox.all()} == {"sent"}


def test_a_silence_holds_deliveries_until_it_ends_and_no_longer(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    tell(ours, chat(hook))
    episode = open_episode(ours)
    asked = ours.silences.add("bot", 7_200, by="ada", reason="a load test", episode_id="ep1")
    open_episode(ours, id="ep2", signal="latency")
    rounds(ours, clock, 3, every_s=600)
    assert [json.loads(told.body)["text"] for told in hook.told] == [
        "[ticket] bot@1 is asked other questions than before"
    ]
    assert {row.episode_id: row.state for row in ours.outbox.all()} == {"ep1": "waiting", "ep2": "sent"}
    assert shown_state(episode, ours.silences.all(), clock.now) == "silenced"
    clock.advance(7_200)
    rounds(ours, clock)
    assert len(hook.told) == 2, "it is open still"
    assert shown_state(episode, ours.silences.all(), clock.now) == "open"
    assert [entry.action for entry in ours.audit.entries(asked.id)] == ["silence.new"]


def test_what_began_and_ended_under_a_silence_is_recorded_and_never_told(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    tell(ours, chat(hook))
    ours.silences.add("bot", 3_600, by="ada", reason="a load test", signal="prompt_drift")
    clock.advance(1)
    episode = open_episode(ours)
    clock.advance(600)
    end(ours, episode)
    rounds(ours, clock, 3, every_s=3_600)
    assert hook.told == []
    assert {(row.transition, row.state) for row in ours.outbox.all()} == {
        ("opened", "dropped"),
        ("resolved", "dropped"),
    }
    assert ours.episodes.get("ep1").state == "resolved"


def test_an_all_clear_under_a_silence_is_told_to_who_was_told_of_the_episode(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    tell(ours, chat(hook))
    episode = open_episode(ours)
    rounds(ours, clock)
    asked = ours.silences.add("bot", 86_400, by="ada", reason="known")
    clock.advance(1)
    end(ours, episode)
    rounds(ours, clock)
    assert len(hook.told) == 1
    clock.advance(60)
    ours.silences.revoke(asked.id, by="grace", reason="done")
    rounds(ours, clock)
    assert titles(hook)[1].startswith("[ticket] resolved")
    with pytest.raises(Refused, match="ended at 2026-11-01 12:01:05Z already"):
        ours.silences.revoke(asked.id, by="grace", reason="again")


def test_a_silence_needs_an_end_and_a_reason(ours: Registry) -> None:
    with pytest.raises(InvalidInput, match="90 days at most"):
        ours.silences.add("bot", 91 * 86_400, by="ada", reason="r")
    with pytest.raises(InvalidInput, match="needs --by and --reason"):
        ours.silences.add("bot", 60, by="ada", reason=" ")
    with pytest.raises(NotFound, match="no silence 'sl_none'"):
        ours.silences.revoke("sl_none", by="ada", reason="r")


def test_a_receiver_that_is_taken_off_the_list_is_told_nothing_more(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    tell(ours, chat(hook))
    open_episode(ours)
    tell(ours)
    rounds(ours, clock)
    assert hook.told == []
    (row,) = ours.outbox.all()
    assert (row.state, row.error) == ("dropped", "there is no such receiver now")


def test_a_clock_that_goes_back_holds_up_nothing(ours: Registry, clock: Clock, hook: HttpReceiver) -> None:
    tell(ours, chat(hook))
    open_episode(ours)
    clock.advance(-86_400)
    rounds(ours, clock)
    assert len(hook.told) == 1


def test_our_own_names_on_a_page_start_no_redactor_and_stay_as_they_are(ours: Registry) -> None:
    parts = [("engine", "10.0.0.5:8000"), ("API key", "key_0123456789ab"), ("API key", "ada@example.com")]
    slices = [{"field": field, "value": value, "count": 9, "of": 20, "p_value": 0.01} for field, value in parts]

    def page(shown: list[dict[str, Any]], redact: Redact) -> tuple[str, ...]:
        episode = alert_episode(ours.clock(), evidence={"signals": {"latency": {"slices": shown}}})
        return page_of(row_of(episode, ours.clock()), episode, examples=0, redact=redact).slices

    assert page(slices[:2], failing(AssertionError("nothing here is a user's"))) == (
        "latency: engine 10.0.0.5:8000: 9 of 20",
        "latency: API key key_0123456789ab: 9 of 20",
    )
    assert page(slices, lambda texts: ["<EMAIL_ADDRESS>"] * len(texts))[1:] == (
        "latency: API key key_0123456789ab: 9 of 20",
        "latency: API key <EMAIL_ADDRESS>: 9 of 20",
    )
