"""One key's limit on several gateways and one database: what they let in together in a minute, on a moved clock."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

import pytest

from serve.gateway.test_limits import limited
from serve.gateway.wire import Wire
from serve.gateway.world import World, until
from tests_support import Clock, beat_gateway, request_record
from tuneloop.registry import Registry
from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.nouns import ApiKey, utc_now
from tuneloop.serve.gateway.admission.limits import Limits
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.admission.sharing import Sharing
from tuneloop.serve.gateway.body import Limits as BodyLimits
from tuneloop.serve.gateway.body import read
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.snapshot import Snapshot, Target
from tuneloop.serve.gateway.sse import Usage

ASK = read(b'{"model":"bot","prompt":"hi","max_tokens":10}', "completion", BodyLimits(100, 100, 1))
TARGET = Target(1, "bot@1", "e1", "http://e1")


def at_once(call: Callable[[], None]) -> None:
    call()


@dataclass
class Front:
    """The limits of one gateway, without its sockets: the registry, the clocks and the traffic are the test's."""

    name: str
    registry: Registry
    clock: Clock
    key: ApiKey
    prices: Mapping[str, Price] = field(default_factory=dict)
    let_in: list[float] = field(default_factory=list)
    retry_after_s: list[int | None] = field(default_factory=list)
    stored_until_s: float = math.inf
    wall: Callable[[], datetime] | None = None  # where it is not `clock` that its machine shows
    steady: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        now = self.wall or self.clock
        self.limits = Limits(self.prices, 512, lambda *_: None, lambda: None, clock=self.seconds, now=now)
        view = Snapshot.of(now(), {}, (), (self.key,))
        link = Link(self.registry.settings, open_registry=lambda _: self.registry)
        hurry = threading.Event()
        self.sharing = Sharing(
            link,
            self.name,
            self.limits,
            self.prices,
            lambda: view,
            hurry,
            lambda: self.stored_until_s,
            now,
            self.seconds,
        )

    def seconds(self) -> float:
        return self.steady() if self.steady is not None else self.clock().timestamp()

    def look(self) -> None:
        """As its threads do every second."""
        beat_gateway(self.registry, {}, id=self.name)
        self.sharing.step(at_once)

    def ask(self, times: int) -> int:
        """So many requests at once; how many were let in, and answered."""
        before = len(self.let_in)
        for _ in range(times):
            exchange = Exchange("completion")
            try:
                if not self.limits.admit(exchange, self.key, ASK, "bot", at_last=False):
                    continue
            except ApiError as error:
                self.retry_after_s.append(error.retry_after_s)
                continue
            self.let_in.append(self.seconds())
            exchange.target, exchange.usage = TARGET, Usage(3, 5)
            assert exchange.taken
            self.limits.settle(exchange)
        return len(self.let_in) - before


def fronts(registry: Registry, clock: Clock, count: int, limit: int) -> list[Front]:
    _, key = registry.keys.new("team-a", by="test", limits=KeyLimits(requests_per_minute=limit))
    found = [Front(f"g{number}", registry, clock, key) for number in range(count)]
    for _ in range(2):
        for front in found:
            front.look()
    return found


def most_in_a_minute(all_fronts: list[Front]) -> int:
    times = sorted(at for front in all_fronts for at in front.let_in)
    return max(sum(end - 60 < at <= end for at in times) for end in times)


def test_two_gateways_never_let_in_more_than_the_limit_however_the_traffic_moves(
    registries: Registry, clock: Clock
) -> None:
    first, second = fronts(registries, clock, 2, 40)
    for moment in range(100):
        if moment < 35:
            first.ask(8)  # all of it at one
        elif moment < 65:
            second.ask(8)  # then at the other
        else:
            first.ask(5)
            second.ask(5)
        for front in (first, second) if moment % 3 else (second, first):
            front.look()
        clock.advance(2)
    assert most_in_a_minute([first, second]) <= 40
    # And it is used: in the first minute one gateway alone came to nearly all, though the other may always have some.
    assert sum(at < first.let_in[0] + 60 for at in first.let_in) >= 30
    assert len(first.let_in) + len(second.let_in) >= 100
    assert None not in first.retry_after_s + second.retry_after_s


def test_four_gateways_that_are_stormed_at_once_keep_the_limit_too(registries: Registry, clock: Clock) -> None:
    four = fronts(registries, clock, 4, 100)
    for moment in range(35):
        for front in four:
            front.ask(40)
        for front in four[moment % 4 :] + four[: moment % 4]:
            front.look()
            front.ask(10)
        clock.advance(2)
    assert most_in_a_minute(four) <= 100
    assert min(len(front.let_in) for front in four) >= 6  # an even share's quarter is everybody's


def test_a_gateway_that_joins_adds_no_more_than_its_floor(registries: Registry, clock: Clock) -> None:
    [first] = fronts(registries, clock, 1, 80)
    assert first.ask(60) == 60
    first.look()
    late = Front("late", registries, clock, first.key)
    late.look()
    first.ask(100)
    late.ask(100)
    for _ in range(5):
        clock.advance(1)
        late.look()
        first.look()
        late.ask(100)
        first.ask(100)
    assert most_in_a_minute([first, late]) <= 80 + 80 // 8


def test_without_the_registry_each_keeps_to_an_even_share(registries: Registry, clock: Clock) -> None:
    both = fronts(registries, clock, 2, 40)
    for front in both:
        front.limits.unshared()
    assert [front.ask(100) for front in both] == [20, 20]
    clock.advance(61)
    for front in both:
        front.look()
    assert 0 < sum(front.ask(100) for front in both) <= 40


def test_an_answer_that_took_more_than_its_reservation_counts_however_long_it_ran(
    registries: Registry, clock: Clock
) -> None:
    _, key = registries.keys.new("team-a", by="test", limits=KeyLimits(tokens_per_minute=100))
    front = Front("g", registries, clock, key)
    front.look()
    exchange = Exchange("completion")
    front.limits.admit(exchange, key, ASK, "bot")
    clock.advance(90)
    exchange.target, exchange.usage = TARGET, Usage(3, 200)
    assert exchange.taken
    front.limits.settle(exchange)
    front.look()
    assert front.ask(1) == 0
    clock.advance(61)
    assert front.ask(1) == 1


def test_a_key_with_a_budget_is_refused_until_it_is_known_what_it_has_spent(registries: Registry, clock: Clock) -> None:
    _, key = registries.keys.new("team-a", by="test", limits=KeyLimits(budget_usd_per_month=Decimal(1)))
    price = Price(prompt_usd_per_million=Decimal(1), completion_usd_per_million=Decimal(1))
    front = Front("g", registries, clock, key, {"bot": price})
    assert not front.limits.admit(Exchange("completion"), key, ASK, "bot", at_last=False)
    with pytest.raises(ApiError, match="not known yet") as caught:
        front.limits.admit(Exchange("completion"), key, ASK, "bot")
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "not_ready", 1)
    front.look()
    assert front.ask(1) == 1


def test_what_was_spent_is_counted_until_it_is_on_record_however_long_that_takes(
    registries: Registry, clock: Clock
) -> None:
    _, key = registries.keys.new("team-a", by="test", limits=KeyLimits(budget_usd_per_month=Decimal("0.0001")))
    price = Price(prompt_usd_per_million=Decimal(1), completion_usd_per_million=Decimal(1))
    front = Front("g", registries, clock, key, {"bot": price})
    front.look()
    let_in = front.ask(100)
    assert 0 < let_in < 100
    front.stored_until_s = front.seconds() - 1.0
    for _ in range(3):
        clock.advance(60)
        front.look()
        assert front.ask(100) == 0, "its records wait: nobody else knows what was spent"
    front.stored_until_s = front.seconds()
    clock.advance(10)
    front.look()
    assert front.ask(100) == let_in, "no such record is in the database, so nothing was spent"


def test_all_keys_of_an_owner_share_its_limits_on_every_gateway_and_keep_their_own(
    registries: Registry, clock: Clock
) -> None:
    together = KeyLimits(requests_per_minute=40, budget_usd_per_month=Decimal("0.0008"))
    registries.owners.limit("team-a", lambda _: together, by="test")
    registries.keys.new("team-a", by="test")
    registries.keys.new("team-a", by="test", limits=KeyLimits(requests_per_minute=4))
    registries.keys.new("team-b", by="test")
    small, large, other = sorted(registries.keys.all(), key=lambda key: (key.owner, key.limits.are_none))
    price = Price(prompt_usd_per_million=Decimal(1), completion_usd_per_million=Decimal(1))
    first, second = (Front(f"g{number}", registries, clock, large, {"bot": price}) for number in range(2))
    mine = Front("g0", registries, clock, small)  # the same gateway, asked with another key
    mine.limits, mine.sharing = first.limits, first.sharing
    for front in (first, second, first, second):
        front.look()
    for _ in range(20):
        mine.ask(3)
        for front in (first, second):
            front.ask(5)
            front.look()
        clock.advance(1)
    assert len(mine.let_in) == 4, "its own limit holds too"
    assert 30 <= most_in_a_minute([first, second, mine]) <= 40
    assert other.owner_limits is None
    clock.advance(61)
    used = {first.key.id: 30 * 8, small.id: 4 * 8}
    for number, (key, tokens) in enumerate(used.items()):
        record = request_record(number, clock(), api_key=key, prompt_tokens=tokens, completion_tokens=500)
        registries.traffic.add_requests([record])
    clock.advance(20)
    first.look()
    assert mine.ask(1) == first.ask(1) == 0, "what its keys have spent together is its budget"


def test_a_request_that_its_owner_has_no_room_for_takes_nothing_of_its_key(registries: Registry, clock: Clock) -> None:
    registries.owners.limit("team-a", lambda _: KeyLimits(tokens_per_minute=20), by="test")
    registries.keys.new("team-a", by="test", limits=KeyLimits(requests_per_minute=2))
    [key] = registries.keys.all()
    told: list[tuple[str, str]] = []
    limits = Limits({}, 512, lambda *what: told.append(what), lambda: None, clock=lambda: clock().timestamp())
    exchange = Exchange("completion")
    with pytest.raises(ApiError, match="team-a, with all its API keys,"):
        limits.admit(exchange, key, ASK, "bot")
    assert (told, exchange.taken) == ([(key.id, "owner_tokens")], ())
    headers = dict(exchange.limit_headers or ())
    assert (headers[b"x-ratelimit-remaining-requests"], headers[b"x-ratelimit-limit-tokens"]) == (b"2", b"20")


def test_two_real_gateways_share_a_small_limit_and_refuse_what_is_beyond_it(
    far_world: tuple[World, World, Wire],
) -> None:
    world = far_world[0]
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateways = [world.gateway(id=name) for name in ("g1", "g2")]
    until(lambda: len(world.registry.fleet.gateways()) == 2)
    until(lambda: gateways[0].metric("tuneloop_limits_shared") == 1)
    mine, _ = limited(world, gateways[0], requests_per_minute=3)
    other = type(mine)(gateways[1].url, mine.key)
    until(lambda: other.call("/v1/models").status == 200)
    until(lambda: all(gateway.metric("tuneloop_limits_gateways") == 2 for gateway in gateways))
    began = utc_now()
    answers = [seen.chat().status for seen in (mine, other, mine, other, mine, other)]
    assert (utc_now() - began).total_seconds() < 50  # else the minute is over, and this says nothing
    assert sorted(answers) == [200] * 3 + [429] * 3
