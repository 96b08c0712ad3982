"""Schemathesis over the whole document, as admin, on a registry in which something has happened; on either database.

The same cases every time, and of each operation one that it does what it is for by; `make fuzz` draws others.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import schemathesis
from hypothesis import settings
from schemathesis import Config
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from registry.api.plane import Plane
from registry.api.reached import READY, ids, to_be_asked
from tuneloop.registry.access.roles import Role

FUZZING = settings.get_current_profile_name() == "fuzz"  # `make fuzz`: other cases each time, and more of them
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = schemathesis.openapi.from_dict(to_be_asked())
# Without a case for each bound of each field.
BRIEFLY = Config.from_dict({"phases": {"coverage": {"enabled": False}}})
OTHER_DATABASE = schemathesis.openapi.from_dict(to_be_asked(), config=None if FUZZING else BRIEFLY)
Answers = defaultdict[str, set[int]]  # operation → the statuses that it answered with


def drawn(examples: int) -> settings:
    """So many cases of each operation beside its example, the same ones every time; what the profile says in a fuzz."""
    return settings() if FUZZING else settings(max_examples=examples, derandomize=True, database=None)


@pytest.fixture(scope="module")
def answers() -> dict[str, Answers]:
    """What the cases of this module were answered, by database."""
    return {"sqlite": defaultdict(set), "postgresql": defaultdict(set)}


@DOCUMENT.parametrize()
@drawn(20)
def test_no_answer_is_a_fault_or_undocumented(
    case: schemathesis.Case[Any], shared_plane: Plane, answers: dict[str, Answers]
) -> None:
    ask(case, shared_plane, answers["sqlite"])


@OTHER_DATABASE.parametrize()
@drawn(2)
def test_no_answer_is_a_fault_or_undocumented_on_postgresql(
    case: schemathesis.Case[Any], plane_on_postgresql: Plane, answers: dict[str, Answers]
) -> None:
    ask(case, plane_on_postgresql, answers["postgresql"])


def ask(case: schemathesis.Case[Any], plane: Plane, answers: Answers) -> None:
    """One case; what is an operation's example finds what it needs."""
    definition = case.operation.definition.raw
    content = definition.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in content and case.body == content["example"]:
        if (ready := READY.get(definition["operationId"])) is not None:
            ready(plane.registry)
        if isinstance(case.body, dict) and "expected_revision" in case.body:
            case.body = {**case.body, "expected_revision": plane.registry.routes.current("bot").revision}
    there = ids(plane.registry)
    for said in (case.path_parameters, case.query):
        said.update({name: there[value] for name, value in said.items() if isinstance(value, str) and value in there})
    headers = {"authorization": f"Bearer {plane.secrets[Role.ADMIN]}"}
    answer = case.call_and_validate(base_url=plane.url, checks=CHECKS, headers=headers)
    answers[case.operation.label].add(answer.status_code)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_was_asked_above_went_as_deep_as_it_should(
    answers: dict[str, Answers], database: str, request: pytest.FixtureRequest
) -> None:
    """The answers of all the cases before: every operation did what it is for, and nobody was kept out but who gave no
    token."""
    given, operations = answers[database], len(list(DOCUMENT.get_all_operations()))
    name = {"sqlite": "undocumented", "postgresql": "on_postgresql"}[database]
    asked = [item for item in request.session.items if item.path == request.path and f"{name}[" in item.name]
    if len(asked) < operations:
        pytest.skip(f"it is about all {operations} operations, and {len(asked)} were chosen to be asked")
    assert len(given) == operations
    assert not {403, 429} & set().union(*given.values())
    assert [label for label, statuses in given.items() if not {200, 201} & statuses] == []
