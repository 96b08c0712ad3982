"""Rounds: who is away stops nobody else, what is silenced waits, what fails is tried later and later, and given up."""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Event
from typing import Any

import pytest
from prometheus_client import generate_latest

from monitor.delivery.post import acknowledge, deliverer, end, open_episode, rounds, tell, worsen
from monitor.delivery.servers import HttpReceiver, Told, http_receiver
from monitor.scene import Killed, failing
from tests_support import Clock, alert_episode, window_score
from tuneloop.monitor.alerts import joined
from tuneloop.monitor.delivery.bodies import alertmanager
from tuneloop.monitor.delivery.deciding import FIRST_WAIT_S, LONGEST_WAIT_S, wait_s
from tuneloop.monitor.delivery.page import Redact, page_of
from tuneloop.monitor.delivery.rounds import LEASE_S, RENEW_S
from tuneloop.monitor.metrics import Metrics
from tuneloop.registry import Registry
from tuneloop.registry.actions import silence
from tuneloop.registry.deliveries.outbox import Delivery, Outbox
from tuneloop.registry.episodes import shown_state
from tuneloop.registry.errors import InvalidInput, NotFound, Refused
from tuneloop.registry.nouns import AlertEpisode

DEAD = "http://127.0.0.1:9/hook"  # the discard port: nobody listens


def chat(hook: HttpReceiver | str, name: str = "chat", **changes: Any) -> dict[str, Any]:
    url = hook if isinstance(hook, str) else hook.url
    return {"kind": "slack", "name": name, "url": url, "examples": 0} | changes


def titles(hook: HttpReceiver) -> list[str]:
    return [json.loads(told.body)["text"] for told in hook.told]


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


def attacked(registry: Registry, episode: AlertEpisode) -> AlertEpisode:
    """Guards catch a campaign while the episode is open."""
    now = registry.clock()
    shares = {"shares": {"reference": 0.0, "window": 0.5}}
    alarm = window_score(now, id="w9", signal="injections", detail=shares)
    worse = joined(episode, alarm, now)
    registry.episodes.update(episode, worse, by="monitor", action="episode.window")
    return worse


def latency_page(registry: Registry) -> AlertEpisode:
    evidence = {"summary": "bot@1 is slow", "signals": {"latency": {}}}
    return open_episode(registry, signal="latency", severity="page", evidence=evidence)


def test_an_attack_that_joins_a_silenced_latency_is_told(ours: Registry, clock: Clock, hook: HttpReceiver) -> None:
    tell(ours, chat(hook))
    ours.silences.add("bot", 86_400, by="ada", reason="the engine is being moved", signal="latency")
    clock.advance(1)
    episode = latency_page(ours)
    rounds(ours, clock)
    assert hook.told == []
    clock.advance(1_200)
    attacked(ours, episode)
    rounds(ours, clock, 2)
    assert titles(hook) == [
        "[page] bot@1 is slow; bot@1 is attacked: it is asked more that guards stop or flag (0% → 50%)"
    ]


def caused(registry: Registry, episode: AlertEpisode, signal: str, *kinds: str) -> AlertEpisode:
    """A signal joins, and these are the causes of it, the likeliest first."""
    signals = {**episode.evidence["signals"], signal: {}}
    causes = [{"kind": kind, "why": f"{kind} it is", "explains": list(signals)} for kind in kinds]
    evidence = episode.evidence | {"signals": signals, "causes": causes}
    after = episode.model_copy(update={"evidence": evidence, "updated_at": registry.clock()})
    registry.episodes.update(episode, after, by="monitor", action="episode.window")
    return after


@pytest.mark.parametrize(
    ("kind", "heard"), [("attack", True), ("attack", False), ("deploy", True), ("engine", True), ("load", True)]
)
def test_what_joins_a_silenced_episode_by_another_cause_is_told_once_despite_the_silence(
    ours: Registry, clock: Clock, hook: HttpReceiver, kind: str, *, heard: bool
) -> None:
    tell(ours, chat(hook))
    episode = open_episode(ours)
    rounds(ours, clock, int(heard))
    made = silence(ours, 86_400, by="ada", reason="a new course", episode_id="ep1")
    assert (made.cause, made.signals) == ("drift", ("prompt_drift",))
    clock.advance(1)
    episode = acknowledge(ours, worsen(ours, caused(ours, episode, "perplexity", "drift")))
    rounds(ours, clock, 2)
    assert len(hook.told) == heard, "the same cause is what the silence is for"
    for _ in range(3):
        clock.advance(1)
        episode = caused(ours, episode, "latency", "drift", kind)
        rounds(ours, clock, 2)
    loud = titles(hook)[heard:]
    assert len(loud) == (kind != "load"), "once, and only what somebody could do something about"
    if loud:
        assert loud[0].startswith("[page] got worse: " if heard else "[page] bot@1 is asked")
        said = f"silenced   for drift until {made.until:%Y-%m-%d %H:%M:%S}Z (by ada: a new course)"
        assert f"{said}; told once all the same, of {kind}" in hook.told[-1].body.decode()
    end(ours, episode)
    rounds(ours, clock, 2)
    assert len(hook.told) == heard + len(loud), "the rest waits until the silence ends"
    ours.silences.revoke(made.id, by="ada", reason="done")
    rounds(ours, clock, 2)
    assert "silenced" not in hook.told[-1].body.decode()
    assert len(set(hook.ids())) == len(hook.told), "each under a key of its own"
    assert "waiting" not in {row.state for row in ours.outbox.all()}


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("lasts", [True, False])
def test_who_was_away_hears_of_an_attack_that_joined_and_ended_under_a_silence(
    ours: Registry, clock: Clock, hook: HttpReceiver, *, heard: bool, lasts: bool
) -> None:
    tell(ours, chat(hook))
    episode = open_episode(ours)
    rounds(ours, clock, int(heard))
    made = silence(ours, 86_400, by="ada", reason="a new course", episode_id="ep1")
    clock.advance(1)
    hook.status = 503
    attacked_too = caused(ours, episode, "injections", "attack", "drift")
    rounds(ours, clock, 2)
    refused = len(hook.told)
    assert refused > heard, "it was tried"
    end(ours, attacked_too)
    hook.status = 200
    clock.advance(LONGEST_WAIT_S)
    if not lasts:
        ours.silences.revoke(made.id, by="ada", reason="done")
        clock.advance(1)
    rounds(ours, clock, 3)
    loud = hook.told[refused:]
    assert [b"attack it is" in told.body for told in loud[:1]] == [True]
    assert len(loud) == (1 if lasts else 2), "and the end once the silence is over"
    if lasts:
        ours.silences.revoke(made.id, by="ada", reason="done")
        rounds(ours, clock, 2)
    assert titles(hook)[-1].startswith("[ticket] resolved: ")
    assert "waiting" not in {row.state for row in ours.outbox.all()}


def test_what_would_be_told_despite_a_silence_waits_under_a_later_one_of_the_whole_model(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    tell(ours, chat(hook))
    episode = open_episode(ours)
    rounds(ours, clock)
    silence(ours, 86_400, by="ada", reason="a new course", episode_id="ep1")
    clock.advance(1)
    hook.status = 503
    attacked_too = caused(ours, episode, "injections", "attack", "drift")
    rounds(ours, clock)
    end(ours, attacked_too)
    hook.status = 200
    clock.advance(1)
    maintenance = ours.silences.add("bot", 86_400, by="bob", reason="maintenance")
    clock.advance(LONGEST_WAIT_S)
    heard = len(hook.told)
    rounds(ours, clock, 2)
    assert len(hook.told) == heard, "the whole model is silenced, for whatever cause"
    ours.silences.revoke(maintenance.id, by="bob", reason="done")
    rounds(ours, clock, 2)
    assert [b"attack it is" in told.body for told in hook.told[heard:]] == [True]


def row_of(episode: AlertEpisode, at: datetime) -> Delivery:
    return Delivery(
        id="dl",
        episode_id=episode.id,
        receiver="am",
        transition="worse",
        sequence=1,
        created_at=at,
        state="waiting",
        attempts=0,
        first_at=None,
        next_at=at,
        ended_at=None,
        error="",
    )


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


def test_killed_while_it_tells_what_joined_under_a_silence_a_monitor_tells_it_again_as_the_same(
    ours: Registry, clock: Clock, hook: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(ours, {"kind": "alertmanager", "name": "am", "url": hook.url})
    episode = open_episode(ours)
    silence(ours, 86_400, by="ada", reason="a new course", episode_id="ep1")
    caused(ours, episode, "injections", "attack", "drift")
    with monkeypatch.context() as patched:
        patched.setattr(Outbox, "end", failing(Killed()))
        with pytest.raises(Killed):
            rounds(ours, clock)
    clock.advance(LEASE_S)
    rounds(ours, clock, 2)
    told = [[alert["labels"].get("despite") for alert in json.loads(told.body)] for told in hook.told]
    assert told == [["attack"]] * 3, "told, told again as the same, and repeated as all that stands is"
    assert {(row.transition, row.state) for row in ours.outbox.all()} == {("opened", "sent"), ("worse", "dropped")}


def test_an_attack_that_joins_a_page_is_told_as_worse_once(ours: Registry, clock: Clock, hook: HttpReceiver) -> None:
    tell(ours, chat(hook))
    episode = latency_page(ours)
    rounds(ours, clock)
    worse = attacked(ours, episode)
    rounds(ours, clock, 2)
    assert [title.partition(": ")[0] for title in titles(hook)] == ["[page] bot@1 is slow", "[page] got worse"]
    again = joined(worse, window_score(ours.clock(), id="w10", signal="injections"), ours.clock())
    ours.episodes.update(worse, again, by="monitor", action="episode.window")
    rounds(ours, clock, 2)
    assert len(hook.told) == 2


def test_alertmanager_has_an_alert_of_its_own_of_what_joined_a_page_and_both_end(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    """It notifies of new labels, not of an alert whose text has changed."""
    tell(ours, {"kind": "alertmanager", "name": "am", "url": hook.url})
    worse = attacked(ours, latency_page(ours))
    rounds(ours, clock)
    standing = {alert["labels"]["signal"]: alert for alert in json.loads(hook.told[-1].body)}
    assert standing.keys() == {"latency", "injections"}
    assert {alert["labels"]["severity"] for alert in standing.values()} == {"page"}
    end(ours, worse)
    rounds(ours, clock)
    ended = {alert["labels"]["signal"]: alert["endsAt"] for alert in json.loads(hook.told[-1].body)}
    assert ended.keys() == standing.keys()
    assert all(ended[signal] < standing[signal]["endsAt"] for signal in ended)


@pytest.mark.parametrize(("severity", "ended"), [("ticket", 0), ("page", 1)])
def test_a_ticket_that_is_told_despite_a_silence_ends_no_alert_of_its_own_labels(
    clock: Clock, severity: str, ended: int
) -> None:
    """Alertmanager lets the later of two with the same labels win: it would never be heard of."""
    now = clock()
    episode = alert_episode(now, severity=severity)
    page = replace(page_of(row_of(episode, now), episode, examples=0, redact=list), despite=("deploy",))
    alerts = json.loads(alertmanager(page, now, timedelta(minutes=5)))
    stamped = [one for one in alerts if datetime.fromisoformat(one["endsAt"]) <= now]
    assert (len(alerts), len(stamped)) == (1 + ended, ended)
    assert len({json.dumps(one["labels"], sort_keys=True) for one in alerts}) == len(alerts)
    assert [one["labels"].get("despite") for one in alerts] == ["deploy", None][: 1 + ended]


def test_what_was_told_despite_a_silence_is_repeated_while_it_goes_on(
    ours: Registry, clock: Clock, hook: HttpReceiver
) -> None:
    tell(ours, {"kind": "alertmanager", "name": "am", "url": hook.url})
    episode = open_episode(ours)
    rounds(ours, clock)
    silence(ours, 86_400, by="ada", reason="a new course", episode_id="ep1")
    clock.advance(1)
    caused(ours, episode, "injections", "attack", "drift")
    rounds(ours, clock, 2)
    told = len(hook.told)
    clock.advance(RENEW_S + 1)
    rounds(ours, clock)
    assert len(hook.told) == told + 1
    assert json.loads(hook.told[-1].body)[0]["labels"]["despite"] == "attack"
