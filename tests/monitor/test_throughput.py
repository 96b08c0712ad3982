"""How fast answers come, how often they are asked for, and what guards find, where settings ask for it: a change is
told, what stays as it was is not, and whoever does not ask pays nothing for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from monitor.scene import Scene
from tests_support import Clock, request_record, window_score
from tuneloop.monitor.alerts import summary
from tuneloop.monitor.comparison import Comparison, Finds
from tuneloop.monitor.guarded import finds
from tuneloop.monitor.reference import AN_HOUR, Reference, of_like_times, reference_of
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import budget_share, signals_of
from tuneloop.monitor.standards import _spans
from tuneloop.monitor.throughput import gaps, throughput, tokens_per_s
from tuneloop.monitor.windows import Window
from tuneloop.registry.guard_policy import GuardPolicy, looked_alike
from tuneloop.registry.nouns import RequestRecord

ALPHA = 0.02
PERSONAL: dict[str, Any] = {"guards": {"personal": "redact: EMAIL_ADDRESS"}}
STOPPED: dict[str, Any] = {"status": 400, "served_version": None, "guards": {"topics": "block: law"}}


def answers(scene: Scene, n: int, *, slower: float = 1.0, queue_ms: float = 5.0, every_s: float = 1.0) -> None:
    """As many answers as `n`, of chance like an engine's, so much slower or rarer."""
    for _ in range(n):
        scene.clock.advance(scene.rng.expovariate(1 / every_s))
        tokens, busy_ms = scene.rng.randint(20, 200), scene.rng.gauss(20, 2) * slower
        queued = scene.rng.expovariate(1 / queue_ms)
        total_ms = queued + tokens * busy_ms
        scene.usual(1, completion_tokens=tokens, total_ms=total_ms, queue_ms=queued, stream=True, ttft_ms=queued + 30)


@pytest.mark.parametrize(
    ("change", "signal", "said"),
    [
        ({"slower": 2.0}, "tokens_per_s", "writes fewer tokens a second (geometric mean "),
        ({"queue_ms": 100.0}, "queue_time", "keeps requests waiting longer (geometric mean "),
        ({"every_s": 60.0}, "request_rate", "is asked less often (geometric mean "),
    ],
)
def test_slower_answers_longer_queues_and_another_rate_are_each_told_by_their_own_signal(
    scene: Scene, change: dict[str, float], signal: str, said: str
) -> None:
    scene.clock.advance(7 * 3_600)  # the promotion is no cause any more
    answers(scene, 80)
    scene.watch(scene.monitor(throughput=True))
    assert scene.registry.episodes.all("bot") == []
    answers(scene, 20, **change)
    scene.watch(scene.monitor(throughput=True))
    episode = scene.the_episode()
    assert [*episode.evidence["signals"]] == [signal]
    assert said in episode.evidence["summary"]
    assert (episode.severity, episode.runbook) == ("ticket", "docs/runbooks/throughput.md")
    assert [cause["kind"] for cause in episode.evidence["causes"]] == ["load"]


def test_one_engine_that_writes_slower_than_the_others_leads_the_causes(scene: Scene) -> None:
    for number in range(80):
        scene.usual(1, engine=f"e{number % 2}", completion_tokens=100, total_ms=900.0 + number)
    for number in range(40):
        scene.usual(1, engine=f"e{number % 2}", completion_tokens=100, total_ms=(900.0 + number) * (1 + number % 2 * 3))
    scene.watch(scene.monitor(throughput=True, window=40))
    causes = scene.the_episode().evidence["causes"]
    assert (causes[0]["kind"], causes[0]["why"]) == ("engine", "e1 alone is slow")


def test_personal_data_and_what_guards_stop_are_told_where_asked_for(scene: Scene) -> None:
    scene.registry.policies.set("bot", GuardPolicy(), by="ada", reason="test")
    monitor = scene.monitor(guard_rates=True)
    scene.usual(80)
    scene.watch(monitor)
    scene.usual(6)
    scene.usual(14, **PERSONAL)
    scene.watch(monitor)
    (personal,) = scene.registry.episodes.all("bot")
    assert [*personal.evidence["signals"]] == ["personal_data"]
    assert "personal data or secrets (0% → 70%)" in personal.evidence["summary"]
    assert personal.evidence["causes"][0]["why"] == "what users ask holds more of what guards look for"
    scene.clock.advance(10_000)
    for _ in range(20):
        scene.usual(1)
        scene.traffic(["May I sue?"], answer=None, api_key="key_9", **STOPPED)
    scene.watch(monitor)
    blocks = next(e for e in scene.registry.episodes.all("bot") if e.signal == "guard_blocks")
    assert blocks.evidence["signals"]["guard_blocks"]["slices"][0]["value"] == "key_9"


def test_another_guard_policy_is_no_rise_of_what_guards_stop_and_ends_what_was_one(scene: Scene) -> None:
    scene.registry.policies.set("bot", GuardPolicy(), by="ada", reason="test")
    monitor = scene.monitor(guard_rates=True)
    scene.usual(80)
    scene.usual(20, **PERSONAL)
    scene.watch(monitor)
    assert scene.the_episode().state == "open"
    scene.registry.policies.set("bot", GuardPolicy(personal="block"), by="ada", reason="test")
    scene.clock.advance(1)
    for _ in range(41):
        scene.usual(1)
        scene.traffic(["Write to me@example.com"], answer=None, **STOPPED)
    scene.watch(monitor)
    newest = scene.scores("guard_blocks")[-1]
    assert newest.detail["reason"] == "bot has no guards, or not those it had for the reference"
    episode = scene.the_episode()
    assert (episode.state, [*episode.evidence["signals"]]) == ("resolved", ["personal_data"])
    assert "too little on record since to judge personal_data by" in episode.done[-1]


def test_whoever_does_not_ask_for_them_pays_nothing(scene: Scene) -> None:
    usual = MonitorSettings()
    asked = MonitorSettings(throughput=True, guard_rates=True)
    new = {"tokens_per_s", "queue_time", "request_rate", "personal_data", "guard_blocks"}
    assert {*signals_of(asked)} - {*signals_of(usual)} == new
    assert sum(budget_share(signal, asked) for signal in signals_of(asked)) == pytest.approx(1.0)
    scene.usual(80)
    scene.watch()
    assert [scene.scores(signal) for signal in new] == [[]] * len(new)


def held(reference: list[RequestRecord], window: list[RequestRecord]) -> Comparison:
    return Comparison(
        "bot", 1, reference_of(reference, frozen=True), Window(0, tuple(window), len(window), window[-1].at), {}, {}
    )


def stream(clock: Clock, n: int, rng: random.Random, start: int = 0) -> list[RequestRecord]:
    at, found = clock.now + timedelta(days=start), []
    for number in range(n):
        at += timedelta(seconds=rng.lognormvariate(0, 1.5))
        found.append(
            request_record(
                start * 1_000 + number,
                at,
                completion_tokens=rng.randint(1, 300),
                total_ms=rng.lognormvariate(7, 1),
                queue_ms=rng.choice([0.0, 0.1, rng.expovariate(0.01)]),
            )
        )
    return found


@pytest.mark.parametrize("signal", ["tokens_per_s", "queue_time", "request_rate"])
def test_what_stays_as_it_was_alarms_no_oftener_than_its_level(clock: Clock, signal: str) -> None:
    rng, numbers = random.Random(11), np.random.default_rng(11)
    windows = 100
    alarms = 0
    for number in range(windows):
        both = stream(clock, 80, rng, start=number)
        alarms += throughput(signal, held(both[:60], both[60:]), ALPHA, numbers).verdict == "drift"
    assert alarms <= windows * ALPHA + 3 * (windows * ALPHA * (1 - ALPHA)) ** 0.5


def test_records_that_tell_no_tokens_or_no_queue_decide_nothing(clock: Clock) -> None:
    at: Callable[[int], RequestRecord] = lambda n: request_record(n, clock.now + timedelta(seconds=n))  # noqa: E731
    comparison = held([at(n) for n in range(60)], [at(n) for n in range(60, 80)])
    for signal in ("tokens_per_s", "queue_time"):
        found = throughput(signal, comparison, ALPHA, np.random.default_rng(1))
        assert (found.verdict, "not_measured" in found.detail) == ("not enough data", True)
    assert throughput("request_rate", comparison, ALPHA, np.random.default_rng(1)).verdict == "none"
    assert finds("guard_blocks", comparison, ALPHA).verdict == "not enough data"


def test_speed_leaves_out_the_queue() -> None:
    record = request_record(1, Clock().now, completion_tokens=100, total_ms=3_000.0, queue_ms=1_000.0)
    assert tokens_per_s(record) == pytest.approx(50)
    assert tokens_per_s(record.model_copy(update={"completion_tokens": None})) is None


def test_gaps_of_a_season_leave_out_what_a_full_hour_cut_off(clock: Clock) -> None:
    since = clock.now
    busy = [request_record(n, since + timedelta(seconds=n)) for n in range(AN_HOUR)]
    later = [request_record(100 + n, since + timedelta(hours=1, seconds=10 * n)) for n in range(3)]
    whole = Reference((*busy, *later), "d", frozen=True)
    season = replace(whole, of=whole, since=since)
    seconds = [gap for _, gap in gaps(season)]
    assert seconds == [1.0] * (AN_HOUR - 1) + [10.0] * 2, "not the 59 minutes in which nothing was kept"
    one_less = replace(whole, records=(*busy[1:], *later))
    assert 3_551.0 in [gap for _, gap in gaps(replace(one_less, of=one_less, since=since))], (
        "in which nothing was asked"
    )
    chosen = replace(season, records=tuple(later[1:2]))
    assert [gap for _, gap in gaps(chosen)] == [10.0], "of those that were chosen alone, to the one before in time"


def test_a_policy_looks_alike_from_when_it_last_changed(scene: Scene) -> None:
    def alike(**changes: Any) -> Any:
        return looked_alike(
            scene.registry.database, "bot", lambda p: p.personal != "off", **({"since": start} | changes)
        )

    start = scene.clock.now
    assert alike(until=scene.clock.now) is None
    scene.registry.policies.set("bot", GuardPolicy(), by="ada", reason="test")
    scene.clock.advance(10)
    first = alike(until=scene.clock.now)
    assert start < first < scene.clock.now
    scene.registry.policies.set("bot", GuardPolicy(), by="ada", reason="the same again")
    scene.clock.advance(10)
    assert alike(until=scene.clock.now) == first
    scene.registry.policies.set("bot", GuardPolicy(hidden="block"), by="ada", reason="test")
    scene.clock.advance(10)
    assert alike(until=scene.clock.now) > first
    assert alike(since=scene.clock.now, until=scene.clock.now) <= scene.clock.now
    scene.registry.policies.set("bot", GuardPolicy(personal="off"), by="ada", reason="test")
    scene.clock.advance(10)
    assert alike(until=scene.clock.now) is None


def test_which_way_a_rate_went_is_told_by_what_was_tested(clock: Clock) -> None:
    def apart(gaps_s: list[float], start: int) -> list[RequestRecord]:
        at, found = clock.now + timedelta(hours=start), []
        for number, gap_s in enumerate(gaps_s):
            at += timedelta(seconds=gap_s)
            found.append(request_record(1_000 * start + number, at))
        return found

    window = apart([1.2, 0.002, 1.2, 1.2, 0.002] * 8, 1)  # a longer median, and yet more often
    found = throughput("request_rate", held(apart([1.0] * 60, 0), window), ALPHA, np.random.default_rng(1))
    assert found.verdict == "drift"
    said = summary(window_score(clock.now, signal="request_rate", detail=found.detail))
    assert said == "bot@1 is asked more often (geometric mean 1 → 0.102 s between requests)"


def test_a_policy_that_saw_the_end_of_a_reference_alone_does_not_say_what_is_normal(clock: Clock) -> None:
    at: Callable[[int], RequestRecord] = lambda n: request_record(n, clock.now + timedelta(seconds=n))  # noqa: E731
    comparison = held([at(n) for n in range(60)], [at(n) for n in range(60, 80)])
    verdicts = []
    for seen in (2, 29, 30):
        found = finds("guard_blocks", replace(comparison, guarded={"guard_blocks": Finds((0, seen), (0, 20))}), ALPHA)
        verdicts.append(found.verdict)
        if seen == 2:
            assert found.detail["reason"] == "guards of bot looked for it in 2 requests of the reference; 30 are needed"
    assert verdicts == ["not enough data", "not enough data", "none"]


def test_of_a_season_guards_finds_are_counted_at_the_windows_time_of_day_alone(scene: Scene) -> None:
    """Not those of the night, nor those of the half hour before, in which there always are some."""
    scene.registry.policies.set("bot", GuardPolicy(), by="ada", reason="test")
    scene.clock.now = scene.clock.now.replace(hour=0, minute=0) + timedelta(days=1)
    asked = []
    for day in range(3):
        for hour, minute, fields in ((3, 5, PERSONAL), (15, 1, PERSONAL), (15, 31, {})):
            scene.clock.now = scene.clock.now.replace(hour=hour, minute=minute, second=0)
            asked += scene.usual(10, **fields)
            scene.traffic(["May I sue?"] * 4, answer=None, **STOPPED)
            asked += scene.usual(10, **fields)
        if day < 2:
            scene.clock.now += timedelta(days=1)
    whole = reference_of(asked[:120], frozen=True)
    window = Window(0, tuple(asked[-20:]), 20, asked[-1].at)
    chosen = of_like_times(whole, window.records, 40)
    counted = scene.monitor()._standards.guarded("bot", chosen, window, ("personal_data", "guard_blocks"))
    assert counted["personal_data"].reference == (0, 48)
    assert counted["guard_blocks"].reference == (8, 48)
    everything = scene.monitor()._standards.guarded("bot", whole, window, ("personal_data",))
    assert everything["personal_data"].reference[0] == 80


def test_of_a_season_as_many_requests_count_as_the_window_is_held_against(scene: Scene) -> None:
    """A short window at a quiet time must not be left unjudged for want of requests in its own minutes."""
    scene.registry.policies.set("bot", GuardPolicy(), by="ada", reason="test")
    midnight = scene.clock.now.replace(hour=0, minute=0, second=0) + timedelta(days=1)
    asked = []
    for day in range(3):
        for minute in (0, 20, 40, 60, 240):
            scene.clock.now = midnight + timedelta(days=day, hours=12, minutes=minute)
            asked += scene.usual(10, **(PERSONAL if minute in (60, 240) else {}))
    whole = reference_of(asked[:100], frozen=True)
    window = Window(0, tuple(asked[110:120]), 10, asked[119].at)  # at noon, 20 minutes past
    standards, counted = scene.monitor()._standards, []
    for size in (20, 40, 60, 100):
        chosen = of_like_times(whole, window.records, size)
        counted.append(standards.guarded("bot", chosen, window, ("personal_data",))["personal_data"].reference)
    assert counted == [(0, 20), (0, 60), (0, 60), (40, 100)]
    since = whole.records[50].at  # the policy is younger than the reference: its hours are no other hours' measure
    assert len(list(_spans(chosen, since, window))) == 1 < len(list(_spans(chosen, whole.records[0].at, window)))
