"""The plan that brings vLLM from what it holds to what the routes want."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tuneloop.registry.nouns import AdapterState
from tuneloop.serve.engine.reconcile import Action, Gateways, Held, Step, View, plan, settled

PATH = Path("/adapters/d1")
READY = Held(AdapterState.READY, PATH)
LOADING = Held(AdapterState.LOADING, PATH)


def view(**changes: Any) -> View:
    fields: dict[str, Any] = {
        "wanted": (),
        "loaded": frozenset(),
        "held": {},
        "gateways": Gateways(),
        "usable_slots": 5,
        "keep_cold": 0,
        "drain_timeout_s": 60.0,
        "now_s": 1000.0,
    }
    return View(**(fields | changes))


def steps(seen: View) -> list[tuple[Step, str]]:
    return [(action.step, action.name) for action in plan(seen)]


def draining(since_s: float = 999.0, **changes: Any) -> View:
    held = {"m@1": Held(AdapterState.DRAINING, PATH, since_s)}
    return view(**({"loaded": frozenset({"m@1"}), "held": held} | changes))


def test_a_wanted_adapter_is_fetched_then_loaded_then_left_alone() -> None:
    wanted = ("m@1",)
    assert steps(view(wanted=wanted)) == [(Step.FETCH, "m@1")]
    assert steps(view(wanted=wanted, held={"m@1": Held(AdapterState.FETCHING)})) == []
    assert steps(view(wanted=wanted, held={"m@1": LOADING})) == [(Step.LOAD, "m@1")]
    assert steps(view(wanted=wanted, held={"m@1": LOADING}, loaded=frozenset(wanted))) == [(Step.WARM, "m@1")]
    assert steps(view(wanted=wanted, held={"m@1": READY}, loaded=frozenset(wanted))) == []


def test_an_adapter_that_vllm_lost_is_loaded_again() -> None:
    assert steps(view(wanted=("m@1",), held={"m@1": READY})) == [(Step.LOAD, "m@1")]


def test_an_unwanted_adapter_drains_before_it_is_unloaded() -> None:
    assert steps(view(held={"m@1": READY}, loaded=frozenset({"m@1"}))) == [(Step.DRAIN, "m@1")]
    assert steps(draining()) == [(Step.UNLOAD, "m@1")]


def test_nothing_is_unloaded_while_a_gateway_has_requests_on_it() -> None:
    assert steps(draining(gateways=Gateways(in_flight={"m@1": 1}))) == []
    assert steps(draining(gateways=Gateways(in_flight={"m@2": 1}))) == [(Step.UNLOAD, "m@1")]


def test_nothing_is_unloaded_while_a_gateway_applies_an_older_route() -> None:
    assert steps(draining(gateways=Gateways(late=frozenset({"m"})))) == []
    assert steps(draining(gateways=Gateways(late=frozenset({"other"})))) == [(Step.UNLOAD, "m@1")]


def test_what_a_silent_gateway_may_still_serve_stays_unless_its_room_is_needed() -> None:
    silent = Gateways(cut_off=frozenset({"m"}))
    long_ago = draining(since_s=0.0, gateways=silent, wanted=("m@2",), usable_slots=2)
    assert (Step.UNLOAD, "m@1") not in steps(long_ago)
    crowded = draining(since_s=999.0, gateways=silent, wanted=("m@2",), usable_slots=1)
    assert (Step.UNLOAD, "m@1") in steps(crowded)
    assert steps(draining(gateways=Gateways(cut_off=frozenset({"other"})))) == [(Step.UNLOAD, "m@1")]


def test_a_drain_that_takes_too_long_ends_and_says_why() -> None:
    busy = Gateways(in_flight={"m@1": 3})
    assert plan(draining(since_s=940.0, gateways=busy)) == (
        Action(Step.UNLOAD, "m@1", "3 requests still in flight after 60 s"),
    )
    late = Gateways(late=frozenset({"m"}))
    assert (
        plan(draining(since_s=940.0, gateways=late))[0].reason == "a gateway does not apply the newest route after 60 s"
    )


def test_nothing_is_unloaded_while_the_registry_is_away() -> None:
    assert steps(draining(since_s=0.0, gateways=None)) == []


def test_a_draining_adapter_that_is_wanted_again_serves_on_without_a_reload() -> None:
    assert steps(draining(wanted=("m@1",))) == [(Step.RESUME, "m@1")]


def test_a_failed_adapter_waits_out_its_pause_then_is_fetched_anew() -> None:
    failed = {"m@1": Held(AdapterState.FAILED, retry_at_s=1001.0, failures=1, reason="bad")}
    assert steps(view(wanted=("m@1",), held=failed)) == []
    assert steps(view(wanted=("m@1",), held=failed, now_s=1001.0)) == [(Step.FETCH, "m@1")]


def test_what_failed_or_was_never_ready_leaves_at_once() -> None:
    failed = {"m@1": Held(AdapterState.FAILED)}
    assert steps(view(held=failed)) == [(Step.FORGET, "m@1")]
    assert steps(view(held={"m@1": LOADING}, loaded=frozenset({"m@1"}))) == [(Step.UNLOAD, "m@1")]
    assert steps(view(loaded=frozenset({"stray"}))) == [(Step.UNLOAD, "stray")]


def test_the_reserved_slot_is_never_given_away() -> None:
    full = frozenset({"m@1", "m@2"})
    held: Mapping[str, Held] = {"m@1": READY, "m@2": READY, "m@3": LOADING}
    (action,) = plan(view(wanted=("m@1", "m@2", "m@3"), loaded=full, held=held, usable_slots=2))
    assert (action.step, action.name) == (Step.FAIL, "m@3")
    assert "--max-loras 4" in action.reason


def test_a_load_waits_for_a_slot_that_is_being_drained() -> None:
    full = frozenset({"m@1", "m@2"})
    held = {"m@1": Held(AdapterState.DRAINING, PATH, 999.0), "m@2": READY, "m@3": LOADING}
    busy = Gateways(in_flight={"m@1": 1})
    seen = view(wanted=("m@2", "m@3"), loaded=full, held=held, usable_slots=2, gateways=busy)
    assert steps(seen) == []


def cold(*names: str, **changes: Any) -> View:
    """Adapters that left the routes one after another, a second apart."""
    held = {name: Held(AdapterState.DRAINING, PATH, 900.0 + n) for n, name in enumerate(names)}
    return view(**({"loaded": frozenset(names), "held": held, "keep_cold": 2} | changes))


def test_those_that_left_the_routes_last_stay_loaded_and_come_back_without_a_load() -> None:
    assert steps(cold("m@1", "m@3", "m@2")) == [(Step.UNLOAD, "m@1")]
    assert steps(cold("m@1", "m@3", "m@2", keep_cold=3)) == []
    assert steps(cold("m@1", "m@2", wanted=("m@1",))) == [(Step.RESUME, "m@1")]
    late = Gateways(late=frozenset({"m"}), in_flight={"m@1": 1})
    assert steps(cold("m@1", "m@2", gateways=late)) == [], "nothing cuts off what is kept, however long ago it left"


def test_what_is_wanted_takes_the_room_of_those_that_left_the_routes_first() -> None:
    wanted: dict[str, Any] = {"wanted": ("n@1",), "held": {**cold("m@1", "m@3", "m@2").held, "n@1": LOADING}}
    assert steps(cold("m@1", "m@3", "m@2", keep_cold=3, usable_slots=4, **wanted)) == [(Step.LOAD, "n@1")]
    assert steps(cold("m@1", "m@3", "m@2", keep_cold=3, usable_slots=3, **wanted)) == [(Step.UNLOAD, "m@1")]
    assert steps(cold("m@1", "m@3", "m@2", keep_cold=3, usable_slots=1, **wanted)) == [
        (Step.UNLOAD, "m@1"),
        (Step.UNLOAD, "m@2"),
        (Step.UNLOAD, "m@3"),
    ]


def test_an_engine_is_settled_when_every_wanted_adapter_is_ready_or_known_to_fail() -> None:
    wanted = ("m@1", "m@2")
    held = {"m@1": READY, "m@2": Held(AdapterState.FAILED)}
    assert settled(view(wanted=wanted, held=held, loaded=frozenset({"m@1"})))
    assert not settled(view(wanted=wanted, held=held))  # ready once, but lost since
    assert not settled(view(wanted=wanted, held=held | {"m@2": LOADING}, loaded=frozenset(wanted)))
    assert not settled(view(wanted=wanted, held={"m@1": READY}, loaded=frozenset({"m@1"})))


NAMES = [f"m@{n}" for n in range(1, 8)]


@given(
    wanted=st.permutations(NAMES).flatmap(lambda names: st.integers(0, 7).map(lambda n: tuple(names[:n]))),
    loaded=st.frozensets(st.sampled_from(NAMES), max_size=4),
    states=st.fixed_dictionaries({name: st.sampled_from([None, *AdapterState]) for name in NAMES}),
    running=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3)),
    keep_cold=st.integers(0, 5),
)
def test_whatever_the_state_the_plan_never_overfills_and_never_cuts_a_served_adapter_off(
    wanted: tuple[str, ...],
    loaded: frozenset[str],
    states: dict[str, AdapterState | None],
    running: dict[str, int],
    keep_cold: int,
) -> None:
    held = {name: Held(state, PATH, 990.0) for name, state in states.items() if state is not None}
    now: dict[str, Any] = {"wanted": wanted, "loaded": loaded, "held": held, "usable_slots": 4}
    actions = plan(view(**now, gateways=Gateways(in_flight=running), keep_cold=keep_cold))
    by_step: dict[Step, set[str]] = {step: {a.name for a in actions if a.step is step} for step in Step}
    assert len(loaded) + len(by_step[Step.LOAD]) <= 4
    assert not by_step[Step.UNLOAD] & set(wanted)
    served = {name for name, state in states.items() if state in {AdapterState.READY, AdapterState.DRAINING}}
    assert not by_step[Step.UNLOAD] & served & set(running)
    assert not by_step[Step.UNLOAD] & {name for name, state in states.items() if state is AdapterState.READY}
    assert len({action.name for action in actions}) == len(actions)
    left = {name for name in loaded - by_step[Step.UNLOAD] - set(wanted) if states[name] is AdapterState.DRAINING}
    if not left & set(running):
        assert len(left) <= keep_cold
        assert len(loaded - by_step[Step.UNLOAD] | set(wanted)) <= 4 or not left, "in nobody's way"
