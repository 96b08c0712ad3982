"""Every operation of the control plane once: what is sent to change something, and what can be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow.tracking import MlflowClient

from registry.api.plane import DECLARED, Plane
from registry.experiment_traffic import NO_PLAN, Users
from registry.offered import make_whole
from tests_support import Clock
from tuneloop.registry import Registry
from tuneloop.registry.api.app import ROUTERS
from tuneloop.registry.api.openapi import operations, permission_of
from tuneloop.registry.experiments.declaration import Declaration
from tuneloop.registry.nouns import RetrainingState
from tuneloop.registry.rollouts import steering
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.routes.assignment import assign, key_hash
from tuneloop.registry.routes.promotion import Change, set_route

WHY = {"reason": "test"}
SPLIT = [{"version": 2, "weight_bp": 2_000}, {"version": 1, "weight_bp": 8_000}]


@dataclass(frozen=True)
class Write:
    """An operation that changes something: what is sent, and the audit entry it leaves."""

    name: str
    method: str
    path: str
    body: dict[str, Any]
    action: str
    subject: str
    status: int = 200
    ready: Callable[[Registry], None] = lambda _: None  # what must have happened before


def pause(registry: Registry) -> None:
    """As a controller does that can decide nothing."""
    there = registry.rollouts.open("bot")
    assert there is not None
    held = registry.rollouts.claim(there.id, "test", 60)
    assert held is not None
    with registry.database.writing() as connection:
        registry.rollouts.end(connection, held, RolloutState.PAUSED, "no samples")


def fail(registry: Registry, request_id: str = "rt_1") -> None:
    """As a worker does that was tried too often."""
    registry.retraining.approve(request_id, by="ada", reason="r")
    claimed = registry.retraining.claim("w1", lease_s=60)
    assert claimed is not None
    registry.retraining.finish(claimed, RetrainingState.FAILED, by="w1", outcome="it went wrong")


def end_rollout(registry: Registry) -> None:
    """As somebody does who wants to experiment."""
    steering.abort(registry, "bot", Change("ada", "r"))
    set_route(registry, "bot", {2: 1_000, 1: 9_000}, Change("ada", "r"))


def begin(registry: Registry) -> None:
    """As somebody does who wants to look."""
    end_rollout(registry)
    [draft] = [one for one in registry.experiments.all() if one.started_at is None]
    revision = registry.routes.current("bot").revision
    registry.experiments.start(draft.id, revision=revision, by="ada", reason="r")


def offer(registry: Registry, number: int = 1) -> None:
    """As somebody does whose own training writes to the same MLflow."""
    folder = make_whole(registry.settings.home / f"whole{number}", seed=number)
    run_id = registry.versions.start_run("theirs", name="own", params={})
    client = MlflowClient(registry.settings.mlflow, registry.settings.mlflow)
    client.log_artifacts(run_id, str(folder), "model")
    if number == 1:
        client.create_registered_model("theirs")
    client.create_model_version("theirs", f"runs:/{run_id}/model", run_id)


def let_learn(registry: Registry) -> None:
    """The draft becomes a running bandit, and as many users came to each arm as were declared."""
    end_rollout(registry)
    shares = {1: 5_000, 2: 5_000}
    [draft] = [one for one in registry.experiments.all() if one.started_at is None]
    declared = DECLARED | {"mode": "bandit", "floor_bp": 1_500, "arms": shares}
    registry.experiments.redeclare(draft.id, Declaration.model_validate(declared), NO_PLAN, by="ada", reason="r")
    route = set_route(registry, "bot", shares, Change("ada", "r"))
    registry.experiments.start(draft.id, revision=route.revision, by="ada", reason="r")
    people = {version: [n for n in range(2_000) if assign(route, f"user-{n}") == version][:150] for version in shares}
    users = Users(registry, Clock(registry.clock()), {1: 0.4, 2: 0.1}, span_s=0.0)
    users.ask([*people[1], *people[2]], each=1)


BOT = "/v1/models/bot"
WRITES = (
    Write("set_gate_policy", "PUT", f"{BOT}/gate-policy", {"policy": {"margin": 0.1}}, "policy.gate", "bot"),
    Write("approve_version", "POST", f"{BOT}/versions/3/approvals", {"days": 2}, "version.approve", "bot@3", 201),
    Write("revoke_version", "POST", f"{BOT}/versions/2/revoke", {}, "version.revoke", "bot@2"),
    Write("judge_version", "POST", f"{BOT}/versions/3/gate", {}, "gate.judge", "bot@3"),
    Write(
        "register_version",
        "POST",
        "/v1/models/new/versions",
        {"source": {"model": "theirs", "number": 1}},
        "version.registered",
        "new@1",
        201,
        ready=offer,
    ),
    Write("sign_version", "POST", f"{BOT}/versions/3/sign", {}, "version.sign", "bot@3"),
    Write("set_split", "PUT", f"{BOT}/route", {"arms": SPLIT, "expected_revision": 2}, "route.set", "bot"),
    Write("override_keys", "PATCH", f"{BOT}/route/overrides", {"keys": {"t": 2}}, "route.override", "bot"),
    Write("set_holdout", "PUT", f"{BOT}/route/holdout", {"holdout_bp": 500}, "route.holdout", "bot"),
    Write("set_shadow", "PUT", f"{BOT}/route/shadow", {"version": 3, "share_bp": 500}, "route.shadow", "bot"),
    Write(
        "set_rollout_policy",
        "PUT",
        f"{BOT}/rollout-policy",
        {"policy": {"give_up_s": 99.0, "aliases": "report", "limits": {"alpha": 0.01}}},
        "policy.rollout",
        "bot",
    ),
    Write("promote_version", "POST", f"{BOT}/versions/2/promote", {}, "version.promote", "bot"),
    Write("roll_back", "POST", f"{BOT}/rollback", {"expected_revision": 2}, "route.rollback", "bot"),
    Write("start_rollout", "POST", f"{BOT}/rollout", {"version": 2}, "rollout.declare", "bot@2"),
    Write("resume_rollout", "POST", f"{BOT}/rollout/resume", {}, "rollout.resume", "bot@2", ready=pause),
    Write("abort_rollout", "POST", f"{BOT}/rollout/abort", {}, "rollout.abort", "bot@2"),
    Write("declare_experiment", "POST", "/v1/experiments", {"declaration": DECLARED}, "experiment.new", "", 201),
    Write("start_experiment", "POST", "/v1/experiments/DRAFT/start", {}, "experiment.start", "", ready=end_rollout),
    Write("step_experiment", "POST", "/v1/experiments/DRAFT/step", {}, "experiment.step", "bot", ready=let_learn),
    Write("stop_experiment", "POST", "/v1/experiments/DRAFT/stop", {}, "experiment.stop", "", ready=begin),
    Write("approve_retraining", "POST", "/v1/retraining/rt_1/approve", {}, "retraining.queued", "rt_1"),
    Write("reject_retraining", "POST", "/v1/retraining/rt_1/reject", {}, "retraining.rejected", "rt_1"),
    Write("retry_retraining", "POST", "/v1/retraining/rt_1/retry", {}, "retraining.queued", "rt_1", ready=fail),
    Write("cancel_retraining", "POST", "/v1/retraining/rt_1/cancel", {}, "retraining.cancelled", "rt_1"),
    Write(
        "set_retraining_policy",
        "PUT",
        f"{BOT}/retraining-policy",
        {"policy": {"min_rows": 9, "signals": ["latency"], "recipe": "bot@1"}},
        "policy.retraining",
        "bot",
    ),
    Write("acknowledge_alert", "POST", "/v1/alerts/ep1/acknowledge", {}, "episode.ack", "ep1"),
    Write("resolve_alert", "POST", "/v1/alerts/ep1/resolve", {}, "episode.resolve", "ep1"),
    Write("silence_alerts", "POST", "/v1/silences", {"model": "bot", "for_s": 60}, "silence.new", "", 201),
    Write("end_silence", "POST", "/v1/silences/SILENCE/revoke", {}, "silence.revoke", ""),
    Write(
        "set_guard_policy",
        "PUT",
        f"{BOT}/guard-policy",
        {"policy": {"injection": "flag", "topics": {"deny": {"law": ["lawsuit*"]}}}},
        "policy.guard",
        "bot",
    ),
    Write(
        "set_retention_policy",
        "PUT",
        f"{BOT}/retention-policy",
        {"policy": {"text_days": 30, "record_days": 90}},
        "policy.retention",
        "bot",
    ),
    Write(
        "set_retention_policy_of_others",
        "PUT",
        "/v1/retention-policy",
        {"policy": {"text_days": 30}},
        "policy.retention",
        "*",
    ),
    Write("new_key", "POST", "/v1/keys", {"owner": "team-b", "models": ["bot"]}, "key.new", "", 201),
    Write("limit_key", "PUT", "/v1/keys/KEY/limits", {"limits": {"streams": 2}}, "key.limit", ""),
    Write("forget_user", "POST", "/v1/users/forget", {"user": "ada"}, "user.forget", f"user:{key_hash('ada')}"),
    Write("limit_owner", "PUT", "/v1/owner-limits", {"owner": "b", "limits": {"streams": 2}}, "owner.limit", "owner:b"),
    Write("rotate_key", "POST", "/v1/keys/KEY/rotate", {"grace_days": 2}, "key.rotate", ""),
    Write("revoke_key", "POST", "/v1/keys/KEY/revoke", {}, "key.revoke", ""),
    Write("new_token", "POST", "/v1/tokens", {"name": "eva", "role": "viewer"}, "token.new", "token:eva", 201),
    Write("revoke_token", "POST", "/v1/tokens/the-viewer/revoke", {}, "token.revoke", "token:the-viewer"),
)
READS = (
    "/v1/models",
    f"{BOT}/versions",
    f"{BOT}/versions/1",
    f"{BOT}/versions/1/lineage",
    f"{BOT}/versions/1/card",
    f"{BOT}/compare?before=1&after=2",
    f"{BOT}/versions/3/gate",
    f"{BOT}/gate-policy",
    f"{BOT}/versions/1/approvals",
    f"{BOT}/route",
    f"{BOT}/route/shadow",
    f"{BOT}/route/revisions",
    f"{BOT}/route/diff?before=1",
    f"{BOT}/rollout",
    f"{BOT}/rollout-policy",
    "/v1/rollouts",
    "/v1/experiments?model=bot",
    "/v1/experiments/OVER",
    "/v1/experiments/OVER/report",
    "/v1/retraining?model=bot&open_only=true",
    "/v1/retraining/rt_1",
    "/v1/retraining-history?model=bot",
    f"{BOT}/retraining-policy",
    "/v1/alerts?model=bot&ended=true",
    "/v1/alerts/ep1",
    "/v1/silences?ended=true",
    "/v1/deliveries?episode=ep1",
    f"{BOT}/guard-policy",
    f"{BOT}/retention-policy",
    "/v1/retention-policy",
    f"{BOT}/requests",
    f"{BOT}/feedback",
    "/v1/requests/req-1/trace",
    "/v1/requests/req-1/feedback",
    "/v1/audit?subject=bot",
    "/v1/owner-limits",
    "/v1/audit/verification",
    "/v1/status",
    "/v1/whoami",
    "/v1/keys",
    "/v1/key-usage",
    "/v1/tokens",
)
PERMISSIONS = {route.name: permission_of(route) for _, _, route in operations(ROUTERS)}


def path_of(plane: Plane, path: str) -> str:
    """With the ids there are: of the key, of the experiment that is over, and of the one that is not."""
    oldest = plane.registry.experiments.all()[::-1]
    over = next(one.id for one in oldest if one.state == "stopped")
    other = min((one for one in oldest if one.state != "stopped"), key=lambda one: one.state == "draft").id
    if "SILENCE" in path:
        path = path.replace("SILENCE", plane.registry.silences.all()[0].id)
    return path.replace("KEY", plane.registry.keys.all()[0].id).replace("OVER", over).replace("DRAFT", other)
