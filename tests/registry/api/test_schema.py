"""Schemathesis over the whole document, as admin, on a registry in which something has happened."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from registry.api.plane import Plane
from tuneloop.registry.api.app import routed
from tuneloop.registry.roles import Role

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = schemathesis.openapi.from_dict(routed().openapi())


@DOCUMENT.parametrize()
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
def test_no_answer_is_a_fault_or_undocumented(case: schemathesis.Case[Any], shared_plane: Plane) -> None:
    case.call_and_validate(
        base_url=shared_plane.url,
        checks=CHECKS,
        headers={"authorization": f"Bearer {shared_plane.secrets[Role.ADMIN]}"},
    )
