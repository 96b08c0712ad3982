"""A registry in which everything has happened once: a row in every table, written by the stores themselves.

Nothing in it keeps its schema from going down: what is open, held or limited has ended, but stays in older rows.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from tests_support import (
    Clock,
    alert_episode,
    beat_engine,
    beat_gateway,
    request_record,
    retraining_request,
    window_score,
)
from tuneloop.registry import Registry
from tuneloop.registry.access.leases import Holder, Need
from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.access.roles import Role
from tuneloop.registry.database import Rows
from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy
from tuneloop.registry.experiments.declaration import Declaration, ExperimentPlan, Primary
from tuneloop.registry.nouns import Arm, Check, Feedback, GateReport, Interval, Message, Noun, RetrainingState, Shadow
from tuneloop.registry.paging import Ask
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.budgets import Estimate
from tuneloop.registry.rollouts.rollout import RolloutPlan
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.routes.assignment import key_hash
from tuneloop.registry.routes.promotion import Change
from tuneloop.registry.tables import aliases

MODEL = "bot"


def let_everything_happen(registry: Registry, clock: Clock) -> None:
    """On an empty registry."""
    _route_it(registry)
    _ask_it(registry, clock)
    _let_people_in(registry)
    _judge_it(registry, clock)
    _watch_it(registry, clock)
    _train_it_again(registry, clock)


def _route_it(registry: Registry) -> None:
    arms = [Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)]
    said: dict[str, Any] = {"by": "ada", "reason": "é ✓"}
    first: dict[str, Any] = {"overrides": {"h7": 2}, "holdout_bp": 500, "shadow": (Shadow(version=2, share_bp=300),)}
    registry.routes.write(MODEL, arms, **said, expected_revision=0, forced=True, **first)
    arms = [Arm(version=2, weight_bp=5_000), Arm(version=1, weight_bp=5_000)]
    registry.routes.write(MODEL, arms, **said, expected_revision=1, overrides={}, holdout_bp=0, shadow=())
    noted = {"model": MODEL, "champion": 1, "challenger": 2, "revision": 2, "pending": "", "token": 3}
    with registry.database.writing() as connection:  # the watch that notes it needs an MLflow to look at
        connection.execute(sa.insert(aliases).values(**noted, at=registry.clock()))


def _ask_it(registry: Registry, clock: Clock) -> None:
    beat_engine(registry, "bot@1", "bot@2", detail="two adapters", pins=("bot@1",))
    beat_gateway(registry, {MODEL: 2}, in_flight={"e1|bot@1": 3}, dropped_records=1)
    full = {
        "error": "cut",
        "prompt_tokens": 12,
        "completion_tokens": 30,
        "queue_ms": 0.25,
        "ttft_ms": 51.5,
        "guards": {"secrets": "redact"},
        "messages": (Message(role="system", content="Be brief."), Message(role="user", content="¿Qué es f1?")),
    }
    own = {"client_id": "d" * 32}
    registry.traffic.add_requests([request_record(1, clock(), **full, **own), request_record(2, clock())])
    copy = request_record(3, clock(), **full, served_version=2, shadow_of="req-1")
    registry.traffic.add_requests([copy])
    said = {"score": 0.25, "thumb": "down", "label": "wrong", "comment": "no", "correction": "It dedents."}
    registry.traffic.add_feedback([Feedback(id="f1", request_id="req-1", at=clock(), api_key="key_1", **said)])
    registry.traffic.add_requests([request_record(4, clock(), key_hash=key_hash("grace"))])
    registry.traffic.forget("grace", at=clock(), by="ada", reason="r")


def _let_people_in(registry: Registry) -> None:
    limits = KeyLimits(requests_per_minute=60, budget_usd_per_month=Decimal("12.50"), priority="high")
    _, key = registry.keys.new(
        "team", by="ada", models=[MODEL], may_pin=True, scopes=["chat"], ttl_s=3600, limits=limits
    )
    registry.keys.rotate(key.id, by="ada", grace_s=60)
    registry.keys.revoke(key.id, by="ada")  # a limit that nobody needs keeps no schema from going down
    registry.owners.limit("team", lambda _: limits.model_copy(update={"priority": "normal"}), by="ada")
    registry.owners.limit("team", lambda _: KeyLimits(), by="ada")  # lifted, for the same reason
    needs = {key.id: {kind: Need(limit=60, used=1, held=1, headroom=9) for kind in ("requests", "tokens", "streams")}}
    registry.leases.renew(Holder("g1", "first"), needs)
    registry.tokens.new("ci", Role.PROMOTER, by="ada", reason="r", ttl_s=3600)
    registry.tokens.revoke("ci", by="ada", reason="r")


def _judge_it(registry: Registry, clock: Clock) -> None:
    check = Check(name="errors", verdict="pass", detail="fine", interval=Interval(estimate=0.1, low=0.0, high=0.2))
    registry.gates.record(GateReport(model=MODEL, version=2, champion=1, at=clock(), checks=(check,)))
    registry.gates.approve(MODEL, 1, by="ada", reason="first", role=Role.ADMIN, trained_by="eve")
    registry.gates.approve(MODEL, 2, by="ada", reason="for a while", ttl_s=60)
    registry.gates.approve(MODEL, 2, by="grace", reason="for good")
    registry.gates.approve(MODEL, 3, by="ada", reason="for a while", ttl_s=60)
    registry.policies.set(MODEL, RetrainingPolicy(device_hours_per_day=0.5), by="ada", reason="r")
    rollout = declare(registry, MODEL, 2, RolloutPlan(), Change("ada", "r"))
    held = registry.rollouts.claim(rollout.id, "controller", 60)
    assert held is not None
    registry.rollouts.keep(held, GateReport(model=MODEL, version=2, champion=1, at=clock(), checks=(check,)))
    standing = registry.rollouts.get(rollout.id)
    with registry.database.writing() as connection:
        registry.rollouts.abort(connection, standing, by="ada", reason="r", revision=2)
    metric = Primary(kind="binary", measure="error", goal="lower", minimum_effect=0.1)
    declared = Declaration(model=MODEL, hypothesis="h", arms={1: 5_000, 2: 5_000}, control=1, primary=metric)
    made = registry.experiments.new(declared, ExperimentPlan(days_seen=1.5, units_seen=7), by="ada", reason="r")
    registry.experiments.start(made.id, revision=2, by="ada", reason="r")
    registry.experiments.looked(made.id, registry.clock())
    registry.experiments.stop(made.id, by="ada", reason="r")


def _watch_it(registry: Registry, clock: Clock) -> None:
    chat = {"kind": "slack", "name": "chat", "url": "https://chat.example.com/hook"}
    receivers = ReceiversPolicy.model_validate({"receivers": [chat]})
    registry.policies.set(EVERY_MODEL, receivers, by="ada", reason="r")
    registry.episodes.add_score(window_score(clock(), detail={"share": 0.5}, request_ids=("req-1",)))
    opened = registry.episodes.open(alert_episode(clock(), evidence={"p": 0.001}))
    (waiting,) = registry.outbox.waiting()
    registry.outbox.claim(waiting, clock(), 60)
    registry.outbox.end(waiting.id, "given up", clock(), "refused")
    silence = registry.silences.add(MODEL, 600, by="ada", reason="r", episode_id=opened.id)
    registry.silences.revoke(silence.id, by="ada", reason="r")
    clock.advance(1)
    ended = {"state": "resolved", "resolved_at": clock(), "updated_at": clock(), "done": ("looked",)}
    registry.episodes.update(opened, opened.model_copy(update=ended), by="ada", action="episode.resolve")


def _train_it_again(registry: Registry, clock: Clock) -> None:
    queue = registry.retraining
    began, judged = clock() - timedelta(days=1), clock() - timedelta(hours=1)
    filed = queue.file(retraining_request(clock(), episode_id="ep1", window_start=began, judged_until=judged), by="m")
    queue.approve(filed.id, by="ada", reason="yes")
    claimed = queue.claim("w", lease_s=60)
    assert claimed is not None
    # Above the budget of half an hour a day: held, and let past it by a person.
    queue.begin(claimed, Estimate(1.0, 2, Decimal("2.50"), "the plan"), by="w")
    queue.approve(filed.id, by="ada", reason="once")
    claimed = queue.claim("w", lease_s=60)
    assert claimed is not None
    queue.begin(claimed, Estimate(1.0, 2, Decimal("2.50"), "the plan"), by="w")
    queue.finish(claimed, RetrainingState.GATED, by="w", outcome="made bot@2", result_version=2)
    queue.approve(queue.file(retraining_request(clock(), idempotency_key="q" * 64), by="m").id, by="ada", reason="yes")
    assert queue.claim("w", lease_s=60) is not None


def read_everything(registry: Registry, mark: str = "") -> dict[str, list[Noun]]:
    """What the stores say of it, by table; `mark` stands before the names of the rows that are meant.

    Raises:
        Unreadable: a store cannot read one of its rows.
    """
    model, all_of_them, traffic, gates = mark + MODEL, Ask(limit=200), registry.traffic, registry.gates
    tokens = registry.tokens.page(all_of_them)
    assert not tokens.unreadable
    found: dict[str, Rows[Any]] = {
        "routes": registry.routes.history(model),
        "requests": traffic.window(model),
        "shadow_requests": traffic.shadows_of(f"{mark}req-1"),
        "engines": registry.fleet.engines(live_only=False),
        "gateways": registry.fleet.gateways(live_only=False),
        "api_keys": registry.keys.all(),
        "key_usage": registry.usage.month(registry.clock()),
        "owner_limits": registry.owners.all(),
        "window_scores": registry.episodes.scores(model),
        "episodes": registry.episodes.all(model),
        "retraining": registry.retraining.all(model),
        "retraining_runs": registry.retraining.runs(model),
        "rollouts": registry.rollouts.all(model),
        "experiments": registry.experiments.all(model),
        "deliveries": registry.outbox.all(f"{mark}ep1"),
        "silences": registry.silences.all(),
    }
    read: dict[str, list[Noun]] = {table: list(rows.whole()) for table, rows in found.items()}
    read["approvals"] = [one for version in (1, 2, 3) for one in gates.decisions(model, version).whole()]
    read["gate_reports"] = [one for one in [gates.latest(model, 2)] if one is not None]
    read["feedback"] = list(traffic.feedback_for([f"{mark}req-1"]).get(f"{mark}req-1", []))
    read["tokens"] = list(tokens.items)
    return {table: [one for one in rows if _is_meant(one, mark)] for table, rows in read.items()}


def _is_meant(noun: Noun, mark: str) -> bool:
    """Of what is listed whatever it belongs to, only the rows with the mark."""
    named = next((getattr(noun, name) for name in ("id", "api_key", "name") if hasattr(noun, name)), mark)
    return str(named).startswith(mark)
