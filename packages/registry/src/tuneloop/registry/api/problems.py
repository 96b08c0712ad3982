"""Every error as `application/problem+json` (RFC 9457): the tree of `tuneloop.registry.errors`, and HTTP's own.

`type` says what kind of problem it is, `detail` what was wrong and what to do next, as the command line says it. A
gate's refusal is 409 and not 403: the token may do it, the version may not.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from tuneloop.registry.api.fields import SAID
from tuneloop.registry.errors import Conflict, InvalidInput, Late, NotFound, Refused, TuneloopError, Unavailable
from tuneloop.registry.nouns import Noun
from tuneloop.registry.plain_yaml import unknown_key, walk
from tuneloop.registry.printing import one_line

PROBLEM_JSON = "application/problem+json"
_LONGEST_DETAIL = 4_000
_log = logging.getLogger(__name__)

Kind = Literal[
    "unauthenticated", "forbidden", "not-found", "method-not-allowed", "timeout", "refused", "conflict", "too-large",
    "invalid", "rate-limited", "damaged", "unavailable", "late",
]  # fmt: skip
STATUS: dict[Kind, tuple[int, str]] = {
    "unauthenticated": (401, "No valid token"),
    "forbidden": (403, "The token's role may not do this"),
    "not-found": (404, "There is nothing of that name"),
    "method-not-allowed": (405, "Not a method of this resource"),
    "timeout": (408, "The request did not arrive in time"),
    "refused": (409, "A gate or a policy says no"),
    "conflict": (409, "Somebody else was first"),
    "too-large": (413, "The request's body is too large"),
    "invalid": (422, "What was given cannot be used"),
    "rate-limited": (429, "Too many requests"),
    "damaged": (500, "What is stored is damaged, or the control plane has a fault"),
    "unavailable": (503, "A part this one leans on does not answer; nothing was changed"),
    "late": (503, "It is written and in force, but not everybody follows yet: do not ask again"),
}
_KINDS: dict[type[TuneloopError], Kind] = {
    InvalidInput: "invalid",
    NotFound: "not-found",
    Refused: "refused",
    Conflict: "conflict",
    Late: "late",
    Unavailable: "unavailable",
}  # every other one (Unreadable): damaged
_OF_HTTP: dict[int, Kind] = {400: "invalid", 404: "not-found", 405: "method-not-allowed", 413: "too-large"}


class Problem(Noun):
    """What went wrong (RFC 9457)."""

    type: str = Field(pattern="^urn:tuneloop:problem:[a-z-]+$", examples=["urn:tuneloop:problem:refused"])
    title: str = Field(examples=["A gate or a policy says no"])
    status: int = Field(ge=400, le=599, examples=[409])
    detail: str = Field(examples=["bot@3 is not approved (no gate has judged it)"])


def problem(kind: Kind, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer for a problem of this kind."""
    status, title = STATUS[kind]
    said = Problem(
        type=f"urn:tuneloop:problem:{kind}", title=title, status=status, detail=one_line(detail)[:_LONGEST_DETAIL]
    )
    return JSONResponse(said.model_dump(), status, headers, media_type=PROBLEM_JSON)


def kind_of(error: TuneloopError) -> Kind:
    """Of what kind an error raised on purpose is."""
    return next((kind for cls, kind in _KINDS.items() if isinstance(error, cls)), "damaged")


def answer_problems(app: FastAPI) -> None:
    """Have every error of an app answered as a problem."""
    app.add_exception_handler(TuneloopError, _on_purpose)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(sa.exc.DataError, _not_storable)
    app.add_exception_handler(Exception, _fault)


def _on_purpose(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TuneloopError)
    kind = kind_of(error)
    if STATUS[kind][0] >= 500:
        _log.error("%s: %s", kind, error)
    return problem(kind, str(error))


def _not_valid(request: Request, error: Exception) -> JSONResponse:
    """Every fault, without the values: they may be somebody's text."""
    assert isinstance(error, RequestValidationError)
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if error.body and not (sent == "application/json" or sent.endswith("+json")):
        return problem("invalid", "a body is JSON: send content-type: application/json")
    body = getattr(request.scope.get("route"), "body_field", None)
    model = body.field_info.annotation if body is not None else None
    return problem("invalid", "; ".join(_fault_of(fault, model) for fault in error.errors()))


def _fault_of(fault: dict[str, Any], model: type[BaseModel] | None) -> str:
    place, said = fault["loc"], fault["msg"]
    if fault["type"] == "string_pattern_mismatch" and fault["ctx"]["pattern"] == SAID:
        said = "it is blank, or holds characters that nobody reads; write it in words, since it is kept for ever"
    if fault["type"] == "extra_forbidden" and model is not None and place[0] == "body":
        _, known = walk(model, place[1:])
        said = unknown_key(str(place[-1]), known)
    return f"{'.'.join(map(str, place))}: {said}"


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = _OF_HTTP.get(error.status_code, "invalid")
    details = {"not-found": "nothing is served at this path; /openapi.json lists what is"}
    return problem(kind, details.get(kind, str(error.detail)), dict(error.headers or {}))


def _not_storable(_request: Request, _error: Exception) -> JSONResponse:
    return problem("invalid", "it holds a value that the database cannot keep")


def _fault(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem("damaged", "the control plane has a fault; its log says which")
