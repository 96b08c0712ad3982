"""Every operation of the control plane: what it answers, to whom, and what it leaves on record."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from registry.api.asked import BOT, PERMISSIONS, READS, SPLIT, WHY, WRITES, Write, let_learn, path_of
from registry.api.plane import DECLARED, Plane, following, let_experiment, running
from registry.verbs import let_live
from tests_support import ODD_EVIDENCE, alert_episode, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.access.roles import ROLES, Role
from tuneloop.registry.api.app import ROUTERS
from tuneloop.registry.api.openapi import operations, permission_of
from tuneloop.registry.settings import RegistrySettings

IN_PARTS = {"register_version": 2}  # said before and after, with MLflow's between: test_registering_kills


@contextmanager
def heard(engine: Engine, event: str, by: Callable[..., object]) -> Iterator[None]:
    """Whoever listens to an engine for as long as the block runs."""
    sa.event.listen(engine, event, by)
    try:
        yield
    finally:
        sa.event.remove(engine, event, by)


@contextmanager
def commits(registry: Registry) -> Iterator[list[str]]:
    """The transactions that changed something in the registry's database meanwhile, but for the fleet's own."""
    found: list[str] = []

    def execute(connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            connection.info["changes"] = statement

    def commit(connection: Connection) -> None:
        if (changed := connection.info.pop("changes", None)) and "follow" not in threading.current_thread().name:
            found.append(changed)

    engine = registry.database.engine
    with heard(engine, "before_cursor_execute", execute), heard(engine, "commit", commit):
        yield found


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
    with commits(plane.registry) as committed:
        answer = plane.ask(write.method, path, may[0], json=write.body | WHY)
    assert answer.status_code == write.status, answer.text
    assert len(committed) == IN_PARTS.get(write.name, 1), "whoever is killed on the way has done all of it or nothing"
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
    for said in ("/v1/requests/req-1/feedback", f"{BOT}/feedback"):
        assert shared_plane.get(said)["items"][0]["correction"] == "It raises."
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
    assert (status["counts"]["alerts"], status["counts"]["retraining"]) == (1, 1)
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
    key = plane.ask("POST", "/v1/keys", json={"owner": f" {'e' * 200} "} | WHY).json()
    limited = plane.ask("PUT", "/v1/owner-limits", json={"owner": "e" * 200 + " ", "limits": {"streams": 2}} | WHY)
    assert limited.json()["name"] == key["key"]["owner"] == "e" * 200
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


REFUSED: list[tuple[str, str, Role, dict[str, Any], str]] = [
    ("POST", "/v1/tokens", Role.APPROVER, WHY, "is an approver, .*`tokens`, which admin has$"),
    ("POST", f"{BOT}/versions/2/promote", Role.VIEWER, WHY, "is a viewer, .*`route`, which promoter and admin have$"),
    ("POST", f"{BOT}/versions/2/promote", Role.ADMIN, {"reason": " "}, "^body.reason: it is blank, .*in words"),
    ("POST", f"{BOT}/versions", Role.ADMIN, {"source": {"run_id": "r", "zz": 1}} | WHY, "known keys: run_id, path; "),
]


def test_refusals_are_whole_sentences(plane: Plane) -> None:
    for method, path, role, body, said in REFUSED:
        assert re.search(said, plane.ask(method, path, role, json=body).json()["detail"])


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
    assert done["arms"][-1] == {"version": 3, "weight_bp": 10_000, "places": None}


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
        f"{BOT}/versions/99/lineage",
        f"{BOT}/versions/99/card",
        f"{BOT}/versions/2/card",
        "/v1/retraining-history?model=none",
        f"{BOT}/versions/99/approvals",
        "/v1/models/none/route",
        "/v1/models/none/route/revisions",
        "/v1/models/none/gate-policy",
        "/v1/models/none/requests",
        "/v1/models/none/feedback",
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


def test_an_episode_of_which_nothing_can_be_understood_is_listed_beside_the_others(plane: Plane) -> None:
    now = plane.registry.clock()
    plane.registry.silences.add("bot", 60, by="ada", reason="r", signal="prompt_drift")
    for number, evidence in enumerate(ODD_EVIDENCE):
        plane.registry.episodes.open(alert_episode(now, id=f"odd{number}", version=90 + number, evidence=evidence))
    plane.registry.episodes.open(alert_episode(now, id="last", version=99))
    listed = {one["id"]: one["shown_as"] for one in plane.get("/v1/alerts?model=bot")["items"]}
    expected = dict.fromkeys(("odd2", "odd3"), "open") | dict.fromkeys(("odd0", "odd1", "last"), "silenced")
    assert {name: listed.get(name) for name in expected} == expected


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
                "resume_rollout": "refused",
                "step_experiment": "refused",
                "reject_retraining": "refused",
                "retry_retraining": "refused",
            }
            assert plane.get("/v1/audit/verification")["faults"] == []
