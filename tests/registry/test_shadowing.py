"""A route's shadow: it moves nobody, ends by itself, and what it answered is nobody's request."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from registry.verbs import WHO, Verb
from tests_support import Clock, beat_engine, publish_version, request_record
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Refused, Unavailable
from tuneloop.registry.nouns import Arm, Feedback, Shadow
from tuneloop.registry.overview import shadow_now
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.judging import judgement, trial_of
from tuneloop.registry.rollouts.rollout import who_gets_what
from tuneloop.registry.routes import staging
from tuneloop.registry.routes.promotion import Change, hold_out, override, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.registry.routes.shadowing import compared, shadow
from tuneloop.registry.routes.shadowing import shadow_now as shadow_of
from tuneloop.registry.tables import routes
from tuneloop.registry.trace import trace
from tuneloop.registry.traffic import Pair

CHANGE = Change("ada", "test")
ANSWERED: dict[str, Any] = {"status": 200, "error": None, "queue_ms": 5.0, "ttft_ms": 25.0, "total_ms": 105.0}


def _pair(**shadow: Any) -> Pair:
    fields = ANSWERED | {"completion_tokens": 10, "answer_chars": 50}
    copy = fields | {"queue_ms": 900.0, "ttft_ms": 940.0, "total_ms": 1_100.0} | shadow
    return Pair.model_validate(fields | {f"shadow_{name}": value for name, value in copy.items()})


def test_a_copy_is_held_against_its_own_request_by_its_engines_time_alone() -> None:
    pairs = [_pair(completion_tokens=20, answer_chars=25) for _ in range(50)]
    pairs += [_pair(status=502, error="it failed"), _pair(status=400), _pair(ttft_ms=None)]
    found = compared(Shadow(version=2, share_bp=500), Clock().now, pairs)
    assert (found.pairs, found.failed, found.live_failed) == (52, 1, 0)
    for ratio, expected in [(found.engine_time, 2.0), (found.first_token, 2.0), (found.length, 0.5)]:
        assert ratio is not None
        assert ratio.estimate == pytest.approx(expected, rel=0.03)
        assert ratio.low < expected < ratio.high
    assert found.failures is not None
    assert found.failures.estimate == pytest.approx(1 / 52)
    one = compared(Shadow(version=2, share_bp=500), Clock().now, pairs[:1])
    assert (one.pairs, one.failures, one.engine_time) == (1, None, None), "one pair shows no spread"


@pytest.fixture
def three(registry: Registry, tmp_path: Path) -> Registry:
    """`bot@1` serves everything on an engine for three adapters; only 1 and 2 are approved."""
    for number in (1, 2, 3):
        publish_version(registry, tmp_path / f"v{number}")
    for number in (1, 2):
        registry.gates.approve("bot", number, by="ada", reason="test")
    promote(registry, "bot", 1, CHANGE)
    beat_engine(registry, "bot@1", "bot@2", max_loras=3)
    return registry


def test_a_shadow_is_loaded_and_counted_like_an_arm_and_ends_when_its_version_serves_or_leaves(three: Registry) -> None:
    first = shadow(three, "bot", 3, 500, CHANGE)
    assert (first.split, first.shadow) == ({3: 0, 1: 10_000}, Shadow(version=3, share_bp=500)), "nobody approved it"
    assert who_gets_what(first) == who_gets_what(three.routes.at("bot", 1)), "it moves nobody and stops no rollout"
    entry = three.audit.entries("bot")[0]
    assert (entry.action, entry.detail["shadow"], entry.detail["shadow_before"]) == ("route.shadow", "3=500", None)
    assert three.versions.aliases("bot") == {"champion": 1}
    with pytest.raises(Refused, match="holds 2 adapters, the routes would name 3"):
        set_route(three, "bot", {2: 1_000, 1: 9_000, 3: 0}, CHANGE)
    assert hold_out(three, "bot", 100, CHANGE).shadow == first.shadow
    three.gates.approve("bot", 3, by="ada", reason="test")
    beat_engine(three, "bot@1", "bot@2", "bot@3", max_loras=9)
    serving = set_route(three, "bot", {3: 1_000, 1: 9_000}, CHANGE)
    assert serving.shadow is None
    assert three.audit.entries("bot")[0].detail["shadow_before"] == "3=500"
    with pytest.raises(InvalidInput, match="bot@3 has a share of the traffic"):
        shadow(three, "bot", 3, 500, CHANGE)
    assert rollback(three, "bot", CHANGE).shadow is None
    assert shadow(three, "bot", 3, 700, CHANGE).shadow == Shadow(version=3, share_bp=700)
    assert set_route(three, "bot", {2: 1_000, 1: 9_000, 3: 0}, CHANGE).shadow == Shadow(version=3, share_bp=700)
    assert set_route(three, "bot", {2: 1_000, 1: 9_000}, CHANGE).shadow is None
    back = rollback(three, "bot", CHANGE, to_revision=first.revision)
    assert (back.split, back.shadow) == (first.split, first.shadow), "the revision returns as it stood"


def test_a_shadow_that_cannot_be_is_refused_and_nothing_changes(three: Registry) -> None:
    with pytest.raises(NotFound, match="bot@9 does not exist"):
        shadow(three, "bot", 9, 500, CHANGE)
    with pytest.raises(InvalidInput, match="not from 0 to 10000 basis points"):
        shadow(three, "bot", 3, 10_001, CHANGE)
    with pytest.raises(InvalidInput, match="bot@3 is not the shadow of bot, which is none"):
        shadow(three, "bot", 3, 0, CHANGE)
    with pytest.raises(Conflict):
        shadow(three, "bot", 3, 500, CHANGE, expected_revision=7)
    arms, wrong = [Arm(version=1, weight_bp=10_000)], (Shadow(version=1, share_bp=1),)
    with pytest.raises(InvalidInput, match="the shadow 1 is no arm without a share"):
        three.routes.write("bot", arms, by="a", reason="r", expected_revision=1, shadow=wrong)
    assert three.routes.current("bot").revision == 1
    set_on = shadow(three, "bot", 3, 10_000, CHANGE)
    assert shadow(three, "bot", 3, 0, CHANGE, expected_revision=set_on.revision).shadow is None


def test_a_promotion_that_cannot_be_loaded_leaves_the_shadow_and_keys_with_a_version_as_they_were(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow(three, "bot", 2, 500, CHANGE)
    before = override(three, "bot", {"tester": 2}, CHANGE)
    three.gates.approve("bot", 3, by="ada", reason="test")
    monkeypatch.setattr(staging, "LOAD_TIMEOUT_S", 0.1)
    with pytest.raises(Unavailable, match="no live engine serves bot@3"):
        promote(three, "bot", 3, CHANGE)
    staged, after = three.routes.at("bot", 4), three.routes.current("bot")
    assert (staged.shadow, staged.overrides) == (None, {}), "bot@2 left with the staging"
    assert (after.revision, after.arms, after.shadow, after.overrides) == (
        5,
        before.arms,
        before.shadow,
        before.overrides,
    )


def test_what_a_shadow_answered_is_nobodys_request(registries: Registry, clock: Clock) -> None:
    """Both versions are arms of the split, and 2 was a shadow before: nothing may take its copies for answers."""
    arms = [Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)]
    registries.routes.write("bot", arms, by="a", reason="r", expected_revision=0)
    route = registries.routes.write(
        "bot", arms, by="a", reason="r", expected_revision=1, shadow=(Shadow(version=2, share_bp=500),)
    )
    clock.advance(1)
    changed: dict[str, Any] = {"revision": 2, "queue_ms": 1.0, "prompt_tokens": 3, "completion_tokens": 4}
    asked = [request_record(n, clock(), **changed) for n in range(3)]
    copies = [
        request_record(n + 10, clock(), assigned_version=None, served_version=2, shadow_of=f"req-{n}", **changed)
        for n in range(3)
    ]
    orphan = request_record(99, clock(), served_version=2, shadow_of="req-98", **changed)
    registries.traffic.add_requests([*asked, *copies, orphan])
    registries.traffic.add_requests(copies)
    registries.traffic.add_feedback([Feedback(id="f", request_id="req-10", at=clock(), thumb="down")])
    since, until = clock() - timedelta(days=1), clock() + timedelta(days=1)
    assert registries.traffic.window("bot") == asked
    assert registries.traffic.window("bot", version=2) == []
    assert [o.id for o in registries.traffic.outcomes("bot", since=since, until=until)[0]] == [r.id for r in asked]
    assert registries.traffic.answered_ms("bot", 2, newest=9) == []
    with pytest.raises(NotFound):
        registries.traffic.request("req-10")
    [usage] = registries.usage.month(clock())
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (3, 9, 12)
    assert [step.kind for step in trace(registries, "req-1")][:2] == ["request", "shadow"]
    found = shadow_now(registries, "bot").report
    assert found is not None
    assert (found.version, found.since, found.pairs) == (2, route.at, 3)
    assert found.length is not None
    assert found.length.estimate == 1.0
    assert shadow_of(registries, route.model_copy(update={"shadow": None})).report is None
    arms = [Arm(version=2, weight_bp=5_000), Arm(version=1, weight_bp=5_000)]
    registries.routes.write("bot", arms, by="a", reason="r", expected_revision=2)
    clock.advance(1)
    samples, *_ = judgement(registries, "bot", 2, Limits(), trial_of(registries, "bot", 2)).checks
    assert samples.detail.startswith("0 answered")


def test_a_shadow_is_compared_as_it_was_read_though_it_has_ended_since_or_an_earlier_revision_is_damaged(
    registries: Registry, clock: Clock
) -> None:
    arms, made = [Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)], []
    for number, share_bp in enumerate((0, 100, 200, 300)):
        shadows = (Shadow(version=2, share_bp=share_bp),) if share_bp else ()
        made.append(registries.routes.write("bot", arms, by="a", reason="r", expected_revision=number, shadow=shadows))
        clock.advance(1)
    registries.routes.write("bot", arms, by="a", reason="r", expected_revision=4, shadow=())
    ended = shadow_of(registries, made[-1])
    assert ended.report is not None, "somebody ended it between two readings"
    assert (ended.report.since, ended.unreadable) == (made[1].at, ())
    with registries.database.writing() as connection:
        connection.execute(sa.update(routes).where(routes.c.revision == 2).values(arms="{"))
    damaged = shadow_of(registries, made[-1])
    assert damaged.report is not None
    assert damaged.report.since == made[2].at, "from the one after that on"
    assert re.search(r"bot.*2|2.*bot", damaged.unreadable[0])


def test_what_is_compared_is_the_first_of_a_shadow_and_not_a_window_that_slides(registries: Registry) -> None:
    start = registries.clock()
    for number in (3, 1, 2, 4):
        at, copy = start + timedelta(seconds=number), {"served_version": 2, "shadow_of": f"req-{number}"}
        registries.traffic.add_requests([request_record(number, at)])
        registries.traffic.add_requests([request_record(number + 10, at, total_ms=float(number), **copy)])
    pairs = registries.traffic.pairs("bot", 2, since=start, first=2)
    assert [pair.shadow_total_ms for pair in pairs] == [1.0, 2.0]


def test_the_verb_sets_shows_and_ends_a_shadow(lived_in: Registry, verb: Verb) -> None:
    lived_in.fleet.forget_gateway("g1")
    code, out, _ = verb("route", "shadow", "bot", "3=500", *WHO)
    assert (code, out) == (0, "bot revision 3: 2=1000 3=0 1=9000, shadow 3=500 (by ada: test)\n")
    shown = verb("route", "shadow", "bot")[1]
    assert "bot@3 shadows 5 % of the keys since" in shown
    assert "nothing compared yet" in shown
    now = lived_in.clock()
    asked = [request_record(n, now, revision=3, queue_ms=1.0) for n in range(100, 110)]
    copies = [
        request_record(n + 100, now, revision=3, served_version=3, queue_ms=1.0, shadow_of=f"req-{n}")
        for n in range(100, 110)
    ]
    lived_in.traffic.add_requests([*asked, *copies])
    shown = verb("route", "shadow", "bot")[1]
    assert "failed                   0 of 10, live 0 (+0.00 points" in shown
    assert "time to first token      -" in shown
    assert "shadow 3=500" in verb("route", "history", "bot")[1]
    assert json.loads(verb("route", "shadow", "bot", "--json")[1])["report"]["pairs"] == 10
    assert verb("route", "shadow", "bot", "3", *WHO)[0] == 2
    assert "needs --by and --reason" in verb("route", "shadow", "bot", "3=100")[2]
    assert "are for VERSION=BASIS_POINTS" in verb("route", "shadow", "bot", *WHO)[2]
    shown = verb("route", "diff", "bot", "2")[1]
    assert re.search(r"version 3 +- +0\n *shadow +- +3=500\nanother version answers 0 % of the keys\n", shown)
    assert verb("route", "diff", "bot", "3")[1] == "they are alike\n"
    assert "10 % of the keys" in verb("route", "diff", "bot", "1", "2")[1]
    code, out, _ = verb("route", "shadow", "bot", "3=0", *WHO)
    assert (code, out) == (0, "bot revision 4: 2=1000 3=0 1=9000 (by ada: test)\n")
    assert verb("route", "shadow", "bot")[1] == "bot has no shadow\n"
