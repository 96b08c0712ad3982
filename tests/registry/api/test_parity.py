"""The same verbs at a terminal and over HTTP, and what only one of them has, said with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import click
import pytest

from registry.api.asked import BOT
from registry.api.plane import Plane
from registry.verbs import verb_at
from tests_support import request_record, retraining_request
from tuneloop.monitor.verbs import VERBS as WATCHING
from tuneloop.registry.access.roles import Role
from tuneloop.registry.api.app import ROUTERS
from tuneloop.registry.api.openapi import operations
from tuneloop.registry.api.parity import NOT_SERVED, OF_ITSELF, OF_OTHERS, OF_OTHERS_NOT_SERVED, SERVED
from tuneloop.registry.nouns import RetrainingState
from tuneloop.registry.retraining.budgets import Estimate
from tuneloop.registry.verbs import VERBS
from tuneloop.serve.verbs import VERBS as SERVING


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for below, found in command.commands.items():
            yield from commands(found, f"{name} {below}")
    else:
        yield name, command


def test_every_verb_of_the_registry_is_served_or_it_is_said_why_not() -> None:
    verbs = {name: command for verb in VERBS for name, command in commands(verb, verb.name or "")}
    whole = {name for name in NOT_SERVED if "--" not in name}
    assert not whole & SERVED.keys()
    assert whole | SERVED.keys() == verbs.keys()
    for name in NOT_SERVED.keys() - whole:
        verb, _, option = name.rpartition(" ")
        assert option in {said for parameter in verbs[verb].params for said in parameter.opts}


def test_every_verb_that_serves_or_watches_is_served_or_it_is_said_why_not() -> None:
    theirs = {name for verb in (*SERVING, *WATCHING) for name, _ in commands(verb, verb.name or "")}
    assert not OF_OTHERS.keys() & OF_OTHERS_NOT_SERVED.keys()
    assert OF_OTHERS.keys() | OF_OTHERS_NOT_SERVED.keys() == theirs
    known = {route.name for _, _, route in operations(ROUTERS)}
    for why in (NOT_SERVED | OF_OTHERS_NOT_SERVED).values():
        assert known >= {name for name in re.findall(r"`(\w+)`", why) if "_" in name}


def test_every_operation_does_what_some_verb_does() -> None:
    known = [route.name for _, _, route in operations(ROUTERS)]
    assert sorted([*OF_ITSELF, *(name for names in (SERVED | OF_OTHERS).values() for name in names)]) == sorted(known)


def test_a_version_is_told_like_by_its_verbs_with_what_was_found_of_bias(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    verb = verb_at(plane.registry.settings.home, monkeypatch, capfd)
    gap = {"estimate": 0.25, "low": 0.125, "high": 0.5, "level": 0.95}
    found = {"attribute": "age", "readings": 96, "alone": {"verdict": "more", "gap": gap, "p_value": float("nan")}}
    kept = {"at": "2026-11-30T00:00:00Z", "champion": None, "why_alone": "it is the first", "attributes": [found]}
    (tmp_path / "bias.json").write_text(json.dumps(kept))
    plane.registry.versions.log_file(plane.registry.versions.get("bot", 1).run_id, tmp_path / "bias.json", "bias")
    card = plane.get(f"{BOT}/versions/1/card", Role.VIEWER)
    assert (card["card"], card["bias"]["attributes"][0]["alone"]["gap"]) == ("# bot\n\nIt answers.\n", gap)
    assert card["bias"]["attributes"][0]["alone"]["p_value"] is None, "no JSON has a NaN"
    compared = plane.get(f"{BOT}/compare?before=1&after=2")
    assert (compared["before"]["bias"], compared["after"]["bias"]["at"]) == (card["bias"], None)
    assert (compared["after"]["parent"], compared["after"]["measures"][1]["value"]) == (None, 5.0)
    shown = plane.get(f"{BOT}/versions/1/lineage", Role.VIEWER)
    assert (shown["bias"], shown["serving"]["share_bp"], shown["approver"]) == (card["bias"], 9_000, "ada")
    assert shown == json.loads(verb("show", "bot@1", "--json")[1])
    assert card == json.loads(verb("card", "bot@1", "--json")[1])
    assert [*compared.values()] == json.loads(verb("compare", "bot@1", "bot@2", "--json")[1])


def test_what_became_of_requests_is_told_page_by_page_with_the_share_of_all(plane: Plane) -> None:
    queue, now = plane.registry.retraining, plane.registry.clock()
    queue.file(retraining_request(now, id="rt_2", idempotency_key="2" * 64), by="monitor")
    queue.approve("rt_2", by="ada", reason="yes")
    claimed = queue.claim("w", lease_s=60)
    assert claimed is not None
    queue.begin(claimed, Estimate(0.5, 1, Decimal("2.00"), "the plan"), by="w")
    queue.finish(claimed, RetrainingState.FAILED, by="w", outcome="the disk is full")
    first = plane.get("/v1/retraining-history?limit=1", Role.VIEWER)
    second = plane.get(f"/v1/retraining-history?limit=1&cursor={first['next']}")
    for page in (first, second):
        assert (page["by_state"], page["ended"]) == ({"proposed": 1, "failed": 1}, 1)
        assert page["shipped_share"]["estimate"] == 0.0
    (failed,), (waiting,) = first["items"], second["items"]
    assert (failed["id"], failed["runs"], failed["planned_hours"]) == ("rt_2", 1, 0.5)
    assert Decimal(failed["cost_usd"]) >= 0
    assert (waiting["id"], waiting["runs"], waiting["waited_s"], second["next"]) == ("rt_1", 0, None, None)


def test_a_months_usage_is_told_by_key_and_page_by_page(plane: Plane) -> None:
    for number, key in enumerate(("key_b", "key_a")):
        record = request_record(100 + number, datetime(2026, 3, 31, 23, 59, tzinfo=UTC), api_key=key, prompt_tokens=5)
        plane.registry.traffic.add_requests([record])
    first = plane.get("/v1/key-usage?month=2026-03&limit=1")
    second = plane.get(f"/v1/key-usage?month=2026-03&limit=1&cursor={first['next']}")
    assert [page["items"][0]["api_key"] for page in (first, second)] == ["key_a", "key_b"]
    assert (first["items"][0]["prompt_tokens"], second["next"]) == (5, None)
    assert plane.get("/v1/key-usage?month=2026-03&key=key_b")["items"] == second["items"]
    assert plane.get("/v1/key-usage?month=2026-04")["items"] == []
    assert plane.ask("GET", "/v1/key-usage?month=2026-13").status_code == 422
