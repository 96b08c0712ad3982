"""Which engine a request goes to: the laws of the choice, whatever the engines, their load and the draws."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.gateway.test_snapshot import engine, view
from serve.gateway.world import World
from tuneloop.registry.nouns import AdapterState
from tuneloop.serve.gateway.choice import BEGINNING_CHARS, BUSIER_PERCENT, beginning, choose
from tuneloop.serve.gateway.load import Load
from tuneloop.serve.gateway.routing import pick
from tuneloop.serve.gateway.snapshot import Target

ALLOWANCE = 4_096
Messages = tuple[tuple[str, str], ...]
NAMES = [f"e{n}" for n in range(8)]
TEXTS = st.text(max_size=20)
LOADS = st.fixed_dictionaries({name: st.integers(0, 50_000) for name in NAMES})
FLEETS = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)


def targets(names: Sequence[str]) -> list[Target]:
    return [Target(1, "bot@1", name, f"http://{name}") for name in names]


def asked(text: str) -> Messages:
    return (("system", "Be brief."), ("user", text))


def idle(_: str) -> int:
    return 0


@settings(max_examples=60)
@given(
    states=st.fixed_dictionaries({name: st.sampled_from([None, *AdapterState]) for name in NAMES}),
    loads=LOADS,
    text=TEXTS,
    seed=st.integers(),
    allowance=st.sampled_from([0, ALLOWANCE]),
)
def test_no_engine_is_taken_that_does_not_serve_the_version(
    states: dict[str, AdapterState | None], loads: dict[str, int], text: str, seed: int, allowance: int
) -> None:
    known = view(*(engine(name, **({"v1": state} if state else {})) for name, state in states.items()))
    draw = random.Random(seed).random
    target = pick(known, "bot", (1,), loads.__getitem__, draw=draw, messages=asked(text), allowance=allowance)
    serving = {name for name, state in states.items() if state is AdapterState.READY}
    leaving = {name for name, state in states.items() if state is AdapterState.DRAINING}
    assert (target.engine if target else "") in (serving or leaving or {""})


@given(fleet=FLEETS, loads=LOADS, text=TEXTS, seed=st.integers())
def test_a_preferred_engine_is_passed_over_if_and_only_if_it_is_clearly_busier_and_the_busiest_is_never_drawn(
    fleet: list[str], loads: dict[str, int], text: str, seed: int
) -> None:
    able, draw = targets(fleet), random.Random(seed).random
    preferred = choose(able, idle, draw, asked(text), ALLOWANCE).engine
    found = choose(able, loads.__getitem__, draw, asked(text), ALLOWANCE).engine
    most = ALLOWANCE + BUSIER_PERCENT * sum(loads[name] for name in fleet) // (100 * len(fleet))
    assert (found == preferred) == (loads[preferred] <= most)
    assert loads[found] <= most
    if len(fleet) > 1:
        drawn = choose(able, loads.__getitem__, draw).engine
        assert loads[drawn] <= max(loads[name] for name in fleet if name != drawn)


@pytest.mark.parametrize("texts", [1, 3, 400])
def test_the_load_of_the_busiest_engine_stays_near_the_mean_however_alike_the_prompts_are(texts: int) -> None:
    """Requests that come at once and do not end, of a few hundred tokens each; the worst case is one prompt for all."""
    load, able, rng = Load(), targets(NAMES), random.Random(3)
    for _ in range(2_000):
        cost = rng.randint(100, 1_500)
        load.carry(choose(able, load.tokens, rng.random, asked(f"text {rng.randrange(texts)}"), ALLOWANCE), cost)
        under_way = [load.tokens(name) for name in NAMES]
        mean = sum(under_way) / len(under_way)
        assert max(under_way) <= ALLOWANCE + BUSIER_PERCENT / 100 * mean + 1_500, "and one request more"


@given(fleet=FLEETS, text=TEXTS, seeds=st.tuples(st.integers(), st.integers()), order=st.randoms())
def test_the_same_beginning_goes_to_the_same_engine_in_whatever_order_they_are_known(
    fleet: list[str], text: str, seeds: tuple[int, int], order: random.Random
) -> None:
    again = order.sample(fleet, len(fleet))
    one, two = (
        choose(targets(names), idle, random.Random(seed).random, asked(text), ALLOWANCE)
        for names, seed in ((fleet, seeds[0]), (again, seeds[1]))
    )
    assert one.engine == two.engine


@settings(max_examples=30)
@given(gone=st.sampled_from(NAMES))
def test_an_engine_that_leaves_moves_its_own_beginnings_alone_and_spreads_them(gone: str) -> None:
    draw = random.Random(1).random
    before, after = (
        [choose(targets(fleet), idle, draw, asked(f"text {n}"), ALLOWANCE).engine for n in range(400)]
        for fleet in (NAMES, [name for name in NAMES if name != gone])
    )
    moved = Counter(new for old, new in zip(before, after, strict=True) if old == gone)
    assert [old for old in before if old != gone] == [
        new for old, new in zip(before, after, strict=True) if old != gone
    ]
    assert len(moved) > 3, "not all to one"
    assert min(Counter(before)[name] for name in NAMES) > 400 / len(NAMES) / 2


def test_where_a_beginning_goes_is_the_same_in_every_process_and_release() -> None:
    found = [choose(targets(NAMES), idle, idle_draw, asked(f"text {n}"), ALLOWANCE).engine for n in range(6)]
    assert found == ["e2", "e6", "e1", "e3", "e4", "e4"]


def idle_draw() -> float:
    return 0.0


def test_a_conversation_begins_alike_at_each_of_its_turns_and_unlike_others() -> None:
    first = (("system", "Be brief."), ("developer", "No jokes."), ("user", "Hello"))
    assert beginning((*first, ("assistant", "Hi"), ("user", "And now?"))) == beginning(first)
    assert beginning((*first[:2], ("user", "Hallo"))) != beginning(first)
    assert beginning((("system", "Be long."), *first[1:])) != beginning(first)
    assert beginning((("user", "x" * BEGINNING_CHARS + "a"),)) == beginning((("user", "x" * BEGINNING_CHARS + "b"),))
    assert isinstance(beginning((("user", "\ud800"),)), int)


def test_without_a_preference_requests_are_spread_by_tokens_and_not_by_their_number() -> None:
    load, able, draw = Load(), targets(["e1", "e2"]), random.Random(5).random
    load.carry(able[0], 8_000)
    for _ in range(7):
        load.carry(choose(able, load.tokens, draw), 1_000)
    assert (load.of("e1"), load.of("e2")) == (1, 7)
    assert (load.tokens("e1"), load.tokens("e2")) == (8_000, 7_000)


def test_a_conversation_stays_with_its_engine_through_a_gateway_and_others_go_elsewhere(world: World) -> None:
    engines = [world.engine(name, "bot@1") for name in ("e1", "e2", "e3")]
    world.route((1, 10_000))
    gateway = world.gateway(affinity_tokens=ALLOWANCE)
    for topic in range(12):
        before = [len(engine.seen) for engine in engines]
        turns = [{"role": "user", "content": f"About topic {topic}"}]
        for _ in range(3):
            assert gateway.call("/v1/chat/completions", {"model": "bot", "messages": turns}).status == 200
            turns += [{"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
        assert sorted(len(engine.seen) - known for engine, known in zip(engines, before, strict=True)) == [0, 0, 3]
    assert all(engine.seen for engine in engines)
