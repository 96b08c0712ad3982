"""Open episodes that no receiver is told of are counted, for Prometheus to tell of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from monitor.delivery.post import DEAD, chat, deliverer, end, open_episode, tell, worsen
from tests_support import Clock
from tuneloop.monitor.delivery.rounds import Deliverer
from tuneloop.monitor.metrics import Metrics
from tuneloop.registry import Registry


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def made(ours: Registry, metrics: Metrics) -> Iterator[Deliverer]:
    with deliverer(ours, metrics, delivery_give_up_s=3_600) as one:
        yield one


def after_a_round(made: Deliverer, metrics: Metrics) -> dict[tuple[str, str], float]:
    """How many by model and severity."""
    made.round(to_the_end=True)
    (found,) = (one for one in metrics.collectors.collect() if one.name == "tuneloop_episodes_untold")
    return {(sample.labels["model"], sample.labels["severity"]): sample.value for sample in found.samples}


def test_what_no_receiver_takes_is_untold_and_what_opened_before_it_was_set(
    ours: Registry, made: Deliverer, metrics: Metrics
) -> None:
    before = open_episode(ours, id="before", severity="page")
    assert after_a_round(made, metrics) == {("bot", "page"): 1}, "there is no receiver"
    tell(ours, chat(DEAD, models=["bot"], severity="page"))
    open_episode(ours, id="taken", signal="latency", severity="page")
    ticket = open_episode(ours, id="ticket", signal="refusals")
    other = open_episode(ours, id="other", model="other", severity="page")
    open_episode(ours, id="quiet", model="quiet")
    ours.silences.add("quiet", 60, by="ada", reason="test")
    untold = {("bot", "page"): 1, ("bot", "ticket"): 1, ("other", "page"): 1}
    assert after_a_round(made, metrics) == untold, "the receiver does not hear of one that was open before"
    worsen(ours, ticket)
    end(ours, before)
    end(ours, other)
    assert after_a_round(made, metrics) == {}


def test_what_is_given_up_is_told_to_nobody(ours: Registry, made: Deliverer, metrics: Metrics, clock: Clock) -> None:
    tell(ours, chat(DEAD))
    open_episode(ours)
    assert after_a_round(made, metrics) == {}, "it is tried still"
    clock.advance(3_600)
    assert after_a_round(made, metrics) == {("bot", "ticket"): 1}
