"""Schemathesis over the whole document, as admin, on a registry in which something has happened."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import schemathesis
from hypothesis import settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from registry.api.plane import Plane
from tuneloop.registry.access.roles import Role
from tuneloop.registry.api.app import routed
from tuneloop.registry.policies import GatePolicy

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = schemathesis.openapi.from_dict(routed().openapi())
APPROVE = "POST /v1/models/{model}/versions/{version}/approvals"
# An experiment's id is never guessed, nor a whole declaration of versions there are.
NOT_GUESSED = (
    ("GET", "/{experiment_id}"),
    ("GET", "/{experiment_id}/report"),
    ("POST", ""),
    ("POST", "/{experiment_id}/start"),
    ("POST", "/{experiment_id}/step"),
    ("POST", "/{experiment_id}/stop"),
)
Answers = defaultdict[str, set[int]]  # operation → the statuses that it answered with


@pytest.fixture(scope="module")
def answers() -> Answers:
    """What the cases of this module were answered."""
    return defaultdict(set)


@DOCUMENT.parametrize()
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
def test_no_answer_is_a_fault_or_undocumented(
    case: schemathesis.Case[Any], shared_plane: Plane, answers: Answers
) -> None:
    if case.operation.label == APPROVE:  # the policy that was put above may want another person than the trainer
        shared_plane.registry.policies.set("bot", GatePolicy(), by="ada", reason="as it was")
    headers = {"authorization": f"Bearer {shared_plane.secrets[Role.ADMIN]}"}
    answer = case.call_and_validate(base_url=shared_plane.url, checks=CHECKS, headers=headers)
    answers[case.operation.label].add(answer.status_code)


def test_what_was_asked_above_went_as_deep_as_it_should(
    shared_plane: Plane, answers: Answers, request: pytest.FixtureRequest
) -> None:
    """The answers of all the cases before: nobody was kept out but who gave no token, and almost all was done."""
    operations = len(list(DOCUMENT.get_all_operations()))
    of_it = [item for item in request.session.items if item.path == request.path and item is not request.node]
    if len(of_it) < operations:
        pytest.skip(f"it is about all {operations} operations, and {len(of_it)} were chosen to be asked")
    assert len(answers) == operations
    assert not {403, 429} & set().union(*answers.values())
    assert shared_plane.ask("GET", "/v1/whoami").status_code == 200
    done = {operation for operation, statuses in answers.items() if {200, 201} & statuses}
    # What was revoked above cannot be promoted, a canary that was taken back not be rolled out, no key's id be guessed.
    rollout = "POST /v1/models/{model}/rollout"
    late = {"POST /v1/models/{model}/versions/{version}/promote", rollout, f"{rollout}/resume", f"{rollout}/abort"}
    late |= {f"POST /v1/retraining/{{request_id}}/{what}" for what in ("reject", "retry")}
    late |= {f"{method} /v1/experiments{path}" for method, path in NOT_GUESSED}
    late.add("POST /v1/models/{model}/versions")  # nor the id of a run in MLflow
    late.add("POST /v1/silences/{silence_id}/revoke")  # nor a silence's
    of_a_key = {"POST /v1/keys/{key_id}/revoke", "POST /v1/keys/{key_id}/rotate"}
    assert answers.keys() - done <= late | of_a_key | {"PUT /v1/keys/{key_id}/limits"}
