"""What joins a silenced episode, or a page, by a cause of its own is told all the same, once."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from monitor.delivery.post import acknowledge, chat, end, open_episode, rounds, row_of, tell, titles, worsen
from monitor.delivery.servers import HttpReceiver
from monitor.scene import Killed, failing
from tests_support import Clock, alert_episode, window_score
from tuneloop.monitor.alerts import joined
from tuneloop.monitor.delivery.bodies import alertmanager
from tuneloop.monitor.delivery.deciding import LONGEST_WAIT_S
from tuneloop.monitor.delivery.page import page_of
from tuneloop.monitor.delivery.rounds import LEASE_S, RENEW_S
from tuneloop.registry import Registry
from tuneloop.registry.actions import silence
from tuneloop.registry.deliveries.outbox import Outbox
from tuneloop.registry.nouns import AlertEpisode


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
        "[page] bot@1 is attacked: it is asked more that guards stop or flag (0% → 50%); bot@1 is slow"
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
