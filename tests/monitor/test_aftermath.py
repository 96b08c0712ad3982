"""After a version that an episode asked for has shipped, the episode shows before and after, and what did not help
backs off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from monitor.engine import STRANGE_NATS, FakeEngine
from monitor.scene import Killed, Scene, TickingClock
from tests_support import alert_episode, window_score
from tuneloop.monitor.aftermath import OF_QUALITY, Moved, Role, compared, roles_of, verdict_of
from tuneloop.monitor.following import Follower
from tuneloop.monitor.reference import score_id
from tuneloop.monitor.show import episode_lines
from tuneloop.registry import Registry
from tuneloop.registry.evidence import aftermath_lines
from tuneloop.registry.nouns import AlertEpisode, RetrainingState, WindowScore
from tuneloop.registry.policies import RetrainingPolicy

REFUSES = "I'm sorry, but I can't help with that."


@pytest.fixture
def clock() -> TickingClock:
    return TickingClock()


@pytest.fixture
def drifting(registries: Registry, clock: TickingClock, engine: FakeEngine) -> Iterator[Scene]:
    """On both databases: a drift has asked for a retraining, which a worker has finished."""
    with httpx.Client(timeout=5, trust_env=False) as client:
        scene = Scene(registries, clock, engine, client)
        scene.promote(1)
        asked(scene)
        yield scene


def asked(scene: Scene, **changes: Any) -> None:
    policy = RetrainingPolicy(min_rows=10, auto_approve=True, cooldown_s=100)
    scene.registry.policies.set("bot", policy, by="ada", reason="test")
    scene.usual(60)
    scene.correct(scene.drifted(20, **changes))
    scene.watch()
    trained(scene, 2)


def trained(scene: Scene, version: int) -> None:
    """A worker makes it, and it serves everything."""
    queue = scene.registry.retraining
    claimed = queue.claim("w1", lease_s=60)
    assert claimed is not None
    queue.finish(claimed, RetrainingState.GATED, by="w1", outcome="pass", result_version=version)
    queue.finish(claimed, RetrainingState.SHIPPED, by="w1", outcome="bot@2 serves everything")
    scene.promote(version, "retrained")


def first_episode(scene: Scene) -> AlertEpisode:
    return scene.registry.episodes.all("bot")[-1]


def watched(scene: Scene, questions: int, **changes: Any) -> None:
    """So many more questions like those that drifted, and a pass."""
    scene.drifted(questions, **{"served_version": 2} | changes)
    assert scene.watch(serves=("bot@1", "bot@2")).failure == ""


def killed(scene: Scene, monkeypatch: pytest.MonkeyPatch, *, written: bool) -> None:
    """A pass that is killed at the verdict, before or after that is written."""
    store = type(scene.registry.episodes)
    real = store.update

    def update(*args: Any, **named: Any) -> None:
        if named["action"] != "episode.aftermath" or written:
            real(*args, **named)
        if named["action"] == "episode.aftermath":
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store, "update", update)
        with pytest.raises(Killed):
            watched(scene, 0)


def test_an_episode_shows_before_and_after_once_what_it_asked_for_has_shipped_wherever_a_monitor_is_killed(
    drifting: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifting.engine.more = lambda name, _question: -STRANGE_NATS / 2 if name == "bot@2" else 0.0
    watched(drifting, 80)
    pending = first_episode(drifting).evidence["aftermath"]
    assert (pending["verdict"], pending["signals"]["perplexity"]["after"]) == ("not enough data yet", None)
    assert "resolved: bot@2 took over from bot@1" in first_episode(drifting).done[-1]
    watched(drifting, 20)
    killed(drifting, monkeypatch, written=False)
    killed(drifting, monkeypatch, written=True)
    watched(drifting, 0)
    episode = first_episode(drifting)
    (request,) = drifting.requests()
    after = episode.evidence["aftermath"]
    assert (episode.state, after["verdict"], after["request"]) == ("resolved", "helped", request.id)
    perplexity = after["signals"]["perplexity"]
    assert perplexity["before"]["value"] == episode.evidence["signals"]["perplexity"]["nats"]["window"]
    assert perplexity["after"]["high"] < perplexity["before"]["low"]
    assert (perplexity["before"]["n"], perplexity["after"]["n"]) == (20, 2 * 20)
    assert after["signals"]["prompt_drift"]["moved"] == "decides nothing"
    text = "\n".join(episode_lines(episode, "resolved"))
    assert f"retrained  bot@2, which {request.id} made, in place of bot@1: helped" in text
    assert "nats per token: better" in text
    assert sum("in place of bot@1: helped" in line for line in episode.done) == 1


def test_what_shipped_and_did_not_help_says_so_and_backs_off(scene: Scene) -> None:
    asked(scene, answer=REFUSES)
    watched(scene, 100, answer=REFUSES)  # and it refuses as often as ever
    watched(scene, 0)
    (first,) = scene.requests()
    after = first_episode(scene).evidence["aftermath"]
    assert (after["verdict"], after["signals"]["refusals"]["moved"]) == ("did not help", "no different")
    assert after["signals"]["perplexity"]["moved"] == "decides nothing", "refusals were raised, and tell"
    scene.correct(scene.usual(20, served_version=2))
    scene.watch(serves=("bot@2",))
    again = scene.registry.episodes.all("bot")[0]
    assert (again.version, again.state) == (2, "open")
    assert f"{first.id} did not help: shipped" in again.done[-1]
    assert "after 1 that shipped the cooldown is" in again.done[-1]
    assert len(scene.requests()) == 1
    scene.clock.advance(200)
    scene.watch(serves=("bot@2",))
    assert len(scene.requests()) == 2, "and when it is over it is asked for"


def test_questions_that_are_as_hard_as_ever_show_nothing_and_back_nothing_off(scene: Scene) -> None:
    asked(scene)
    watched(scene, 100)
    watched(scene, 0)
    after = first_episode(scene).evidence["aftermath"]
    assert after["signals"]["perplexity"]["moved"] == "no different"
    assert (after["signals"]["refusals"]["role"], after["signals"]["refusals"]["moved"]) == ("stand-in", "no different")
    assert after["verdict"] == "not shown"
    assert aftermath_lines(first_episode(scene))[0].endswith("in place of bot@1: not shown")
    scene.clock.advance(200)
    scene.correct(scene.usual(20, served_version=2))
    scene.watch(serves=("bot@2",))
    assert len(scene.requests()) == 2, "the usual cooldown is over"


def test_answers_that_became_worse_with_it_did_not_help_though_nothing_of_them_was_raised(scene: Scene) -> None:
    asked(scene)
    watched(scene, 100, answer=REFUSES)
    watched(scene, 0)
    after = first_episode(scene).evidence["aftermath"]
    assert (after["verdict"], after["signals"]["refusals"]["moved"]) == ("did not help", "worse")


def test_a_version_that_is_taken_back_for_a_while_is_judged_by_its_own_windows_of_before_and_after(
    scene: Scene,
) -> None:
    asked(scene)
    scene.engine.more = lambda name, _question: -STRANGE_NATS / 2 if name == "bot@2" else 0.0
    watched(scene, 80)
    scene.promote(1, "taken back")
    watched(scene, 40, served_version=1)
    pending = first_episode(scene).evidence["aftermath"]
    assert (pending["verdict"], pending["signals"]["perplexity"]["after"]) == ("not enough data yet", None)
    scene.promote(2, "and back again")
    watched(scene, 20)
    watched(scene, 0)
    after = first_episode(scene).evidence["aftermath"]
    assert after["verdict"] == "helped"
    assert after["signals"]["perplexity"]["after"]["n"] == 2 * 20, "one of its windows before, and one after"


def test_one_that_stays_away_is_not_waited_for_for_ever_and_goes_on_should_it_serve_again(scene: Scene) -> None:
    scene.settings = scene.settings.model_copy(update={"clear_after": 1})
    asked(scene)
    scene.engine.more = lambda name, _question: -STRANGE_NATS / 2 if name == "bot@2" else 0.0
    watched(scene, 60)  # its reference, and no window
    scene.promote(1, "taken back")
    for said in ("not enough data yet", "not enough data"):
        watched(scene, 5 * 20, served_version=1)
        watched(scene, 0)
        assert first_episode(scene).evidence["aftermath"]["verdict"] == said
    scene.promote(2, "after all")
    watched(scene, 20)
    watched(scene, 0)
    assert first_episode(scene).evidence["aftermath"]["verdict"] == "helped"


def test_one_that_a_newer_version_has_replaced_is_not_waited_for(scene: Scene) -> None:
    asked(scene)
    watched(scene, 80)
    scene.promote(3)
    scene.watch(serves=("bot@1", "bot@2", "bot@3"))
    assert first_episode(scene).evidence["aftermath"]["verdict"] == "not enough data"


def test_windows_that_time_has_closed_are_waited_for_until_they_hold_as_many_records(scene: Scene) -> None:
    asked(scene)
    ids = tuple(f"req-{n}" for n in range(10))
    history = scene.registry.routes.history("bot")
    settings = scene.settings.model_copy(update={"window": 40, "window_s": 60.0})
    for number in range(80):  # as many records as twenty full ones hold
        if number in (20, 79):
            Follower(scene.registry, settings).follow(history)
            assert first_episode(scene).evidence["aftermath"]["verdict"] == "not enough data yet"
        fields: dict[str, Any] = {"version": 2, "verdict": "none", "request_ids": ids, "detail": {"window": number}}
        scene.registry.episodes.add_score(window_score(scene.clock(), id=f"n{number}", **fields))
    Follower(scene.registry, settings).follow(history)
    assert first_episode(scene).evidence["aftermath"]["verdict"] == "not enough data"


def shares(number: int, hits: int, n: int = 40, verdict: str = "none") -> WindowScore:
    detail = {"shares": {"reference": 0.0, "window": round(hits / n, 4)}, "window": number}
    return window_score(TickingClock()(), id=f"w{number}", signal="refusals", n=n, verdict=verdict, detail=detail)


@pytest.mark.parametrize(
    ("hits", "moved"), [((1, 0, 2), "better"), ((20, 20, 20), "no different"), ((39, 40, 38), "worse")]
)
def test_a_share_is_better_or_worse_where_chance_does_not_make_it_so(hits: tuple[int, ...], moved: str) -> None:
    windows = [shares(number, hit) for number, hit in enumerate(hits)]
    unjudged = shares(9, 40, verdict="not enough data")
    found = compared("refusals", shares(0, 20), [unjudged, *windows], 3, 1, closed=False)
    assert found is not None
    assert found.after is not None
    assert (found.moved, found.after.n, found.before.value) == (moved, 120, 0.5)
    assert found.before.low is not None
    assert found.before.low < 0.5
    too_few = compared("refusals", shares(0, 20), [unjudged, *windows[:2]], 3, 1, closed=False)
    assert too_few is not None
    assert (too_few.after, too_few.moved) == (None, "not enough data yet")


def test_windows_that_time_has_closed_are_taken_until_they_hold_as_many_records() -> None:
    ids = tuple(f"req-{n}" for n in range(10))
    short = [shares(number, 0, 10).model_copy(update={"request_ids": ids}) for number in range(1, 12)]
    alarm = shares(0, 10)
    few = compared("refusals", alarm, short, 3, 1, closed=False)
    as_many = compared("refusals", alarm, short, 3, 1, 100, closed=False)
    assert few is not None
    assert as_many is not None
    assert few.after is not None
    assert as_many.after is not None
    assert (few.after.n, as_many.after.n) == (30, 100)
    waits = compared("refusals", alarm, short, 3, 1, 120, closed=False)
    assert waits is not None
    assert (waits.after, waits.moved) == (None, "not enough data yet")


def test_it_helped_where_something_is_better_and_nothing_worse() -> None:
    def said(*moves: Moved | tuple[Role, Moved], closed: bool = False) -> str:
        one = compared("refusals", shares(0, 20), [], 1, 1, closed=False)
        assert one is not None
        told = [move if isinstance(move, tuple) else ("raised", move) for move in moves]
        found = {str(n): replace(one, role=role, moved=move) for n, (role, move) in enumerate(told)}
        return verdict_of(found, closed=closed)

    assert said("better", "no different", ("shown", "decides nothing")) == "helped"
    assert said("better", "worse") == said("no different", ("shown", "decides nothing")) == "did not help"
    assert said("better", "not enough data yet") == "not enough data yet"
    assert said("better", "not enough data", closed=True) == "helped"
    assert said("not enough data", ("shown", "decides nothing"), closed=True) == "not enough data"
    assert said(("symptom", "better"), ("stand-in", "no different")) == "helped"
    assert said(("symptom", "better"), ("stand-in", "worse")) == "did not help"
    assert said(("symptom", "worse")) == said(("symptom", "no different"), ("stand-in", "no different")) == "not shown"
    assert said(("stand-in", "better"), ("shown", "decides nothing")) == "helped"


def test_what_was_raised_decides_which_signals_tell() -> None:
    assert roles_of({"prompt_drift", "perplexity", "refusals"}) == {
        "prompt_drift": "shown",
        "perplexity": "shown",
        "refusals": "raised",
    }
    assert roles_of({"prompt_drift", "perplexity"})["perplexity"] == "symptom"
    alone = roles_of({"prompt_drift"})
    assert alone["perplexity"] == "shown"
    assert {signal for signal, role in alone.items() if role == "stand-in"} == {*OF_QUALITY} - {"latency"}


def test_what_decides_nothing_is_not_waited_for_where_something_decides() -> None:
    shown = compared("prompt_drift", window_score(TickingClock()()), [], 2, 1, closed=False, role="shown")
    better = compared("refusals", shares(0, 20), [shares(1, 1)], 1, 1, closed=False)
    assert shown is not None
    assert better is not None
    assert (shown.after, shown.moved) == (None, "decides nothing")
    assert verdict_of({"prompt_drift": shown, "refusals": better}, closed=False) == "helped"
    assert verdict_of({"prompt_drift": shown}, closed=False) == "not enough data yet"
    assert verdict_of({"prompt_drift": shown}, closed=True) == "not enough data"


@pytest.mark.parametrize("first", ["ws_a", "ws_z"])
def test_stand_ins_are_of_the_window_that_opened_the_episode_in_whatever_order_it_is_read(
    scene: Scene, first: str
) -> None:
    at, other = scene.clock(), "ws_z" if first == "ws_a" else "ws_a"
    findings = {"prompt_drift": {"window": first}, "perplexity": {"window": other}}
    numbers = {"prompt_drift": (first, 3), "perplexity": (other, 5)}
    scores = [(name, signal, number) for signal, (name, number) in numbers.items()]
    scores += [(score_id("bot", 1, "refusals", number), "refusals", number) for number in (3, 5)]
    for name, signal, number in sorted(scores):
        scene.registry.episodes.add_score(window_score(at, id=name, signal=signal, detail={"window": number}))
    episode = alert_episode(at, evidence={"signals": findings})
    found = Follower(scene.registry, scene.settings)._alarms(episode, roles_of(findings))
    assert found["refusals"].detail["window"] == 3
