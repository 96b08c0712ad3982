"""The OpenAPI document: every status an operation can answer, with its model, and the permission it needs.

What is the same for all operations is said here once, so that no operation can forget it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from tuneloop.registry.access.roles import MEANINGS, Permission, holders
from tuneloop.registry.api.fields import Needs
from tuneloop.registry.api.problems import PROBLEM_JSON, STATUS, Kind, Problem

TITLE = "tuneloop control plane"
VERSION = "1"
_DESCRIPTION = """\
The registry's verbs over HTTP: versions, gates, approvals, routes, experiments, retraining, alerts, guards,
traffic, audit, keys.

Every request carries `Authorization: Bearer TOKEN`. Lists answer one page: at most `limit` items and `next`, which is
given as `cursor` to get the following page. Every write has a `reason`, and is kept in the audit log under the
token's name. Errors are `application/problem+json` (RFC 9457); `type` says which kind. Figures that are no number
(NaN) are null.
"""
TAGS = {
    "versions": "Models and their versions.",
    "gates": "How versions are judged.",
    "approvals": "What people decided about versions.",
    "routes": "Which versions get which share.",
    "rollouts": "The running canary.",
    "experiments": "Versions compared on live traffic, declared before they start.",
    "retraining": "Retraining requests and their policy.",
    "alerts": "What is wrong, who is on it, what is silenced, and who was told.",
    "guards": "What is looked for in requests and answers.",
    "traffic": "Requests, where answers came from, what users said, and how long that is kept.",
    "audit": "Who did what.",
    "status": "What is alive, and what is open.",
    "keys": "API keys of the gateway.",
    "tokens": "Tokens of the control plane.",
    "health": "Whether the control plane runs; without a token.",
}
_ALWAYS: tuple[Kind, ...] = ("unauthenticated", "timeout", "too-large", "invalid", "rate-limited", "unavailable")
Routers = Sequence[tuple[str, APIRouter]]
_LOOKED_UP = {"model", "episode"}  # parameters whose thing has to be there
_METHODS = ("get", "put", "post", "patch", "delete")


def permission_of(route: APIRoute) -> Permission | None:
    """The permission that an operation needs; None: no token is asked for."""
    needed = [d.dependency.permission for d in route.dependencies if isinstance(d.dependency, Needs)]
    return needed[0] if needed else None


def operations(routers: Routers) -> Iterator[tuple[str, str, APIRoute]]:
    """(method, path, route) of every operation, in order."""
    for prefix, router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute):
                yield from ((method.lower(), prefix + route.path_format, route) for method in route.methods or ())


def document(app: FastAPI, routers: Routers) -> dict[str, Any]:
    """The OpenAPI document of an app with these routers."""
    found = get_openapi(
        title=TITLE,
        version=VERSION,
        description=_DESCRIPTION,
        routes=app.routes,
        tags=[{"name": name, "description": said} for name, said in TAGS.items()],
    )
    schemas = found["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = Problem.model_json_schema()
    found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "tlt-…"}}
    found["servers"] = [{"url": "/"}]
    for method, path, route in operations(routers):
        _complete(found["paths"][path][method], path, route)
    for name in ("Version", "ComparedVersion", "MeasuredMetric", "Interval"):
        _nullable_numbers(schemas.get(name, {}))
    return found


def parameters(found: dict[str, Any]) -> dict[str, frozenset[str]]:
    """Operation → the names of the query parameters it reads."""
    return {
        operation["operationId"]: frozenset(p["name"] for p in operation.get("parameters", ()) if p["in"] == "query")
        for path in found["paths"].values()
        for method, operation in path.items()
        if method in _METHODS
    }


def _complete(operation: dict[str, Any], path: str, route: APIRoute) -> None:
    needed, responses = permission_of(route), operation["responses"]
    responses.pop("422", None)
    kinds: list[Kind] = ["timeout", "too-large", "damaged"]
    if needed is not None:
        kinds += _ALWAYS
        roles = ", ".join(holders(needed))
        operation["security"] = [{"token": []}]
        operation["x-permission"] = str(needed)
        operation["description"] += f"\n\nNeeds the permission `{needed}` ({MEANINGS[needed]}): {roles}."
        kinds.append("forbidden")
        writes = (route.methods or set()) != {"GET"}
        if "{" in path or writes or any(p["name"] in _LOOKED_UP for p in operation.get("parameters", ())):
            kinds.append("not-found")
        if writes or route.name in {"verify_audit", "report_experiment"}:
            kinds += ["refused", "conflict"]
        if writes:
            kinds.append("late")
    for kind in kinds:
        status, title = STATUS[kind]
        said = responses.setdefault(str(status), _answer(title, status))
        if title not in said["description"]:
            said["description"] += f"; or: {title[0].lower()}{title[1:]}"
    operation["responses"] = dict(sorted(responses.items()))


def _answer(title: str, status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": title,
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status == 429:
        answer["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        }
    if status == 401:
        answer["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return answer


def _nullable_numbers(schema: dict[str, Any]) -> None:
    """JSON has no NaN: what is none, or infinite, is answered as null."""
    for field in schema.get("properties", {}).values():
        for holder in (field, field.get("additionalProperties", {})):
            if isinstance(holder, dict) and holder.get("type") == "number":
                holder["type"] = ["number", "null"]
