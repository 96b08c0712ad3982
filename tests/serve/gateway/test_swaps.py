"""Adapters that engines load, fail and unload are counted as heartbeats show them, on a clock that is given."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from serve.gateway.test_snapshot import DRAINING, LOADING, READY, engine
from serve.gateway.world import World, until
from tuneloop.registry.nouns import AdapterState
from tuneloop.serve.gateway.swaps import CHANGES, Swaps

FETCHING, FAILED = AdapterState.FETCHING, AdapterState.FAILED


class Seen:
    """What is counted of the engine `e1`, view after view."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._swaps = Swaps(lambda: self.now_s)
        self._registry = CollectorRegistry()
        self._registry.register(self._swaps)

    def view(self, *, after_s: float = 1.0, after_gap: bool = False, **adapters: AdapterState) -> tuple[int, ...]:
        """How often it has loaded, failed and unloaded an adapter."""
        self.now_s += after_s
        self._swaps.applies([engine("e1", **adapters)], ["e1"], after_gap=after_gap)
        return self.changes

    def gone(self) -> None:
        self._swaps.applies([], ["e1"])

    @property
    def changes(self) -> tuple[int, ...]:
        return tuple(
            int(self._value(f'tuneloop_adapter_changes_total{{change="{change}",engine="e1"}}')) for change in CHANGES
        )

    @property
    def load_s(self) -> tuple[float, float]:
        """How many loads, and their seconds together."""
        name = "tuneloop_adapter_load_seconds"
        return self._value(f'{name}_count{{engine="e1"}}'), self._value(f'{name}_sum{{engine="e1"}}')

    def _value(self, series: str) -> float:
        lines = generate_latest(self._registry).decode().splitlines()
        (value,) = [line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == series]
        return float(value)


def test_what_an_engine_has_when_it_is_first_seen_is_no_change() -> None:
    seen = Seen()
    assert seen.view(v1=READY, v2=DRAINING, v3=FAILED) == (0, 0, 0)
    assert seen.load_s == (0.0, 0.0)


def test_what_changed_while_nothing_was_read_is_no_change_and_no_load_of_so_long() -> None:
    seen = Seen()
    seen.view(v1=READY, v2=LOADING)
    assert seen.view(after_s=600.0, after_gap=True, v2=READY, v3=FETCHING) == (0, 0, 0)
    assert seen.view(after_s=2.0, v2=READY, v3=READY) == (1, 0, 0)
    assert seen.load_s == (1.0, 2.0)


def test_an_engine_of_whole_weights_swaps_nothing() -> None:
    swaps, registry = Swaps(lambda: 1.0), CollectorRegistry()
    registry.register(swaps)
    for state in (LOADING, READY):
        swaps.applies([engine("e1", v1=state).model_copy(update={"max_loras": 0})], ["e1"])
    assert 'change="loaded",engine="e1"} 0.0' in generate_latest(registry).decode()


def test_an_adapters_life_is_one_load_and_one_unload() -> None:
    seen = Seen()
    seen.view(v1=READY)
    assert seen.view(v1=READY, v2=FETCHING) == (0, 0, 0)
    assert seen.view(after_s=3.0, v1=READY, v2=LOADING) == (0, 0, 0)
    assert seen.view(after_s=0.5, v1=READY, v2=READY) == (1, 0, 0)
    assert seen.load_s == (1.0, 3.5)
    assert seen.view(v1=DRAINING, v2=READY) == (1, 0, 0)
    assert seen.view(v2=READY) == (1, 0, 1)
    assert seen.view(v2=DRAINING) == seen.view(v2=READY) == (1, 0, 1), "wanted again: nothing was loaded"
    assert seen.view(v2=READY, v3=READY) == (2, 0, 1), "between two views"
    assert seen.load_s == (2.0, 3.5)


def test_each_failure_that_is_seen_counts_and_begins_the_load_anew() -> None:
    seen = Seen()
    seen.view()
    seen.view(v1=FETCHING)
    assert seen.view(after_s=50.0, v1=FAILED) == seen.view(v1=FAILED) == (0, 1, 0)
    assert seen.view(after_s=50.0, v1=FETCHING) == (0, 1, 0)
    assert seen.view(v1=FAILED) == (0, 2, 0)
    seen.view(after_s=50.0, v1=LOADING)
    assert seen.view(after_s=2.0, v1=READY) == (1, 2, 0)
    assert seen.load_s == (1.0, 2.0)
    seen.view(v1=READY, v2=FETCHING)
    assert seen.view(v1=READY) == (1, 2, 0), "given up before it was loaded"


def test_an_engine_that_dies_and_comes_back_loads_anew_and_one_that_was_not_heard_of_has_changed_nothing() -> None:
    seen = Seen()
    seen.view(v1=READY)
    seen.view(v1=LOADING)  # its vLLM has died
    assert seen.view(after_s=4.0, v1=READY) == (1, 0, 0)
    seen.view(v1=READY, v2=LOADING)
    seen.gone()
    seen.now_s += 1_000.0
    assert seen.view(v1=READY, v3=READY, v4=LOADING) == (1, 0, 0)
    assert seen.view(after_s=2.0, v1=READY, v2=READY, v3=READY, v4=READY) == (3, 0, 0)
    assert seen.load_s == (3.0, 6.0), "what it was at before it left has no seconds"


def test_a_gateway_tells_what_the_heartbeats_of_its_engines_show(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    changes = 'tuneloop_adapter_changes_total{change="%s",engine="e1"}'
    world.serves("e1", "bot@1", "bot@2")
    until(lambda: gateway.metric(changes % "loaded") == 1)
    world.serves("e1", "bot@1")
    until(lambda: gateway.metric(changes % "unloaded") == 1)
    assert gateway.metric('tuneloop_adapter_load_seconds_count{engine="e1"}') == 1
