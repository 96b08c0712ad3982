"""Limits, rotation and usage of API keys, and how gateways share one limit out. Both databases."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from hypothesis import given
from hypothesis import strategies as st

from registry.verbs import Verb
from tests_support import Clock, beat_gateway, request_record
from tuneloop.registry import Registry
from tuneloop.registry import database as migrations_home
from tuneloop.registry.access.keys import key_digest
from tuneloop.registry.access.leases import LEASE_S, Holder, Need, Shared, floor_of, part_of
from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.database import Database
from tuneloop.registry.errors import InvalidInput, NotFound, Refused
from tuneloop.registry.nouns import KeyUsage
from tuneloop.registry.tables import key_usage

LIMITS = KeyLimits(requests_per_minute=60, budget_usd_per_month=Decimal("12.50"), priority="high")
G1, G2 = Holder("g1", "a"), Holder("g2", "a")


def need(limit: int, used: int = 0, *, headroom: int | None = None, held: int = 0) -> dict[str, Need]:
    return {"requests": Need(limit, used, held, limit // 8 if headroom is None else headroom)}


def test_limits_are_kept_with_the_key_changed_and_on_record(registries: Registry) -> None:
    _, made = registries.keys.new("team-a", by="ada", limits=LIMITS)
    assert registries.keys.all() == [made]
    changed = registries.keys.limit(
        made.id, lambda limits: limits.model_copy(update={"streams": 3}), by="grace", reason="too many"
    )
    assert registries.keys.all() == [changed]
    assert changed.limits == LIMITS.model_copy(update={"streams": 3})
    newest, first = registries.audit.entries(made.id)
    assert (newest.action, newest.actor, newest.detail["limits"]["streams"]) == ("key.limit", "grace", 3)
    before = {"requests_per_minute": 60, "budget_usd_per_month": "12.50", "priority": "high"}
    assert newest.detail["before"] == first.detail["limits"] == before
    with pytest.raises(NotFound, match="no API key 'key_9'"):
        registries.keys.limit("key_9", lambda limits: limits, by="ada")


def test_an_owners_limits_come_with_its_keys_and_are_on_record(registries: Registry) -> None:
    limits = KeyLimits(requests_per_minute=60, budget_usd_per_month=Decimal("12.50"))
    registries.owners.limit("team-a", lambda _: limits, by="ada", reason="a pilot")
    for owner in ("team-a", "team-a", "team-b"):
        registries.keys.new(owner, by="ada")
    assert {(key.owner, key.owner_limits) for key in registries.keys.all()} == {("team-a", limits), ("team-b", None)}
    changed = registries.owners.limit("team-a", lambda had: had.model_copy(update={"streams": 3}), by="grace")
    assert registries.owners.all() == [changed]
    newest, first = registries.audit.entries("owner:team-a")
    assert (newest.action, newest.actor, first.detail["reason"]) == ("owner.limit", "grace", "a pilot")
    assert (newest.detail["before"], newest.detail["limits"]["streams"]) == (first.detail["limits"], 3)
    for owner in ("", " ", "x" * 201, "a\0"):
        with pytest.raises(InvalidInput, match="1 to 200 letters"):
            registries.owners.limit(owner, lambda had: had, by="ada")
        with pytest.raises(InvalidInput, match="1 to 200 letters"):
            registries.keys.new(owner, by="ada")
    assert registries.owners.limit(" team-a\n", lambda had: had, by="ada").model_dump(exclude={"changed_at"}) == (
        changed.model_dump(exclude={"changed_at"})
    ), "blanks around a name are none of it"
    assert registries.keys.new(" team-c ", by="ada")[1].owner == "team-c"
    with pytest.raises(InvalidInput, match="no priority"):
        registries.owners.limit("team-a", lambda _: LIMITS, by="ada")
    assert [one.limits for one in registries.owners.all()] == [changed.limits]
    now = registries.clock()
    one, two, other = sorted((key.owner, key.id) for key in registries.keys.all() if key.owner != "team-c")
    for number, (_, key) in enumerate((one, two, other)):
        registries.traffic.add_requests([request_record(number, now, api_key=key, prompt_tokens=10 + number)])
    registries.keys.revoke(two[1], by="ada")
    found = registries.usage.month_of_owners(now, {"team-a"})
    assert sorted((owner, used.prompt_tokens) for owner, used in found) == [("team-a", 10), ("team-a", 11)]
    with registries.database.writing() as connection:
        connection.execute(sa.update(key_usage).where(key_usage.c.api_key == one[1]).values(requests=-1))
    found = registries.usage.month_of_owners(now, {"team-a"})
    assert [(owner, used.api_key) for owner, used in found] == [("team-a", two[1])], "one row hides no other"


def test_the_verbs_limit_owners_and_show_them(verb: Verb, registry: Registry) -> None:
    code, out, err = verb("key", "owner", "team-a", "--rpm", "60", "--budget-usd", "12.5", "--by", "ada")
    assert (code, out) == (0, "team-a: rpm 60, budget-usd 12.5\n")
    assert "no key is team-a's yet" in err
    registry.keys.new("team-a", by="ada")
    code, out, err = verb("key", "owner", " team-a ", "--rpm", "none", "--by", "ada", "--json")
    assert (code, err, json.loads(out)["limits"]["requests_per_minute"]) == (0, "", None)
    code, out, _ = verb("key", "owners")
    assert (code, "budget-usd 12.5" in out, "rpm" in out) == (0, True, False)
    assert verb("key", "owner", "team-a", "--by", "ada")[0] == 2


def test_a_rotated_keys_old_secret_opens_for_its_time_of_grace_and_an_older_one_no_longer(
    registries: Registry, clock: Clock
) -> None:
    first, made = registries.keys.new("team-a", by="ada", limits=LIMITS)
    second, rotated = registries.keys.rotate(made.id, by="ada", grace_s=60)
    assert registries.keys.all() == [rotated]
    assert (rotated.id, rotated.limits) == (made.id, LIMITS)
    assert [rotated.opened_by(key_digest(secret), clock()) for secret in (first, second)] == [True, True]
    clock.advance(60)
    assert [rotated.opened_by(key_digest(secret), clock()) for secret in (first, second)] == [False, True]
    third, rotated = registries.keys.rotate(made.id, by="ada")
    opened = [rotated.opened_by(key_digest(secret), clock()) for secret in (first, second, third)]
    assert opened == [False, False, True]
    assert [entry.action for entry in registries.audit.entries(made.id)] == ["key.rotate", "key.rotate", "key.new"]
    assert third not in str(registries.audit.entries(made.id))
    with pytest.raises(InvalidInput, match="between 0 and 90 days"):
        registries.keys.rotate(made.id, by="ada", grace_s=float("nan"))
    registries.keys.revoke(made.id, by="ada")
    with pytest.raises(Refused, match="make a new key"):
        registries.keys.rotate(made.id, by="ada")


def test_a_key_was_revoked_by_whoever_was_first(registries: Registry, clock: Clock) -> None:
    _, made = registries.keys.new("team-a", by="ada")
    revoked = registries.keys.revoke(made.id, by="ada", reason="leaked")
    assert revoked.revoked_at == clock()
    clock.advance(60)
    assert registries.keys.revoke(made.id, by="grace", reason="again") == revoked
    assert registries.keys.all() == [revoked]
    revocations = registries.audit.entries(made.id, action="key.revoke")
    assert [(entry.actor, entry.detail) for entry in revocations] == [("ada", {"reason": "leaked"})]


def test_usage_is_counted_once_however_often_a_record_comes_and_by_its_own_month(registries: Registry) -> None:
    now = registries.clock()
    asked = [
        request_record(1, now, prompt_tokens=10, completion_tokens=5),
        request_record(2, now, prompt_tokens=1, model="other"),
        request_record(3, now - timedelta(days=31), prompt_tokens=100),
        request_record(4, now, prompt_tokens=10, completion_tokens=2),
        request_record(5, now, api_key=None, prompt_tokens=1),
    ]
    registries.traffic.add_requests(asked[:3])
    registries.traffic.add_requests([*asked, asked[3]])
    bot = KeyUsage(month="2026-11", api_key="key_1", model="bot", requests=2, prompt_tokens=20, completion_tokens=7)
    other = bot.model_copy(update={"model": "other", "requests": 1, "prompt_tokens": 1, "completion_tokens": 0})
    assert registries.usage.month(now) == [bot, other]
    assert registries.usage.month(now, keys=["key_2"]) == []
    assert registries.usage.month(now - timedelta(days=31))[0].prompt_tokens == 100


def test_an_older_schema_takes_no_key_that_is_limited(registries: Registry) -> None:
    secret, made = registries.keys.new("team-a", by="ada", limits=LIMITS)
    registries.keys.new("team-b", by="ada", limits=KeyLimits(priority="low"))
    registries.traffic.add_requests([request_record(1, registries.clock())])
    with pytest.raises(CommandError, match=f"lift those of these keys: \\['{made.id}'\\]"):
        _down_and_up(registries.database)
    registries.keys.limit(made.id, lambda _: KeyLimits(), by="ada")
    registries.owners.limit("team-a", lambda _: KeyLimits(streams=1), by="ada")
    with pytest.raises(CommandError, match=r"lift those of \['team-a'\]"):
        _down_and_up(registries.database)
    registries.owners.limit("team-a", lambda _: KeyLimits(), by="ada")
    _down_and_up(registries.database)
    assert {key.limits for key in registries.keys.all()} == {KeyLimits()}
    assert registries.usage.month(registries.clock()) == []
    assert key_digest(secret) in {key.digest for key in registries.keys.all()}


def test_one_gateway_has_the_whole_limit_and_says_so_to_the_next(registries: Registry) -> None:
    alone = registries.leases.renew(G1, {"key_1": need(80, 10)})
    assert (alone.live, alone.held["key_1"]) == (1, {"requests": 80})
    beat_gateway(registries, {}, id="g1")
    second = registries.leases.renew(G2, {"key_1": need(80)})
    assert (second.live, second.held["key_1"], second.others["key_1"]) == (2, {"requests": 0}, {"requests": 80})
    beat_gateway(registries, {}, id="g2")
    first = registries.leases.renew(G1, {"key_1": need(80, 10, held=20)})
    assert first.held["key_1"] == {"requests": 20}
    assert registries.leases.renew(G2, {"key_1": need(80, 0, headroom=60)}).held["key_1"] == {"requests": 60}
    assert registries.leases.nothing(G1) == Shared(2, {}, {})


def test_what_a_dead_gateway_held_comes_back_after_a_window(registries: Registry, clock: Clock) -> None:
    beat_gateway(registries, {}, id="g1")
    beat_gateway(registries, {}, id="g2")
    registries.leases.renew(G1, {"key_1": need(80, 50)})
    clock.advance(11)
    beat_gateway(registries, {}, id="g2")
    assert registries.leases.renew(G2, {"key_1": need(80, 0, headroom=80)}).held["key_1"] == {"requests": 20}
    clock.advance(LEASE_S)
    assert registries.leases.renew(G2, {"key_1": need(80, 20, held=20)}).held["key_1"] == {"requests": 80}


def test_a_gateway_that_starts_again_does_not_get_its_part_a_second_time(registries: Registry) -> None:
    beat_gateway(registries, {}, id="g1")
    beat_gateway(registries, {}, id="g2")
    registries.leases.renew(G1, {"key_1": need(80, 50) | {"streams": Need(2, 2, 2, 1)}})
    again = Holder("g1", "b")
    asked = {"key_1": need(80, headroom=80) | {"streams": Need(2, 0, 0, 2)}}
    assert registries.leases.renew(again, asked).held["key_1"] == {"requests": 10, "streams": 2}
    found = registries.leases.renew(G2, asked)
    assert found.others["key_1"] == {"requests": 70, "streams": 2}
    assert found.held["key_1"] == {"requests": 10, "streams": 0}


def test_streams_of_a_dead_gateway_are_free_once_it_is_known_to_be_dead(registries: Registry, clock: Clock) -> None:
    beat_gateway(registries, {}, id="g1")
    beat_gateway(registries, {}, id="g2")
    registries.leases.renew(G1, {"key_1": {"streams": Need(1, 1, 1, 1)}})
    asked = {"key_1": {"streams": Need(1, 0, 0, 1)}}
    assert registries.leases.renew(G2, asked).held["key_1"] == {"streams": 0}
    clock.advance(11)
    assert registries.leases.renew(G2, asked).held["key_1"] == {"streams": 1}


@given(
    limit=st.integers(1, 200),
    live=st.integers(2, 6),
    rounds=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 80), st.integers(0, 80), st.booleans()), max_size=40),
)
def test_whoever_asks_when_the_parts_never_sum_to_more_than_the_limit(
    limit: int, live: int, rounds: list[tuple[int, int, int, bool]]
) -> None:
    floor = floor_of(limit, live)
    parts = [floor] * live
    for who, wanted, headroom, gives_back in rounds:
        me = who % live
        used = min(wanted, parts[me])  # nobody lets through more than its part
        held = min(parts[me], used + headroom) if gives_back else parts[me]
        others = sum(max(part, floor) for index, part in enumerate(parts) if index != me)
        parts[me] = part_of(Need(limit, used, held, headroom), others, live)
        assert parts[me] >= max(held, floor)
        assert sum(max(part, floor) for part in parts) <= limit


def test_the_verbs_set_change_lift_and_show_limits(verb: Verb, registry: Registry) -> None:
    code, _, _ = verb("key", "new", "--owner", "team-a", "--rpm", "60", "--budget-usd", "12.5", "--priority", "low")
    [made] = registry.keys.all()
    assert (code, made.limits.budget_usd_per_month) == (0, Decimal("12.5"))
    assert "rpm 60, budget-usd 12.5, low" in verb("key", "list")[1]
    code, out, _ = verb("key", "limit", made.id, "--rpm", "none", "--tpm", "9000", "--streams", "2", "--reason", "r")
    assert (code, out) == (0, f"{made.id}: tpm 9000, streams 2, budget-usd 12.5, low\n")
    code, out, _ = verb("key", "rotate", made.id, "--grace-days", "2", "--json")
    rotated = json.loads(out)
    assert (code, rotated["secret"][:3], rotated["id"]) == (0, "tl-", made.id)
    assert rotated["old_until"]
    registry.traffic.add_requests([request_record(1, registry.clock(), api_key=made.id, prompt_tokens=3)])
    columns = verb("key", "usage", made.id, "--month", f"{registry.clock():%Y-%m}")[1].splitlines()[1].split()
    assert columns == [made.id, "team-a", "bot", "1", "3", "0"]
    assert not any("digest" in name for shown in json.loads(verb("key", "list", "--json")[1]) for name in shown)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--rpm", "0"), "requests_per_minute: Input should be greater than or equal to 1"),
        (("--rpm", "many"), "requests_per_minute: Input should be a valid integer"),
        (("--rpm", "1.5"), "requests_per_minute: Input should be a valid integer"),
        (("--budget-usd", "-1"), "budget_usd_per_month: Input should be greater than 0"),
        (("--budget-usd", "nan"), "budget_usd_per_month: "),
        ((), "name what to change, for example --rpm 60"),
    ],
)
def test_limits_that_cannot_be_are_refused_and_change_nothing(
    verb: Verb, registry: Registry, given: tuple[str, ...], said: str
) -> None:
    _, made = registry.keys.new("team-a", by="ada", limits=LIMITS)
    code, _, err = verb("key", "limit", made.id, *given)
    assert (code, said in err) == (2, True), err
    assert registry.keys.all() == [made]


def _down_and_up(database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations_home.__file__).parent / "migrations"))
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0010")
    database.upgrade()


def test_a_key_keeps_its_scopes_and_an_older_schema_does_not_take_it(registries: Registry) -> None:
    _, made = registries.keys.new("page", by="ada", scopes=("feedback", "models", "feedback"))
    _, every = registries.keys.new("team", by="ada")
    registries.keys.rotate(made.id, by="ada")
    assert {key.id: key.scopes for key in registries.keys.all()} == {made.id: ("feedback", "models"), every.id: ()}
    details = [registries.audit.entries(key.id)[-1].detail for key in (made, every)]
    assert [detail.get("scopes") for detail in details] == [["feedback", "models"], None]
    with pytest.raises(InvalidInput, match="scopes"):
        registries.keys.new("page", by="ada", scopes=("everything",))  # type: ignore[arg-type]  # as a script might
    with pytest.raises(InvalidInput, match=f"revoke these keys.*{made.id}"):
        registries.database.downgrade("0017")
    registries.keys.revoke(made.id, by="ada")
    registries.database.downgrade("0017")
