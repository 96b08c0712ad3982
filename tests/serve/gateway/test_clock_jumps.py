"""Clocks that are set: an hour back, a day ahead, and right again; what passes is told by one that nobody sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from serve.gateway.test_limits_shared import Front, most_in_a_minute
from tests_support import Clock, beat_engine, beat_gateway, request_record
from tuneloop.registry import Registry
from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.fleet import STALE_AFTER_S
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.breaker import LONGEST_PAUSE_S
from tuneloop.serve.gateway.load import Load
from tuneloop.serve.gateway.snapshot import Target

JUMPS_S = pytest.mark.parametrize("jump_s", [-3_600, 86_400], ids=["an hour back", "a day ahead"])


@dataclass
class Machine:
    """One machine: what its clock shows, and the time that has passed, which is the same everywhere."""

    passed: Clock
    off_s: float = 0.0

    def wall(self) -> datetime:
        return self.passed() + timedelta(seconds=self.off_s)

    def steady(self) -> float:
        return self.passed().timestamp()


@dataclass
class Machines:
    """Registries of several machines on one database."""

    registry: Registry
    passed: Clock
    stack: ExitStack
    all: list[Machine] = field(default_factory=list)

    def new(self) -> tuple[Machine, Registry]:
        machine = Machine(self.passed)
        settings = self.registry.settings
        opened = Registry.open(settings, clock=machine.wall, steady=machine.steady, upgrade=False)
        self.stack.enter_context(opened)
        return machine, opened


@pytest.fixture
def machines(registries: Registry, clock: Clock) -> Iterator[Machines]:
    with ExitStack() as stack:
        yield Machines(registries, clock, stack)


@pytest.fixture
def machines_here(registry_home: Path, clock: Clock) -> Iterator[Machines]:
    """On SQLite alone: for what takes minutes of time that passes."""
    with ExitStack() as stack:
        registry = stack.enter_context(Registry.open(RegistrySettings(home=registry_home), clock=clock))
        yield Machines(registry, clock, stack)


@JUMPS_S
def test_who_beats_lives_whatever_the_reader_s_clock_is_set_to(machines: Machines, jump_s: float) -> None:
    (machine, reader), (_, other) = machines.new(), machines.new()
    for second in range(30):
        if second == 5:
            machine.off_s = jump_s
        if second == 22:
            machine.off_s = 0
        beat_engine(other)
        beat_gateway(other, {}, id="g1")
        assert [engine.id for engine in reader.fleet.engines()] == ["e1"], second
        assert [gateway.id for gateway in reader.fleet.gateways()] == ["g1"], second
        assert not reader.fleet.silent_gateways(600), second
        machines.passed.advance(1)


@JUMPS_S
def test_who_died_is_gone_in_time_whatever_its_clock_said(machines: Machines, jump_s: float) -> None:
    (_, reader), (machine, other) = machines.new(), machines.new()
    for second in range(5):
        beat_engine(other)
        beat_gateway(other, {}, id="g1")
        machine.off_s = jump_s if second else 0
        assert reader.fleet.engines(), second
        assert reader.fleet.gateways(), second
        machines.passed.advance(1)
    machines.passed.advance(STALE_AFTER_S)
    assert not reader.fleet.engines()
    assert not reader.fleet.gateways()
    assert [gateway.id for gateway in reader.fleet.silent_gateways(600)] == ["g1"]
    machines.passed.advance(600)
    assert not reader.fleet.silent_gateways(600)


@pytest.mark.parametrize(
    ("jump_s", "who"), [(-3_600, (0, 1)), (86_400, (0,))], ids=["both an hour back", "one a day ahead"]
)
def test_gateways_share_a_limit_whatever_their_clocks_are_set_to(
    machines_here: Machines, jump_s: float, who: tuple[int, ...]
) -> None:
    machines = machines_here
    _, key = machines.registry.keys.new("team-a", by="test", limits=KeyLimits(requests_per_minute=40))
    both = [machines.new() for _ in range(2)]
    two = [
        Front(f"g{number}", registry, Clock(), key, wall=machine.wall, steady=machine.steady)
        for number, (machine, registry) in enumerate(both)
    ]
    for second in range(125):
        for number in who:
            both[number][0].off_s = jump_s if 10 <= second < 75 else 0
        for number, front in enumerate(two):
            front.look()
            if second % 2 == number:  # the traffic moves, and there is more than is let in
                front.ask(5)
        machines.passed.advance(1)
    assert most_in_a_minute(two) <= 40
    late = [at for front in two for at in front.let_in if at > machines.passed().timestamp() - 60]
    assert len(late) >= 20  # and nobody holds it for ever


def test_a_month_s_money_is_as_it_was_once_the_clock_is_right_again(machines: Machines) -> None:
    price = Price(prompt_usd_per_million=Decimal(1), completion_usd_per_million=Decimal(1))
    limits = KeyLimits(budget_usd_per_month=Decimal("0.001"))
    _, key = machines.registry.keys.new("team-a", by="test", limits=limits)
    machine, registry = machines.new()
    front = Front("g", registry, Clock(), key, {"bot": price}, wall=machine.wall, steady=machine.steady)
    spent = request_record(1, machine.wall(), api_key=key.id, prompt_tokens=990, completion_tokens=5)
    registry.traffic.add_requests([spent])
    front.look()
    assert front.ask(1) == 0
    for jump_s in (-3_600, 0, 86_400, 0):
        machine.off_s = jump_s
        front.look()
        assert front.ask(1) == 0, jump_s
        machines.passed.advance(10)


@JUMPS_S
def test_a_breaker_s_pause_is_as_long_whatever_the_clock_is_set_to(jump_s: float) -> None:
    machine = Machine(Clock())
    load, target = Load(machine.steady), Target(1, "bot@1", "e1", "http://e1")
    load.set_aside("e1")
    load.shun(target.slot, busy=False)
    machine.off_s = jump_s
    assert load.aside() == {"e1"}
    assert load.shunned() == {target.slot}
    machine.passed.advance(LONGEST_PAUSE_S)
    assert not load.aside() | load.shunned()
