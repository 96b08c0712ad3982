"""Windows, fair queue, prices and parts of limits with values, and the laws that hold of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from copy import deepcopy
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.registry.access.limits import PRIORITIES, Priority
from tuneloop.registry.errors import InvalidInput
from tuneloop.serve.gateway.admission.estimate import answer_tokens, prompt_tokens
from tuneloop.serve.gateway.admission.fair_queue import WEIGHTS, FairQueue
from tuneloop.serve.gateway.admission.limits import duration
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.admission.window import WINDOW_S, Window
from tuneloop.serve.gateway.body import Endpoint, Limits, read
from tuneloop.serve.gateway.settings import GatewaySettings


@given(
    limit=st.integers(1, 50),
    asked=st.lists(st.tuples(st.floats(0, 40, allow_nan=False), st.integers(1, 20)), max_size=60),
)
def test_no_minute_wherever_it_begins_holds_more_than_the_limit(limit: int, asked: list[tuple[float, int]]) -> None:
    window, now_s, let_in = Window(), 0.0, []
    for pause_s, amount in asked:
        now_s += pause_s
        if window.used(now_s) + amount <= limit:
            window.add(now_s, amount)
            let_in.append((now_s, amount))
        elif amount <= limit:  # and when it is told to come back there is room
            later_s = now_s + window.wait_s(now_s, limit - amount)
            assert deepcopy(window).used(later_s + 1e-6) + amount <= limit
    for end_s, _ in let_in:
        assert sum(amount for at_s, amount in let_in if end_s - WINDOW_S < at_s <= end_s) <= limit


def test_a_full_window_is_free_again_after_a_minute_and_a_second_at_most() -> None:
    window = Window()
    window.add(10.9, 60)
    assert [window.wait_s(10.9, 0), window.reset_s(10.9)] == pytest.approx([60.1, 60.1])
    assert [window.used(at_s) for at_s in (10.9, 69.9, 70.9, 71.0)] == [60, 60, 60, 0]
    assert (window.wait_s(71.0, 0), window.reset_s(71.0)) == (0.0, 0.0)
    second = window.add(80.0, 60)
    window.add(85.0, 10)
    window.settle(second, -55)
    assert (window.used(86.0), window.since(86.0, 2), window.wait_s(86.0, 12)) == (15, 10, 55.0)
    assert window.reset_s(86.0) == 60.0
    window.settle(second - 1, 1_000)  # of a request that ran for longer than the window remembers
    assert window.used(86.0) == 15


def served(queue: FairQueue[int]) -> list[tuple[str, Priority, float, int]]:
    found = []
    while (ticket := queue.pop()) is not None:
        found.append((ticket.key, ticket.priority, ticket.cost, ticket.item))
    return found


requests = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(PRIORITIES), st.integers(1, 100)), min_size=1, max_size=80
)


@given(requests)
def test_whoever_waits_is_served_once_and_in_its_keys_own_order(asked: list[tuple[str, Priority, int]]) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, (key, priority, cost) in enumerate(asked):
        queue.push(key, priority, cost, number)
    order = served(queue)
    assert sorted(item for *_, item in order) == list(range(len(asked)))
    lines: dict[tuple[str, Priority], list[int]] = defaultdict(list)
    for key, priority, _, item in order:
        lines[key, priority].append(item)
    assert all(line == sorted(line) for line in lines.values())


@given(
    costs=st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(1, 100), min_size=1, max_size=30), min_size=2)
)
def test_while_two_keys_wait_neither_gets_more_than_one_request_ahead(costs: dict[str, list[int]]) -> None:
    """Theorem 1 of the paper: the difference is at most the largest request of each, however long the others' are."""
    queue: FairQueue[int] = FairQueue()
    for key, each in costs.items():
        for cost in each:
            queue.push(key, "normal", cost, 0)
    waiting = {key: len(each) for key, each in costs.items()}
    got: Counter[str] = Counter()
    while (ticket := queue.pop()) is not None:
        got[ticket.key] += int(ticket.cost)
        waiting[ticket.key] -= 1
        still = [key for key, left in waiting.items() if left]
        for one in still:
            for other in still:
                assert got[one] - got[other] <= max(costs[one]) + max(costs[other])


@given(high=st.integers(1, 60), normal=st.integers(1, 60))
def test_higher_priorities_go_first_and_the_lowest_never_starves(high: int, normal: int) -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(3):
        queue.push("l", "low", 1, number)
    for number in range(normal):
        queue.push(f"n{number % 7}", "normal", 1, number)
    for number in range(high):
        queue.push(f"h{number % 5}", "high", 1, number)
    order = [priority for _, priority, *_ in served(queue)]
    turns = [index for index, priority in enumerate(order) if priority == "low"]
    most = sum(WEIGHTS.values()) + len(WEIGHTS)
    assert all(later - earlier <= most for earlier, later in pairwise([0, *turns]))
    both = order[: order.index("high") + min(high, 16)]
    assert both.count("high") >= both.count("normal")


def test_who_leaves_is_not_served_and_has_paid_nothing() -> None:
    queue: FairQueue[int] = FairQueue()
    tickets = [queue.push(key, "normal", 10, number) for number, key in enumerate("aaabb")]
    queue.discard(tickets[0])
    queue.discard(tickets[0])
    queue.discard(tickets[4])
    assert len(queue) == 3
    assert [item for *_, item in served(queue)] == [1, 3, 2]  # the first place of a is a's still
    queue.discard(tickets[1])
    assert queue.pop() is None


@given(asked=requests, who=st.sampled_from("abcd"), priority=st.sampled_from(PRIORITIES))
def test_a_place_in_the_queue_is_estimated_within_the_queues_length(
    asked: list[tuple[str, Priority, int]], who: str, priority: Priority
) -> None:
    queue: FairQueue[int] = FairQueue()
    for key, rank, _ in asked:
        queue.push(key, rank, 1, 0)
    own = sum((key, rank) == (who, priority) for key, rank, _ in asked)
    estimate = queue.ahead_of(who, priority)
    assert own <= estimate <= len(asked)
    queue.push(who, priority, 1, 1)
    place = next(index for index, (*_, item) in enumerate(served(queue)) if item == 1)
    assert abs(place - estimate) <= len(WEIGHTS) * 4 + sum(WEIGHTS.values())


def test_a_new_keys_place_is_before_the_long_line_of_another() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.push("a", "normal", 1, number)
    assert queue.ahead_of("a", "normal") == 100
    assert queue.ahead_of("b", "normal") == 1
    assert queue.ahead_of("b", "high") < 1
    assert 3 < queue.ahead_of("b", "low") <= 100


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, b"0ms"), (0.35, b"350ms"), (1.0, b"1s"), (59.2, b"1m0s"), (61.0, b"1m1s")]
)
def test_times_are_said_as_openai_says_them(seconds: float, said: bytes) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("endpoint", "members", "most"),
    [
        ("chat", '"messages":[{"role":"user","content":"hi"}]', 512),
        ("chat", '"messages":[{"role":"user","content":"hi"}],"max_tokens":7,"n":2', 14),
        ("chat", '"messages":[{"role":"user","content":"hi"}],"max_tokens":null,"max_completion_tokens":5', 5),
        ("completion", '"prompt":["a","b","c"],"max_tokens":7', 21),
        ("completion", '"prompt":"abc","max_tokens":7', 7),
        ("completion", '"prompt":"abc","max_tokens":7,"max_completion_tokens":1', 7),
    ],
)
def test_tokens_are_estimated_from_what_the_request_says(endpoint: Endpoint, members: str, most: int) -> None:
    ask = read(f'{{"model":"bot",{members}}}'.encode(), endpoint, Limits(1_000, 4_096, 4))
    assert answer_tokens(ask, 512) == most
    assert prompt_tokens(ask) == math.floor(len(ask.members.text) / 4) + 1


def test_prices_are_exact_and_read_from_a_table_or_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuneloop.toml").write_text(
        "[gateway.prices.bot]\nprompt_usd_per_million = 0.1\ncompletion_usd_per_million = '0.3'\n"
    )
    price = Price(prompt_usd_per_million=Decimal("0.1"), completion_usd_per_million=Decimal("0.3"))
    assert GatewaySettings.load().prices == {"bot": price}
    assert price.of(1, 2) * 1_000_000 == Decimal("0.7")
    told = '{"other": {"prompt_usd_per_million": "1", "completion_usd_per_million": 0}}'
    monkeypatch.setenv("TUNELOOP_GATEWAY_PRICES", told)
    assert list(GatewaySettings.load().prices) == ["other"]
    monkeypatch.setenv("TUNELOOP_GATEWAY_PRICES", "cheap")
    with pytest.raises(InvalidInput, match="write prices as JSON"):
        GatewaySettings.load()
