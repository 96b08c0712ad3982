"""Whatever goes wrong on the way (lost, late, answered too late, a monitor that ends, several monitors), each receiver
hears everything under its one key, in order for the first time; and who keeps the newest by its number, whatever
comes twice or late, ends with the truth."""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.delivery.post import acknowledge, as_they_are, end, open_episode, tell, worsen
from tests_support import Clock
from tuneloop.monitor.delivery.deciding import LONGEST_WAIT_S
from tuneloop.monitor.delivery.page import Page
from tuneloop.monitor.delivery.rounds import LEASE_S, Deliverer
from tuneloop.monitor.delivery.sending import NotTaken, Sending
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings

CHANGES = {"worse": worsen, "acknowledged": acknowledge, "resolved": end}
RECEIVERS = ("one", "two")
STEPS = st.lists(
    st.one_of(
        st.sampled_from(["open", *CHANGES]),
        st.tuples(st.just("round"), st.sampled_from([0, 1])),  # of which monitor
        st.tuples(st.just("restart"), st.sampled_from([0, 1])),
        st.tuples(st.just("wait"), st.sampled_from([2.0, 30.0, LEASE_S + 1])),
    ),
    min_size=4,
    max_size=24,
)
FAULTS = st.fixed_dictionaries(
    {
        name: st.lists(st.sampled_from(["taken", "lost", "taken, and not answered", "taken"]), min_size=1, max_size=6)
        for name in RECEIVERS
    }
)


class Wire(Sending):
    """What arrives at the receivers, and what the senders believe of it.

    Each receiver has its faults: they are served by threads, whose order is no one's.
    """

    def __init__(self, clock: Clock, faults: Mapping[str, Sequence[str]]) -> None:
        super().__init__(1.0, timedelta(seconds=60), clock)
        self.faults = {name: list(those) for name, those in faults.items()}
        self.arrived: dict[str, list[Page]] = defaultdict(list)

    def send(self, receiver: Any, page: Page) -> None:
        mine = self.faults[receiver.name]
        fault = mine.pop(0) if mine else "taken"
        if fault != "lost":
            self.arrived[receiver.name].append(page)
        if fault != "taken":
            raise NotTaken(fault)


def play(registry: Registry, clock: Clock, steps: Sequence[Any], wire: Wire) -> None:
    def monitor(number: int) -> Deliverer:
        rng = random.Random(number)
        made = Deliverer(registry, MonitorSettings(), Metrics(), rng=rng, redact=as_they_are)
        made._sending = wire
        return made

    monitors, number = [monitor(0), monitor(1)], 0
    for step in steps:
        clock.advance(0.01)
        if step == "open":
            number += 1
            open_episode(registry, id=f"ep{number}", signal="prompt_drift", model=f"bot{number}")
        elif isinstance(step, str):
            live = registry.episodes.all(open_only=True)
            fits = [e for e in live if step != "worse" or e.severity == "ticket"]
            fits = [e for e in fits if step != "acknowledged" or e.state == "open"]
            if fits:
                CHANGES[step](registry, fits[0])
        elif step[0] == "wait":
            clock.advance(step[1])
        elif step[0] == "restart":
            monitors[step[1]].close()
            monitors[step[1]] = monitor(step[1])
        else:
            monitors[step[1]].round(to_the_end=True)
    for _ in range(8):  # all is well again
        for faults in wire.faults.values():
            faults.clear()
        clock.advance(LONGEST_WAIT_S + LEASE_S)
        monitors[0].round(to_the_end=True)
    for made in monitors:
        made.close()


def keep_newest(pages: Sequence[Page]) -> dict[str, Page]:
    """What docs/monitoring.md tells receivers to do."""
    kept: dict[str, Page] = {}
    for page in pages:
        if page.episode not in kept or page.sequence > kept[page.episode].sequence:
            kept[page.episode] = page
    return kept


@pytest.fixture(scope="module")
def schema() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        with Registry.open(RegistrySettings(home=Path(folder))):
            pass
        yield (Path(folder) / "tuneloop.db").read_bytes()


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, faults=FAULTS, seed=st.integers(0, 2**32))
def test_every_receiver_hears_everything_and_order_does_not_matter(
    schema: bytes, steps: list[Any], faults: dict[str, list[str]], seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tuneloop.db").write_bytes(schema)
        clock = Clock()
        registry = Registry(RegistrySettings(home=Path(folder)), clock=clock)
        tell(registry, *({"kind": "slack", "name": name, "url": "http://127.0.0.1:9/"} for name in RECEIVERS))
        wire, order = Wire(clock, faults), random.Random(seed)
        play(registry, clock, ["open", *steps], wire)
        rows = [row for row in registry.outbox.all() if row.state == "sent"]
        left_out = [row for row in registry.outbox.all() if row.state != "sent"]
        assert {(row.transition, row.state) for row in left_out} <= {("worse", "dropped")}
        for name in RECEIVERS:
            arrived = wire.arrived[name]
            mine = {row.id: row for row in rows if row.receiver == name}
            assert {page.delivery for page in arrived} == mine.keys()
            first: dict[str, Page] = {}
            for page in arrived:
                first.setdefault(page.delivery, page)
            firsts = list(first.values())
            for episode in registry.episodes.all():
                told = [page.sequence for page in firsts if page.episode == episode.id]
                without = [row.sequence for row in left_out if (row.receiver, row.episode_id) == (name, episode.id)]
                assert sorted(told + without) == list(range(len(told + without)))
                assert told == sorted(told)
                of_it = [p for p in firsts if p.episode == episode.id and p.transition in ("opened", "worse")]
                pages = sum(page.severity == "page" for page in of_it)
                assert pages >= (episode.severity == "page"), "whoever keeps the first of each key has read it as one"
                assert pages == 1 or not without, "and whom a delivery was spared has read it once"
                # Late, twice and in any order:
                again = [*arrived, *order.choices(arrived, k=5)]
                order.shuffle(again)
                newest = max(row.sequence for row in mine.values() if row.episode_id == episode.id)
                kept = keep_newest(again)[episode.id]
                assert kept.sequence == newest
                if episode.state == "resolved":
                    assert kept.transition == "resolved"
        registry.close()
