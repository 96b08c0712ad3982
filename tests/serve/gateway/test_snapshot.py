"""The gateway's view of the registry: its round trip over the disk, and what is looked up in it."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.registry.access.keys import key_digest
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import AdapterState, ApiKey, Arm, EngineState, Route, utc_now
from tuneloop.registry.routes.assignment import assign, held_out, key_hash
from tuneloop.serve.gateway.breaker import FORGOTTEN_AFTER_S, LONGEST_PAUSE_S, Breaker
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.load import SET_ASIDE_S, Load, RetryBudget
from tuneloop.serve.gateway.routing import pick, plan
from tuneloop.serve.gateway.snapshot import LAST_KNOWN_GOOD, Snapshot, Target

NOW = utc_now()
READY, DRAINING, LOADING = AdapterState.READY, AdapterState.DRAINING, AdapterState.LOADING


def route(*arms: tuple[int, int], model: str = "bot", revision: int = 3) -> Route:
    made = tuple(Arm(version=version, weight_bp=weight) for version, weight in arms)
    return Route(model=model, revision=revision, arms=made, salt="s", by="me", reason="why", at=NOW)


def engine(name: str, **adapters: AdapterState) -> EngineState:
    return EngineState(
        id=name,
        url=f"http://{name}",
        base="b",
        base_digest="d",
        template_digest="t",
        state="ready",
        adapters={f"bot@{version[1:]}": state for version, state in adapters.items()},
        max_loras=6,
        max_lora_rank=16,
        at=NOW,
    )


def api_key(name: str = "one", **changes: Any) -> ApiKey:
    fields: dict[str, Any] = {
        "id": f"key_{name}",
        "digest": key_digest(name),
        "owner": "me",
        "models": (),
        "may_pin": False,
        "created_at": NOW,
    }
    return ApiKey(**(fields | changes))


def view(*engines: EngineState, keys: tuple[ApiKey, ...] = (), routes: tuple[Route, ...] = ()) -> Snapshot:
    routes = routes or (route((2, 1_000), (1, 9_000)),)
    return Snapshot.of(NOW, {r.model: r for r in routes}, engines, keys)


def test_a_view_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    key = api_key(expires_at=NOW + timedelta(days=1))
    before = view(engine("e1", v1=READY), engine("e2", v2=DRAINING), keys=(key,))
    before.save(tmp_path)
    after = Snapshot.load(tmp_path)
    assert after is not None
    assert after.model_dump() == before.model_dump()
    assert after.same_as(before)
    assert (tmp_path / LAST_KNOWN_GOOD).stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == [LAST_KNOWN_GOOD]


def test_without_a_file_there_is_no_view_and_a_broken_one_says_what_to_do(tmp_path: Path) -> None:
    assert Snapshot.load(tmp_path) is None
    (tmp_path / LAST_KNOWN_GOOD).write_text('{"routes": ')
    with pytest.raises(InvalidInput, match="delete it"):
        Snapshot.load(tmp_path)


def test_a_heartbeat_alone_is_no_change() -> None:
    first = view(engine("e1", v1=READY))
    later = engine("e1", v1=READY).model_copy(update={"at": NOW + timedelta(seconds=1)})
    assert view(later).same_as(first)
    assert not view(engine("e1", v1=DRAINING)).same_as(first)
    assert not view(engine("e1", v1=READY), keys=(api_key(),)).same_as(first)


def test_revoked_and_expired_keys_are_not_known() -> None:
    keys = (
        api_key("good"),
        api_key("revoked", revoked_at=NOW),
        api_key("brief", expires_at=NOW + timedelta(seconds=5)),
    )
    known = view(keys=keys)
    assert known.key("good", NOW) == keys[0]
    assert known.key("revoked", NOW) is None
    assert known.key("brief", NOW) == keys[2]
    assert known.key("brief", NOW + timedelta(seconds=5)) is None
    assert known.key(keys[0].digest, NOW) is None


@settings(max_examples=200)
@given(unit=st.text(max_size=20))
def test_the_first_choice_is_what_assign_says(unit: str) -> None:
    found = plan(view(), "bot", api_key(), unit)
    assert found.assigned == found.versions[0] == assign(found.route, unit)
    assert set(found.versions) == {1, 2}


def test_a_staged_version_never_stands_in_for_another() -> None:
    routes = (route((3, 0), (2, 1_000), (1, 9_000)),)
    versions = {plan(view(routes=routes), "bot", api_key(), str(n)).versions for n in range(200)}
    assert versions == {(1, 2), (2, 1)}


def test_a_key_with_a_version_of_its_own_gets_it_and_the_champion_stands_in() -> None:
    split = route((3, 0), (2, 1_000), (1, 9_000))
    one = (split.model_copy(update={"overrides": {key_hash("me"): 3}}),)
    found = plan(view(routes=one), "bot", api_key(), "me")
    assert (found.assigned, found.versions) == (None, (3, 1, 2)), "the split had no say: no canary is judged by it"
    for n in range(200):
        assert plan(view(routes=one), "bot", api_key(), f"u{n}").assigned == assign(split, f"u{n}")


def test_a_key_that_is_held_out_gets_the_champion_and_counts_for_no_arm() -> None:
    held = route((2, 9_000), (1, 1_000)).model_copy(update={"holdout_bp": 2_000, "overrides": {key_hash("me"): 2}})
    found = {unit: plan(view(routes=(held,)), "bot", api_key(), unit) for unit in map(str, range(500))}
    out = {unit for unit in found if held_out(held, key_hash(unit))}
    assert 50 < len(out) < 150
    assert {(found[unit].assigned, found[unit].versions) for unit in out} == {(None, (1, 2))}
    assert all(found[unit].assigned == assign(held, unit) for unit in found.keys() - out)
    mine = next(unit for unit in out)
    own = held.model_copy(update={"overrides": {key_hash(mine): 2}})
    assert plan(view(routes=(own,)), "bot", api_key(), mine).versions[0] == 2, "who was named is named"


def test_a_pin_needs_a_key_that_may_and_a_version_in_the_route() -> None:
    may = api_key(may_pin=True)
    found = plan(view(), "bot@2", may, "u")
    assert (found.assigned, found.versions) == (None, (2,))
    for asked, key, status, code in [
        ("bot@2", api_key(), 403, "pin_not_allowed"),
        ("bot@9", may, 404, "model_not_found"),
        ("bot@x", may, 404, "model_not_found"),
        ("bot@02", may, 404, "model_not_found"),
        ("other", may, 404, "model_not_found"),
        ("bot", api_key(models=("x",)), 403, "model_not_allowed"),
    ]:
        with pytest.raises(ApiError) as refused:
            plan(view(), asked, key, "u")
        assert (refused.value.status, refused.value.code, refused.value.param) == (status, code, "model")


def picked(snapshot: Snapshot, *versions: int, load: dict[str, int] | None = None, **more: Any) -> str | None:
    target = pick(snapshot, "bot", versions, Counter(load or {}).__getitem__, **({"draw": lambda: 0.0} | more))
    return target.slot if target else None


def test_the_least_loaded_engine_that_serves_the_version_is_picked() -> None:
    known = view(engine("e1", v1=READY, v2=READY), engine("e2", v1=READY), engine("e3", v1=LOADING))
    assert picked(known, 1, load={"e1": 2, "e2": 1}) == "e2|bot@1"
    assert picked(known, 1, load={"e1": 2, "e2": 3}) == "e1|bot@1"
    assert picked(known, 2, 1, load={"e1": 9}) == "e1|bot@2"
    assert picked(known, 3, 1) == "e1|bot@1"
    assert picked(known, 3) is None
    assert picked(known, 1, avoid={"e1"}) == "e2|bot@1"
    assert picked(known, 2, 1, avoid={"e1"}) == "e2|bot@1"
    assert picked(known, 2, avoid={"e1"}) == "e1|bot@2"
    assert picked(known, 2, 1, never="e1|bot@2") == "e1|bot@1"


def test_an_engine_about_to_unload_is_used_only_when_no_other_can() -> None:
    assert picked(view(engine("e1", v1=DRAINING), engine("e2", v1=READY)), 1, load={"e2": 9}) == "e2|bot@1"
    assert picked(view(engine("e1", v1=DRAINING)), 1) == "e1|bot@1"


def test_load_counts_while_requests_are_there_and_forgets_engines_set_aside() -> None:
    now = [0.0]
    load = Load(clock=lambda: now[0])
    target = Target(1, "bot@1", "e1", "http://e1")
    load.carry(target)
    load.carry(target)
    assert load.in_flight() == {"e1|bot@1": 2}
    assert load.of("e1") == 2
    load.put_down(target)
    load.put_down(target)
    assert load.in_flight() == {}
    load.set_aside("e1")
    assert load.aside() == {"e1"}
    now[0] = SET_ASIDE_S + 0.1
    assert load.aside() == frozenset()


def test_a_pause_grows_while_failures_go_on_lets_one_try_at_a_time_and_ends_with_a_success() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    pauses = []
    for _ in range(6):
        for _ in range(50):  # they were under way together
            breaker.failed("e1", 1.0)
        began = now[0]
        while breaker.now():
            now[0] += 0.25
        pauses.append(now[0] - began)
        breaker.trying("e1")
        assert breaker.now() == {"e1"}, "one tries, the others go elsewhere"
    assert pauses == [1.0, 2.0, 4.0, 8.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    now[0] += LONGEST_PAUSE_S
    assert not breaker.now(), "who tried is still at it: another may"
    breaker.trying("e1")
    breaker.succeeded("e1")
    assert not breaker.now()
    breaker.failed("e1", 1.0)
    now[0] += 1.0
    assert not breaker.now(), "the first pause again"
    now[0] += FORGOTTEN_AFTER_S
    assert not breaker.now()
    assert not breaker.paused, "an engine that left costs requests nothing"


def test_a_slot_that_fails_is_passed_over_for_the_same_version_elsewhere_and_never_for_another() -> None:
    load = Load(clock=lambda: 0.0)
    load.shun("e1|bot@1", busy=False)
    load.shun("e1|bot@2", busy=True)
    known = view(engine("e1", v1=READY, v2=READY), engine("e2", v1=READY))
    assert load.aside() == frozenset()
    assert picked(known, 1, load={"e2": 9}, shun=load.shunned()) == "e2|bot@1"
    assert picked(known, 2, 1, load={"e1": 9}, shun=load.shunned()) == "e1|bot@2"
    load.shun("e2|bot@1", busy=False)
    assert picked(known, 1, load={"e2": 9}, shun=load.shunned()) == "e1|bot@1", "all fail: the least loaded"
    load.answered(Target(1, "bot@1", "e2", "http://e2"))
    assert picked(known, 1, load={"e2": 9}, shun=load.shunned()) == "e2|bot@1"


def test_the_pauses_of_one_that_breaks_off_grow_though_it_begins_each_time_and_a_busy_one_has_only_to_begin() -> None:
    now = [0.0]
    load, target = Load(clock=lambda: now[0]), Target(1, "bot@1", "e1", "http://e1")
    pauses = []
    for _ in range(3):
        load.carry(target)
        load.begun(target)
        load.shun(target.slot, busy=False)
        load.put_down(target)
        began = now[0]
        while load.shunned():
            now[0] += 0.5
        pauses.append(now[0] - began)
    assert pauses == [2.0, 4.0, 8.0]
    load.carry(target)
    load.begun(target)
    assert load.shunned() == {target.slot}, "it has begun before, too"
    load.answered(target)
    assert not load.shunned()
    load.shun(target.slot, busy=True)
    load.begun(target)
    assert not load.shunned()


def test_engines_of_equal_load_are_taken_evenly_and_a_busier_one_never() -> None:
    known = view(*(engine(f"e{n}", v1=READY) for n in range(4)))
    draw = random.Random(7).random
    found = Counter(picked(known, 1, load={"e1": 1}, draw=draw) for _ in range(600))
    assert found.keys() == {"e0|bot@1", "e2|bot@1", "e3|bot@1"}
    assert min(found.values()) > 150


def test_retries_stay_within_their_share() -> None:
    budget = RetryBudget(0.1)
    spent = 0
    for _ in range(1_000):
        budget.earn()
        spent += budget.spend()
    assert 100 <= spent <= 110
    never = RetryBudget(0.0)
    never.earn()
    assert not never.spend()


def test_what_requests_look_up_is_made_before_the_first_one_asks() -> None:
    found = view(engine("e1", v1=READY))
    found.build()
    assert {"targets", "orders", "key_by_digest"} <= vars(found).keys()
