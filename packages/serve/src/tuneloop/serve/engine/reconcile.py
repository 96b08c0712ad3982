"""What to do next so that vLLM holds what the routes want: a pure plan, made again on every pass.

An adapter's life: fetch → load → warm → ready → drain → unload. Invariants: nothing is unloaded while a gateway may
still send to it; what is unknown (the registry is away) unloads nothing; one slot stays free. A gateway that the
registry has not heard of for a while may have died, or serves on with the routes it knew: what it may send to stays
for `wanted.CUT_OFF_S`, as long as nothing that is wanted needs the room. So do the `keep_cold` adapters that left the
routes last: one that comes back need not be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tuneloop.registry.nouns import AdapterState, parse_version_name

LONGEST_RETRY_S = 300.0
NO_SLOT = (
    "all {} usable adapter slots are taken; start the engine with --max-loras {} or more, or take a version off a route"
)


class Step(StrEnum):
    """One thing the agent can do about an adapter."""

    FETCH = "fetch"
    LOAD = "load"
    WARM = "warm"
    RESUME = "resume"  # wanted again while draining
    DRAIN = "drain"
    UNLOAD = "unload"
    FORGET = "forget"  # never got to be loaded, wanted no more
    FAIL = "fail"


@dataclass(frozen=True)
class Action:
    """A step for a version name, with its reason where the step has one."""

    step: Step
    name: str
    reason: str = ""


@dataclass(frozen=True)
class Held:
    """Where an adapter stands with this agent; times are seconds of one monotonic clock."""

    state: AdapterState
    path: Path | None = None  # once fetched
    since_s: float = 0.0  # when it entered the state
    failures: int = 0
    retry_at_s: float = 0.0
    reason: str = ""

    def failed(self, reason: str, now_s: float, *, longest_s: float = LONGEST_RETRY_S) -> Held:
        """After one failure more: tried again after twice the pause of the one before."""
        pause_s = min(2.0 ** (self.failures + 1), longest_s)
        return Held(AdapterState.FAILED, None, now_s, self.failures + 1, now_s + pause_s, reason)


@dataclass(frozen=True)
class Gateways:
    """What the gateways say about this engine."""

    in_flight: Mapping[str, int] = field(default_factory=dict)  # version name → requests, over all gateways
    late: frozenset[str] = frozenset()  # models whose newest route revision some gateway does not apply yet
    cut_off: frozenset[str] = frozenset()  # the same of gateways that have not been heard of for a while


@dataclass(frozen=True)
class View:
    """Everything a plan depends on."""

    wanted: tuple[str, ...]  # the most important first
    loaded: frozenset[str]  # what vLLM lists, the base left out
    held: Mapping[str, Held]
    gateways: Gateways | None  # None: the registry is away
    usable_slots: int
    keep_cold: int  # adapters that nothing wants any more and that stay loaded while there is room
    drain_timeout_s: float
    now_s: float


def plan(view: View) -> tuple[Action, ...]:
    """The steps to take now, in order: make room, then bring in, the most important first."""
    wanted = set(view.wanted)
    kept = _kept(view)
    leaving = [_leave(name, view) for name in sorted((set(view.held) | view.loaded) - wanted - kept)]
    coming: list[Action | None] = []
    free = view.usable_slots - len(view.loaded)
    draining = any(action is not None for action in leaving) or any(
        held.state is AdapterState.DRAINING for name, held in view.held.items() if name not in wanted
    )
    for name in view.wanted:
        action = _come(name, view)
        if action is not None and action.step is Step.LOAD:
            if free <= 0:
                action = (
                    None
                    if draining
                    else Action(Step.FAIL, name, NO_SLOT.format(view.usable_slots, view.usable_slots + 2))
                )
            free -= 1
        coming.append(action)
    return tuple(action for action in [*leaving, *coming] if action is not None)


def settled(view: View) -> bool:
    """Whether every wanted adapter is ready or known to fail: only then a started engine may be called ready."""
    states = {name: view.held[name].state if name in view.held else None for name in view.wanted}
    return all(
        state is AdapterState.FAILED or (state is AdapterState.READY and name in view.loaded)
        for name, state in states.items()
    )


def _kept(view: View) -> frozenset[str]:
    """What has left the routes and stays loaded: those that left last, as far as what is wanted leaves room."""
    draining = {
        name: held.since_s
        for name, held in view.held.items()
        if held.state is AdapterState.DRAINING and name in view.loaded and name not in view.wanted
    }
    needed = set(view.wanted) | (view.loaded - draining.keys())
    room = min(view.keep_cold, view.usable_slots - len(needed))
    return frozenset(sorted(draining, key=lambda name: (-draining[name], name))[: max(0, room)])


def _come(name: str, view: View) -> Action | None:
    held = view.held.get(name)
    if held is None:
        return Action(Step.FETCH, name)
    if held.state is AdapterState.FAILED:
        return Action(Step.FETCH, name) if view.now_s >= held.retry_at_s else None
    if held.state is AdapterState.FETCHING:
        return None
    if name not in view.loaded:
        return Action(Step.LOAD, name)  # fetched, or lost by vLLM behind our back
    if held.state is AdapterState.LOADING:
        return Action(Step.WARM, name)
    return Action(Step.RESUME, name) if held.state is AdapterState.DRAINING else None


def _leave(name: str, view: View) -> Action | None:
    held = view.held.get(name)
    if name not in view.loaded:
        return None if held is not None and held.state is AdapterState.FETCHING else Action(Step.FORGET, name)
    if held is None or held.state in {AdapterState.FAILED, AdapterState.LOADING, AdapterState.FETCHING}:
        return Action(Step.UNLOAD, name, "never was ready")
    if held.state is AdapterState.READY:
        return Action(Step.DRAIN, name)
    return None if view.gateways is None else _drained(name, held, view, view.gateways)


def _drained(name: str, held: Held, view: View, gateways: Gateways) -> Action | None:
    """Unload once no gateway sends to it or can still decide to; or when that takes too long."""
    model, _ = parse_version_name(name)
    running = gateways.in_flight.get(name, 0)
    coming = set(view.wanted) - view.loaded
    if model in gateways.cut_off and len(view.loaded) + len(coming) <= view.usable_slots:
        return None
    if running == 0 and model not in gateways.late:
        return Action(Step.UNLOAD, name)
    if view.now_s - held.since_s >= view.drain_timeout_s:
        why = f"{running} requests still in flight" if running else "a gateway does not apply the newest route"
        return Action(Step.UNLOAD, name, f"{why} after {view.drain_timeout_s:.0f} s")
    return None
