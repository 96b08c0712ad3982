"""Every operation of the control plane: what it answers, to whom, and what it leaves on record."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from registry.api.plane import DECLARED, Plane, following, let_experiment, running
from registry.experiment_traffic import NO_PLAN, Users
from registry.offered import make_whole
from registry.verbs import let_live
from tests_support import Clock, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.access.roles import ROLES, Role
from tuneloop.registry.api.app import ROUTERS
from tuneloop.registry.api.openapi import operations, permission_of
from tuneloop.registry.experiments.declaration import Declaration
from tuneloop.registry.nouns import RetrainingState
from tuneloop.registry.rollouts import steering
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.routes.assignment import assign
from tuneloop.registry.routes.promotion import Change, set_route
from tuneloop.registry.settings import RegistrySettings

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


def fail(registry: Registry) -> None:
    """As a worker does that was tried too often."""
    registry.retraining.approve("rt_1", by="ada", reason="r")
    claimed = registry.retraining.claim("w1", lease_s=60)
    assert claimed is not None
    registry.retraining.finish(claimed, RetrainingState.FAILED, by="w1", outcome="it went wrong")


def end_rollout(registry: Registry) -> None:
    """As somebody does who wants to experiment."""
    steering.abort(registry, "bot", Change("ada", "r"))
    set_route(registry, "bot", {2: 1_000, 1: 9_000}, Change("ada", "r"))


def begin(registry: Registry) -> None:
    """As somebody does who wants to look."""
    [draft] = [one for one in registry.experiments.all() if one.started_at is None]
    registry.experiments.start(draft.id, revision=2, by="ada", reason="r")


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
    Write("new_key", "POST", "/v1/keys", {"owner": "team-b", "models": ["bot"]}, "key.new", "", 201),
    Write("limit_key", "PUT", "/v1/keys/KEY/limits", {"limits": {"streams": 2}}, "key.limit", ""),
    Write("rotate_key", "POST", "/v1/keys/KEY/rotate", {"grace_days": 2}, "key.rotate", ""),
    Write("revoke_key", "POST", "/v1/keys/KEY/revoke", {}, "key.revoke", ""),
    Write("new_token", "POST", "/v1/tokens", {"name": "eva", "role": "viewer"}, "token.new", "token:eva", 201),
    Write("revoke_token", "POST", "/v1/tokens/the-viewer/revoke", {}, "token.revoke", "token:the-viewer"),
)
READS = (
    "/v1/models",
    f"{BOT}/versions",
    f"{BOT}/versions/1",
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
    f"{BOT}/retraining-policy",
    f"{BOT}/requests",
    "/v1/requests/req-1/trace",
    "/v1/requests/req-1/feedback",
    "/v1/audit?subject=bot",
    "/v1/audit/verification",
    "/v1/status",
    "/v1/whoami",
    "/v1/keys",
    "/v1/tokens",
)
PERMISSIONS = {route.name: permission_of(route) for _, _, route in operations(ROUTERS)}


def path_of(plane: Plane, path: str) -> str:
    """With the ids there are: of the key, of the experiment that is over, and of the one that is not."""
    oldest = plane.registry.experiments.all()[::-1]
    over = next(one.id for one in oldest if one.state == "stopped")
    other = min((one for one in oldest if one.state != "stopped"), key=lambda one: one.state == "draft").id
    return path.replace("KEY", plane.registry.keys.all()[0].id).replace("OVER", over).replace("DRAFT", other)


def test_the_tables_here_hold_every_operation() -> None:
    found = [(method, route) for method, _, route in operations(ROUTERS)]
    assert {route.name for method, route in found if method != "get"} == {write.name for write in WRITES}
    assert len(READS) == sum(method == "get" and permission_of(route) is not None for method, route in found)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
def test_a_write_is_done_for_the_roles_that_may_under_the_tokens_name_and_refused_to_the_others(
    plane: Plane, write: Write
) -> None:
    needed, path = PERMISSIONS[write.name], path_of(plane, write.path)
    assert needed is not None
    write.ready(plane.registry)
    before = plane.registry.audit.entries()[0].id
    may = [role for role in Role if needed in ROLES[role]]
    assert Role.ADMIN in may
    for role in set(Role) - set(may):
        answer = plane.ask(write.method, path, role, json=write.body | WHY)
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:tuneloop:problem:forbidden"
        assert " and ".join(may) in answer.json()["detail"]
    assert plane.ask(write.method, path, None, json=write.body | WHY).status_code == 401
    assert plane.ask(write.method, path, may[0], json=write.body).status_code == 422, "a write has a reason"
    assert plane.registry.audit.entries()[0].id == before, "nothing was changed"
    answer = plane.ask(write.method, path, may[0], json=write.body | WHY)
    assert answer.status_code == write.status, answer.text
    entries = [entry for entry in plane.registry.audit.entries() if entry.id > before]
    assert {entry.actor for entry in entries} == {f"token:the-{may[0]}"}
    assert entries[0].action == write.action
    assert entries[0].subject == write.subject or not write.subject
    assert "test" in {entries[0].detail.get("reason"), entries[0].detail.get("note")}


@pytest.mark.parametrize("path", READS)
def test_everything_can_be_read_by_those_who_may(shared_plane: Plane, path: str) -> None:
    for role in Role:
        answer = shared_plane.ask("GET", path_of(shared_plane, path), role)
        expected = 403 if path == "/v1/tokens" and role != Role.ADMIN else 200
        assert answer.status_code == expected, answer.text
        assert answer.headers["cache-control"] == "no-store"
    assert shared_plane.ask("GET", path_of(shared_plane, path), None).status_code == 401


def test_what_is_read_is_what_the_registry_holds(shared_plane: Plane) -> None:
    assert shared_plane.get("/v1/models") == {
        "items": [{"model": "bot", "newest_version": 3, "split_bp": "2=1000 1=9000", "revision": 2}],
        "next": None,
        "unreadable": [],
    }
    assert [v["version"] for v in shared_plane.get(f"{BOT}/versions")["items"]] == [3, 2, 1]
    compared = shared_plane.get(f"{BOT}/compare?before=1&after=2")
    assert (compared["before"]["version"], compared["after"]["version"]) == (1, 2)
    judged = shared_plane.get(f"{BOT}/versions/3/gate")
    assert (judged["verdict"], judged["approver"]) == ("inconclusive", None)
    assert judged["why_not"] == "its gate says inconclusive"
    assert shared_plane.get(f"{BOT}/versions/1/gate")["approver"] == "ada"
    assert shared_plane.get(f"{BOT}/route")["route"]["revision"] == 2
    assert shared_plane.get(f"{BOT}/route")["gateways"] == {"g1": 2}
    diff = shared_plane.get(f"{BOT}/route/diff?before=1&after=2")
    assert diff["differences"][1] == {"what": "version 2", "before": None, "after": "1000"}
    assert (diff["moved_bp"], shared_plane.get(f"{BOT}/route/diff?before=1")) == (1_000, diff)
    assert shared_plane.get(f"{BOT}/rollout")["report"]["version"] == 2
    assert shared_plane.get("/v1/retraining/rt_1")["history"][0]["action"] == "retraining.file"
    line = shared_plane.get(f"{BOT}/requests")["items"][0]
    assert line["id"] == "req-1"
    assert not {"messages", "answer"} & line.keys()
    assert [step["kind"] for step in shared_plane.get("/v1/requests/req-1/trace")][:3] == [
        "request",
        "route",
        "version",
    ]
    assert shared_plane.get("/v1/requests/req-1/feedback")["items"][0]["correction"] == "It raises."
    over = shared_plane.get(path_of(shared_plane, "/v1/experiments/OVER/report"))
    assert (over["report"]["experiment"]["state"], over["report"]["treatments"][0]["verdict"]) == (
        "stopped",
        "not decided",
    )
    assert [(arm["version"], arm["is_control"]) for arm in over["report"]["arms"]] == [(1, True), (2, False)]
    assert re.match(r"Stopped .* UTC by ada, undecided\. Version 2: there were too few units", over["words"][0])
    verified = shared_plane.get("/v1/audit/verification")
    assert verified["faults"] == []
    assert shared_plane.get(f"/v1/audit/verification?noted={verified['hash']}")["noted"] == verified["newest"]
    status = shared_plane.get("/v1/status")
    assert (status["open_alerts"], status["open_retraining"]) == (1, 1)
    assert [gateway["id"] for gateway in status["gateways"]] == ["g1"]
    assert "digest" not in shared_plane.get("/v1/keys")["items"][0]
    me = shared_plane.get("/v1/whoami", Role.PROMOTER)
    assert (me["token"]["name"], set(me["permissions"])) == ("the-promoter", {str(p) for p in ROLES[Role.PROMOTER]})


def test_a_bandits_step_says_what_it_would_do_and_then_does_it_once(plane: Plane) -> None:
    path = path_of(plane, "/v1/experiments/DRAFT/step")
    assert plane.ask("POST", path, json=WHY).status_code == 409, "only a running bandit moves its shares"
    let_learn(plane.registry)
    revision = plane.registry.routes.current("bot").revision
    proposed = plane.ask("POST", path, json={"propose": True} | WHY).json()
    assert (proposed["moved"], proposed["revision"]) == (False, revision)
    assert proposed["chances"]["2"] > 0.99
    moved = plane.ask("POST", path, json=WHY).json()
    assert moved == proposed | {"moved": True, "revision": revision + 1}
    assert {str(v): bp for v, bp in plane.registry.routes.current("bot").split.items()} == moved["split"]
    [entry] = plane.registry.audit.entries("bot", action="experiment.step")
    assert (entry.actor, entry.detail["chances"]["2"] > 0.99) == ("token:the-admin", True)


def test_what_was_made_works_until_it_is_revoked(plane: Plane) -> None:
    made = plane.ask("POST", "/v1/tokens", json={"name": "eva", "role": "viewer", "days": 1} | WHY).json()
    with_it = {"authorization": f"Bearer {made['secret']}"}
    assert plane.ask("GET", "/v1/whoami", None, headers=with_it).json()["token"] == made["token"]
    assert plane.ask("POST", "/v1/tokens/eva/revoke", json=WHY).status_code == 200
    assert plane.ask("GET", "/v1/whoami", None, headers=with_it).status_code == 401
    key = plane.ask("POST", "/v1/keys", json={"owner": "eva"} | WHY).json()
    assert key["secret"].startswith("tl-")
    revoked = plane.ask("POST", f"/v1/keys/{key['key']['id']}/revoke", json=WHY).json()
    assert revoked["revoked_at"] is not None


def test_a_draft_is_replaced_and_its_declaration_refused_with_every_fault(plane: Plane) -> None:
    path = path_of(plane, "/v1/experiments/DRAFT")
    wrong = DECLARED | {"arms": {"1": 9_000, "2": 2_000}, "hypotesis": "typo"}
    refused = plane.ask("POST", "/v1/experiments", json={"declaration": wrong} | WHY)
    assert refused.status_code == 422
    assert "shares sum to 11000" in refused.json()["detail"]
    assert "hypotesis" in refused.json()["detail"]
    body = {"declaration": DECLARED | {"hypothesis": "It is better"}, "replaces": path.rpartition("/")[2]} | WHY
    made = plane.ask("POST", "/v1/experiments", Role.PROMOTER, json=body)
    assert (made.status_code, made.json()) == (201, plane.get(path))
    assert made.json()["declaration"]["hypothesis"] == "It is better"
    rolled_out = plane.ask("POST", f"{path}/start", json=WHY)
    assert (rolled_out.status_code, rolled_out.json()["type"]) == (409, "urn:tuneloop:problem:refused")
    assert "is being rolled out" in rolled_out.json()["detail"]


def test_a_lost_race_is_a_conflict_that_says_who_won(plane: Plane) -> None:
    body = {"arms": SPLIT, "expected_revision": 2} | WHY
    assert plane.ask("PUT", f"{BOT}/route", Role.PROMOTER, json=body).json()["revision"] == 3
    lost = plane.ask("PUT", f"{BOT}/route", json=body)
    assert lost.status_code == 409
    assert lost.json()["type"] == "urn:tuneloop:problem:conflict"
    assert "token:the-promoter wrote revision 3 (2=2000 1=8000)" in lost.json()["detail"]


def test_what_a_gate_refuses_is_no_lack_of_permission_and_only_an_admin_may_force_it(plane: Plane) -> None:
    path = f"{BOT}/versions/3/promote"
    refused = plane.ask("POST", path, Role.PROMOTER, json=WHY)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:tuneloop:problem:refused")
    assert "bot@3 is not approved" in refused.json()["detail"]
    forced = plane.ask("POST", path, Role.PROMOTER, json=WHY | {"force": True})
    assert (forced.status_code, forced.json()["type"]) == (403, "urn:tuneloop:problem:forbidden")
    assert plane.registry.routes.current("bot").revision == 2
    done = plane.ask("POST", path, Role.ADMIN, json=WHY | {"force": True}).json()
    assert done["forced"]
    assert done["arms"][-1] == {"version": 3, "weight_bp": 10_000}


def test_an_approval_through_the_control_plane_carries_its_tokens_role(plane: Plane) -> None:
    policy = {"policy": {"approver_role": True}} | WHY
    assert plane.ask("PUT", f"{BOT}/gate-policy", json=policy).json()["approver_role"]
    assert plane.get(f"{BOT}/versions/2/gate")["approver"] is None, "ada's approval came from the command line"
    promote = f"{BOT}/versions/2/promote"
    assert plane.ask("POST", promote, Role.PROMOTER, json=WHY).status_code == 409
    approved = plane.ask("POST", f"{BOT}/versions/2/approvals", Role.APPROVER, json=WHY)
    assert (approved.json()["by"], approved.json()["role"]) == ("token:the-approver", "approver")
    assert plane.get(f"{BOT}/versions/2/approvals")["items"][0] == approved.json()
    assert plane.ask("POST", promote, Role.PROMOTER, json=WHY).status_code == 200


def test_revoking_says_what_serves_on(plane: Plane) -> None:
    said = plane.ask("POST", f"{BOT}/versions/2/revoke", Role.APPROVER, json=WHY).json()
    assert "it still serves 10 %" in said["notes"][0]


def test_pages_follow_each_other_by_their_cursor(plane: Plane) -> None:
    whole = plane.get("/v1/audit?limit=200")["items"]
    page = plane.get("/v1/audit?limit=3")
    found = page["items"]
    while page["next"] is not None:
        page = plane.get(f"/v1/audit?limit=3&cursor={page['next']}")
        found += page["items"]
    assert found == whole
    assert len(whole) > 6


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/none/versions",
        f"{BOT}/versions/99",
        f"{BOT}/versions/99/approvals",
        "/v1/models/none/route",
        "/v1/models/none/route/revisions",
        "/v1/models/none/gate-policy",
        "/v1/models/none/requests",
        "/v1/retraining/none",
        "/v1/experiments?model=none",
        "/v1/experiments/none",
        "/v1/experiments/none/report",
        "/v1/retraining?model=none",
        "/v1/requests/none/trace",
        "/v1/requests/none/feedback",
        "/v1/nothing",
        "/nothing",
    ],
)
def test_what_is_not_there_is_not_found(shared_plane: Plane, path: str) -> None:
    answer = shared_plane.ask("GET", path)
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:tuneloop:problem:not-found")


def test_a_measure_that_is_no_number_is_null(plane: Plane, tmp_path: Path) -> None:
    publish_version(plane.registry, tmp_path / "v4", metrics={"loss": float("nan"), "best": float("inf")})
    assert plane.get(f"{BOT}/versions/4")["metrics"] == {"loss": None, "best": None}


def test_on_postgresql_everything_is_read_and_written_too(postgres: Any, registry_home: Path, tmp_path: Path) -> None:
    settings = RegistrySettings(home=registry_home, database_url=postgres.migrated_database())
    with Registry.open(settings) as registry:
        let_live(registry, tmp_path)
        let_experiment(registry)
        with following(registry), running(registry) as plane:
            for path in (path_of(plane, path) for path in READS):
                assert plane.ask("GET", path).status_code == 200, path
                assert plane.ask("GET", f"{path}{'&' if '?' in path else '?'}limit=1").status_code in {200, 422}
            refused = {}
            for write in sorted(WRITES, key=lambda write: write.name == "revoke_version"):  # it would stop the rest
                answer = plane.ask(write.method, path_of(plane, write.path), json=write.body | WHY)
                if answer.status_code != write.status:
                    refused[write.name] = answer.json()["type"].rpartition(":")[2]
            # One after the other on one registry, so some come too late; that, too, is an answer.
            assert refused == {
                "register_version": "not-found",
                "roll_back": "conflict",
                "start_rollout": "refused",
                "resume_rollout": "invalid",
                "step_experiment": "refused",
                "reject_retraining": "refused",
                "retry_retraining": "refused",
            }
            assert plane.get("/v1/audit/verification")["faults"] == []
