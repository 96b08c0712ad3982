"""The outbox and silences on both databases: written with the change or not at all, once, for who is to hear of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests_support import Clock, alert_episode
from tuneloop.registry import Registry, audit
from tuneloop.registry.actions import silence
from tuneloop.registry.deliveries.outbox import delivery_id, transition_of
from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy
from tuneloop.registry.deliveries.silences import silenced, told_despite
from tuneloop.registry.errors import Conflict, InvalidInput, Unreadable
from tuneloop.registry.evidence import findings_of
from tuneloop.registry.nouns import AlertEpisode
from tuneloop.registry.tables import policies


def chat(name: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "slack", "name": name, "url": "https://chat.example.com/hook"} | changes


def tell(registry: Registry, *receivers: dict[str, Any]) -> None:
    policy = ReceiversPolicy.model_validate({"receivers": list(receivers)})
    registry.policies.set(EVERY_MODEL, policy, by="ada", reason="r")


def changed(registry: Registry, episode: AlertEpisode, **changes: Any) -> AlertEpisode:
    after = episode.model_copy(update={"updated_at": episode.updated_at + timedelta(seconds=1), **changes})
    registry.episodes.update(episode, after, by="ada", action="episode.test")
    return after


def told(registry: Registry) -> set[tuple[str, str, int]]:
    return {(row.receiver, row.transition, row.sequence) for row in registry.outbox.all()}


def test_each_change_is_to_be_told_once_to_each_receiver_that_takes_it(registries: Registry) -> None:
    tell(registries, chat("all"), chat("pages", severity="page"), chat("other", models=["kit"]))
    now = registries.clock()
    episode = registries.episodes.open(alert_episode(now, severity="ticket"))
    assert registries.episodes.open(alert_episode(now, id="ep2", severity="ticket")).id == "ep1"
    assert told(registries) == {("all", "opened", 0)}
    episode = changed(registries, episode, state="acknowledged")
    episode = changed(registries, episode, windows=("w1", "w2"))
    episode = changed(registries, episode, severity="page")
    episode = changed(registries, episode, state="resolved", resolved_at=now)
    assert told(registries) == {
        *(("all", transition, n) for n, transition in enumerate(("opened", "acknowledged", "worse", "resolved"))),
        *(("pages", transition, n) for n, transition in enumerate(("worse", "resolved"))),
    }
    assert {row.id for row in registries.outbox.all()} == {
        delivery_id("ep1", row.transition, row.receiver) for row in registries.outbox.all()
    }


def test_who_never_heard_of_an_episode_is_not_told_how_it_goes_on(registries: Registry) -> None:
    episode = registries.episodes.open(alert_episode(registries.clock()))
    tell(registries, chat("late"))
    changed(registries, changed(registries, episode, state="acknowledged"), state="resolved")
    assert told(registries) == set()


def test_a_change_that_is_not_written_is_not_told(registries: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(registries, chat("all"))
    episode = registries.episodes.open(alert_episode(registries.clock()))
    changed(registries, episode, windows=("w1", "w2"))
    with pytest.raises(Conflict):
        changed(registries, episode, state="resolved", resolved_at=registries.clock())
    assert told(registries) == {("all", "opened", 0)}

    def fails(*_arguments: Any, **_named: Any) -> None:
        raise RuntimeError("the audit log is full")

    monkeypatch.setattr(audit, "record", fails)
    with pytest.raises(RuntimeError):
        registries.episodes.open(alert_episode(registries.clock(), id="ep3", signal="latency"))
    assert told(registries) == {("all", "opened", 0)}, "neither the episode nor its delivery"


def test_only_one_of_two_senders_takes_a_row_until_its_lease_is_over(registries: Registry) -> None:
    tell(registries, chat("all"))
    registries.episodes.open(alert_episode(registries.clock()))
    outbox, now = registries.outbox, registries.clock()
    (row,) = outbox.waiting()
    assert outbox.claim(row, now, 60)
    assert not outbox.claim(row, now, 60)
    (claimed,) = outbox.waiting()
    assert (claimed.attempts, claimed.first_at, claimed.next_at) == (1, now, now + timedelta(seconds=60))
    outbox.postpone(row.id, now + timedelta(seconds=5), "it answers 500")
    assert outbox.backlogs(["all", "none"], now + timedelta(seconds=9))["all"].failing_s == 9
    outbox.end(row.id, "sent", now)
    outbox.end(row.id, "given up", now)
    outbox.postpone(row.id, now, "late")
    (ended,) = outbox.all("ep1")
    assert (ended.state, ended.error) == ("sent", ""), "what has ended stays so"
    assert outbox.told("all") == {"ep1"}
    assert outbox.backlogs(["all"], now)["all"].failing_s == 0


def test_that_it_got_worse_is_dropped_where_nobody_was_told_before(registries: Registry, clock: Clock) -> None:
    tell(registries, chat("all"), chat("other"))
    episode = registries.episodes.open(alert_episode(registries.clock(), severity="ticket"))
    outbox, early = registries.outbox, registries.clock()
    opened = {row.receiver: row for row in outbox.waiting()}
    clock.advance(1)
    changed(registries, episode, severity="page")
    late = registries.clock()
    assert not outbox.told_as_page(opened["all"].model_copy(update={"first_at": early}), late, late)
    assert not outbox.told_as_page(opened["all"], early, late)
    assert outbox.told_as_page(opened["all"], late, late)
    states = {(row.receiver, row.transition): row.state for row in outbox.all("ep1")}
    assert [key for key, state in states.items() if state == "dropped"] == [("all", "worse")]


def test_receivers_that_cannot_be_read_stop_no_episode(registries: Registry, caplog: pytest.LogCaptureFixture) -> None:
    with registries.database.writing() as connection:
        now = registries.clock()
        values = {"model": EVERY_MODEL, "kind": "receivers", "body": {"receivers": [{}]}, "by": "a", "reason": "r"}
        connection.execute(sa.insert(policies).values(at=now, **values))
    registries.episodes.open(alert_episode(registries.clock()))
    assert "nobody is told of episodes: none of the receivers that were set can be read" in caplog.text
    assert registries.outbox.receivers() is None
    with pytest.raises(Unreadable, match="`tuneloop alert receivers --set FILE --by YOU --reason WHY`"):
        registries.policies.get(EVERY_MODEL, ReceiversPolicy)


def test_receivers_that_cannot_be_read_leave_those_before_them_in_force(registries: Registry) -> None:
    one = {"kind": "slack", "name": "all", "url": "https://example.com/hook"}
    values = {"model": EVERY_MODEL, "kind": "receivers", "by": "a", "reason": "r", "at": registries.clock()}
    with registries.database.writing() as connection:
        for receiver in (one, {}):
            connection.execute(sa.insert(policies).values(body={"receivers": [receiver]}, **values))
    registries.episodes.open(alert_episode(registries.clock()))
    assert [row.receiver for row in registries.outbox.waiting()] == ["all"]


def test_silences_end_by_themselves_or_when_they_are_revoked_and_stay_on_record(registries: Registry) -> None:
    now = registries.clock()
    model = registries.silences.add("bot", 60, by="ada", reason="r")
    one = registries.silences.add("bot", 600, by="ada", reason="r", episode_id="ep1")
    episode, other = alert_episode(now), alert_episode(now, id="ep2", model="kit")
    assert model.covers(episode, now)
    assert not model.covers(episode, now + timedelta(seconds=60))
    assert not one.covers(other, now)
    assert not one.covers(alert_episode(now, id="ep3"), now)
    registries.silences.revoke(one.id, by="grace", reason="done")
    assert [silence.id for silence in registries.silences.all(active_only=True)] == [model.id]
    assert len(registries.silences.all()) == 2
    assert [e.action for e in registries.audit.entries(one.id)] == ["silence.revoke", "silence.new"]


@pytest.mark.parametrize(
    ("receiver", "message"),
    [
        (chat("Loud"), "pattern"),
        (chat("a", url="ftp://x/y"), "write http://HOST"),
        (chat("a", url="https://u:p@x/y"), "a password has no place in a URL"),
        (chat("a", url_file="/run/secrets/url"), "url or url_file, one of them"),
        ({"kind": "webhook", "name": "a", "url": "https://x/y"}, "secret_file"),
        ({"kind": "email", "name": "a", "host": "h", "sender": "a@b", "to": ["x\nBcc: y@z"]}, "pattern"),
        (
            {"kind": "email", "name": "a", "host": "h", "sender": "a@b", "to": ["c@d"], "tls": "none"}
            | {"username": "u", "password_file": "f"},
            "not sent in the clear",
        ),
    ],
)
def test_a_receiver_that_would_not_work_or_not_be_safe_is_refused(receiver: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReceiversPolicy.model_validate({"receivers": [receiver]})
    with pytest.raises(ValueError, match="names two receivers"):
        ReceiversPolicy.model_validate({"receivers": [chat("a"), chat("a")]})


def test_most_changes_are_nothing_to_tell(registry: Registry) -> None:
    now = registry.clock()
    before = alert_episode(now, severity="page")
    assert transition_of(None, before) == "opened"
    assert transition_of(before, before.model_copy(update={"windows": ("a", "b")})) is None
    over = before.model_copy(update={"state": "resolved"})
    assert transition_of(over, over) is None
    with pytest.raises(InvalidInput):
        registry.silences.add("bot", 0, by="ada", reason="r")


def found(*signals: str, too: str = "") -> dict[str, Any]:
    return {"signals": {signal: {"pages_too": True} if signal == too else {} for signal in signals}}


def test_a_page_that_joins_a_page_is_to_be_told_under_a_key_of_its_own(registries: Registry) -> None:
    tell(registries, chat("all"))
    now = registries.clock()
    drift = registries.episodes.open(alert_episode(now, severity="ticket", evidence=found("prompt_drift")))
    late = changed(registries, drift, severity="page", evidence=found("prompt_drift", "latency"))
    attack = changed(registries, late, evidence=found("prompt_drift", "latency", "injections", too="injections"))
    changed(registries, attack, windows=("w1", "w2"))
    rows = [(row.transition, row.sequence) for row in registries.outbox.all()]
    assert sorted(rows, key=lambda row: row[1]) == [("opened", 0), ("worse", 1), ("worse", 2)]
    assert len({row.id for row in registries.outbox.all()}) == 3
    (opened,) = (row for row in registries.outbox.all() if row.transition == "opened")
    assert registries.outbox.told_as_page(opened, now, now), "who hears of all of it at once is told once"
    assert [row.transition for row in registries.outbox.waiting()] == ["opened"]


def test_a_silence_of_a_signal_keeps_nothing_else_quiet(registries: Registry) -> None:
    now = registries.clock()
    latency = registries.silences.add("bot", 600, by="ada", reason="r", signal="latency")
    slow = alert_episode(now, signal="latency", evidence=found("latency"))
    attacked = alert_episode(now, signal="latency", evidence=found("latency", "injections"))
    assert silenced(slow, [latency], now) == latency
    assert silenced(attacked, [latency], now) is None
    both = [latency, registries.silences.add("bot", 60, by="ada", reason="r", signal="injections")]
    assert silenced(attacked, both, now) == both[1], "each of its signals is silenced, the attack the shorter"
    assert silenced(attacked, both, now + timedelta(seconds=60)) is None
    assert silenced(slow, both, now + timedelta(seconds=60)) == latency


def test_a_silence_of_an_episode_covers_what_was_seen_in_it_and_the_cause_it_had(registries: Registry) -> None:
    now, causes = registries.clock(), [{"kind": "drift", "why": "w", "explains": ["prompt_drift", "latency"]}]
    drift = alert_episode(now, evidence=found("prompt_drift") | {"causes": causes})
    registries.episodes.open(drift)
    one = silence(registries, 600, by="ada", reason="r", episode_id="ep1")
    assert registries.silences.all() == [one], "as it was written"
    engine = {"kind": "engine", "why": "w", "explains": ["latency"]}
    slow = alert_episode(now, evidence=found("prompt_drift", "latency") | {"causes": [*causes, engine]})
    assert told_despite(slow, [one], now) == {"engine"}
    assert told_despite(slow.model_copy(update={"evidence": slow.evidence | {"causes": causes}}), [one], now) == set()
    again = registries.silences.add(
        "bot", 60, by="ada", reason="r", episode_id="ep1", cause="drift", signals=findings_of(slow)
    )
    assert told_despite(slow, [one, again], now) == set(), "who silenced it then had seen it"
    assert told_despite(slow, [one, again], now + timedelta(seconds=60)) == {"engine"}
    model = registries.silences.add("bot", 600, by="ada", reason="r")
    assert told_despite(slow, [one, model], now) == set()
    early = one.model_copy(update={"cause": None, "signals": None})
    assert told_despite(slow, [early], now) == set(), "an earlier release did not write down what it was for"
