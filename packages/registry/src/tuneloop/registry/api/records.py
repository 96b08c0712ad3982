"""What happened: traffic, the audit log, and the state of everything."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from tuneloop.registry import overview
from tuneloop.registry.access.roles import ROLES, Permission
from tuneloop.registry.api.answers import PageOf, StatusNow, Verified, WhoAmI
from tuneloop.registry.api.fields import (
    ActionQuery,
    Asked,
    Body,
    Here,
    ModelName,
    ModelPath,
    RequestPath,
    SubjectQuery,
    needs,
)
from tuneloop.registry.errors import Conflict
from tuneloop.registry.forgetting import MOST_BYTES, Forgotten
from tuneloop.registry.nouns import AuditEntry, Feedback, RequestLine
from tuneloop.registry.trace import TraceStep, trace

router = APIRouter()
READ = needs(Permission.READ)
_one_at_a_time = threading.Lock()  # a verification reads the whole log


@router.get("/models/{model}/requests", tags=["traffic"], dependencies=READ)
def list_requests(model: ModelPath, here: Here, ask: Asked) -> PageOf[RequestLine]:
    """A model's requests without their text, the newest first."""
    found = here.registry.traffic.page(model, ask)
    if not found.items and ask.cursor is None:
        here.registry.check_model(model)
    return PageOf[RequestLine].of(found)


@router.get("/models/{model}/feedback", tags=["traffic"], dependencies=READ)
def list_feedback_of_model(model: ModelPath, here: Here, ask: Asked) -> PageOf[Feedback]:
    """What users said of a model's answers, the newest first; their words are redacted before they are stored."""
    found = here.registry.traffic.feedback_of(model, ask)
    if not found.items and ask.cursor is None:
        here.registry.check_model(model)
    return PageOf[Feedback].of(found)


@router.get("/requests/{request_id}/trace", tags=["traffic"], dependencies=READ)
def trace_request(request_id: RequestPath, here: Here) -> tuple[TraceStep, ...]:
    """From one answer back to the version, run, data, retraining and alert behind it."""
    return tuple(trace(here.registry, request_id))


@router.get("/requests/{request_id}/feedback", tags=["traffic"], dependencies=READ)
def list_feedback(request_id: RequestPath, here: Here, ask: Asked) -> PageOf[Feedback]:
    """What users said of one answer, in order of time; their words are redacted before they are stored."""
    found = here.registry.traffic.feedback_page(request_id, ask)
    if not found.items and ask.cursor is None:
        here.registry.traffic.request(request_id)  # raises where there is no such request
    return PageOf[Feedback].of(found)


class ForgetBody(Body):
    """Whom to forget."""

    user: Annotated[str, Field(min_length=1, max_length=MOST_BYTES, examples=["user-4711"])]
    hashed: bool = False
    model: ModelName | None = None


@router.post("/users/forget", tags=["traffic"], dependencies=needs(Permission.FORGET))
def forget_user(body: ForgetBody, here: Here) -> Forgotten:
    """Delete a user's requests, their text and the feedback on them; `user` is the sticky key they came with, or its
    hash as records keep it (`hashed`). Doing it again deletes what has come since; late records are not stored."""
    registry = here.registry
    if body.model is not None:
        registry.check_model(body.model)
    return registry.traffic.forget(
        body.user, by=here.actor, reason=body.reason, at=registry.clock(), model=body.model, hashed=body.hashed
    )


@router.get("/audit", tags=["audit"], dependencies=READ)
def list_audit(here: Here, ask: Asked, subject: SubjectQuery = None, action: ActionQuery = None) -> PageOf[AuditEntry]:
    """Who did what, the newest first."""
    return PageOf[AuditEntry].of(here.registry.audit.page(ask, subject, action=action))


@router.get("/audit/verification", tags=["audit"], dependencies=READ)
def verify_audit(
    here: Here,
    noted: Annotated[
        str | None, Query(pattern=r"^[0-9a-f]{64}$", description="The hash of an entry as it was noted earlier.")
    ] = None,
) -> Verified:
    """Read the whole log and name every place where it is not what was written; one at a time."""
    if not _one_at_a_time.acquire(blocking=False):
        raise Conflict("a verification is running already; ask again when it has ended")
    try:
        found = here.registry.audit.verify(noted)
    finally:
        _one_at_a_time.release()
    return Verified(entries=found.entries, newest=found.newest, hash=found.hash, noted=found.noted, faults=found.faults)


@router.get("/status", tags=["status"], dependencies=READ)
def get_status(here: Here) -> StatusNow:
    """Routes, live engines and gateways, open alerts and open retraining requests."""
    return StatusNow.of(overview.status(here.registry)[0])


@router.get("/whoami", tags=["status"], dependencies=READ)
def get_whoami(here: Here) -> WhoAmI:
    """Whose token this is, and what it may do."""
    return WhoAmI(token=here.token, permissions=tuple(p for p in Permission if p in ROLES[here.token.role]))
