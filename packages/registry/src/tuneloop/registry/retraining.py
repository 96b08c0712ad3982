"""The retraining queue: idempotent filing, leases with fencing tokens, and a state machine nobody can step around.

A lease that runs out hands the request to the next worker; the old one's token is then stale and its writes are
refused.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of
from tuneloop.registry.errors import Conflict, NotFound, Refused, Unreadable
from tuneloop.registry.nouns import RetrainingRequest, RetrainingState
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import retraining

S = RetrainingState
NEXT_STATES: dict[RetrainingState, frozenset[RetrainingState]] = {
    S.PROPOSED: frozenset({S.APPROVED, S.REJECTED, S.CANCELLED}),
    S.APPROVED: frozenset({S.QUEUED, S.CANCELLED}),
    S.QUEUED: frozenset({S.RUNNING, S.CANCELLED}),
    S.RUNNING: frozenset({S.RUNNING, S.QUEUED, S.GATED, S.REJECTED, S.FAILED, S.CANCELLED}),
    S.GATED: frozenset({S.SHIPPED, S.REJECTED, S.CANCELLED}),
    S.SHIPPED: frozenset(),
    S.REJECTED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELLED: frozenset(),
}
ENDED = frozenset(state for state, following in NEXT_STATES.items() if not following)
MAX_ATTEMPTS = 3
_log = logging.getLogger(__name__)


def idempotency_key(*parts: object) -> str:
    """Hash of (model, base version, episode, data-window digest, recipe digest): twice filed is the same request."""
    return sha256("\0".join(map(str, parts)).encode()).hexdigest()


class RetrainingQueue:
    """Filing, approving, claiming and finishing retraining requests."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def file(self, request: RetrainingRequest, *, by: str) -> RetrainingRequest:
        """Store a proposed request; the same idempotency key returns the request that is already there."""
        try:
            with self._db.writing() as connection:
                connection.execute(sa.insert(retraining).values(**row_of(request, retraining)))
                detail = {
                    "model": request.model,
                    "episode": request.episode_id,
                    "rows": request.rows,
                    "reason": request.reason,
                }
                audit.record(
                    connection,
                    at=request.created_at,
                    actor=by,
                    action="retraining.file",
                    subject=request.id,
                    detail=detail,
                )
        except sa.exc.IntegrityError:
            return self._one(retraining.c.idempotency_key == request.idempotency_key, request.idempotency_key)
        return request

    def get(self, request_id: str) -> RetrainingRequest:
        """One request.

        Raises:
            NotFound: there is none of that id.
        """
        return self._one(retraining.c.id == request_id, request_id)

    def all(self, model: str | None = None, *, open_only: bool = False) -> Rows[RetrainingRequest]:
        """Requests, the newest first."""
        query = _requests(model, open_only=open_only).order_by(retraining.c.created_at.desc(), retraining.c.id.desc())
        with self._db.reading() as connection:
            return readable(RetrainingRequest, connection.execute(query).mappings())

    def page(self, ask: Ask, model: str | None = None, *, open_only: bool = False) -> Page[RetrainingRequest]:
        """The same, page by page."""
        keys = (retraining.c.created_at, retraining.c.id)
        return page(self._db, RetrainingRequest, _requests(model, open_only=open_only), keys, ask)

    def approve(self, request_id: str, *, by: str, reason: str) -> RetrainingRequest:
        """Let a proposed request run: proposed → approved → queued, on record.

        Raises:
            Refused: it is not waiting for approval.
        """
        with self._db.writing() as connection:
            self._move(connection, request_id, S.APPROVED, by=by, note=reason)
            return self._move(connection, request_id, S.QUEUED, by=by, note=reason)

    def cancel(self, request_id: str, *, by: str, reason: str) -> RetrainingRequest:
        """Stop a request that has not ended; a worker that runs it finds its lease gone.

        Raises:
            Refused: it has ended already.
        """
        with self._db.writing() as connection:
            return self._move(
                connection,
                request_id,
                S.CANCELLED,
                by=by,
                note=reason,
                outcome=reason,
                lease_owner=None,
                lease_until=None,
                fencing_token=retraining.c.fencing_token + 1,
            )

    def claim(self, owner: str, lease_s: float) -> RetrainingRequest | None:
        """Take the queued request that waits longest, or one whose worker let its lease run out; None where none is.

        A request that has already been tried `MAX_ATTEMPTS` times is failed instead; one that cannot be read is left
        out, and said.
        """
        now = self._clock()
        waiting = sa.or_(
            retraining.c.state == S.QUEUED, sa.and_(retraining.c.state == S.RUNNING, retraining.c.lease_until < now)
        )
        # One row at a time: locking more would hide them from a worker that looks at this moment (PostgreSQL).
        # What was put back is behind what has waited since: an outage of one request's own never holds up the others.
        order = (retraining.c.updated_at, retraining.c.created_at, retraining.c.id)
        query = sa.select(retraining).where(waiting).order_by(*order).limit(1).with_for_update(skip_locked=True)
        with self._db.writing() as connection:
            while (row := connection.execute(query).mappings().first()) is not None:
                try:
                    request = noun_of(RetrainingRequest, row)
                except Unreadable as error:  # one bad request must not stop the good ones
                    _log.error("left out: %s", error)
                    query = query.where(retraining.c.id != row["id"])
                    continue
                if request.attempts >= MAX_ATTEMPTS:
                    outcome = f"given up after {request.attempts} attempts; the last worker was {request.lease_owner}"
                    ended = {"outcome": outcome, "fencing_token": request.fencing_token + 1}
                    ended |= {"lease_owner": None, "lease_until": None}
                    self._move(connection, request.id, S.FAILED, by=owner, note=outcome, **ended)
                    continue
                return self._move(
                    connection,
                    request.id,
                    S.RUNNING,
                    by=owner,
                    note=f"attempt {request.attempts + 1}",
                    lease_owner=owner,
                    lease_until=now + timedelta(seconds=lease_s),
                    fencing_token=request.fencing_token + 1,
                    attempts=request.attempts + 1,
                )
        return None

    def put_back(self, request: RetrainingRequest, *, by: str, reason: str) -> RetrainingRequest:
        """Hand a running request back, untried: an orderly stop or an outage says nothing of the request itself.

        Raises:
            Conflict: the lease was lost meanwhile.
        """
        with self._db.writing() as connection:
            row = self._held(connection, request)
            return self._move(
                connection,
                request.id,
                S.QUEUED,
                by=by,
                note=reason,
                lease_owner=None,
                lease_until=None,
                fencing_token=request.fencing_token + 1,
                attempts=row["attempts"] - 1,
            )

    def renew(self, request: RetrainingRequest, lease_s: float) -> None:
        """Keep the lease.

        Raises:
            Conflict: the lease was lost (another worker, or cancelled): stop working.
        """
        holds = sa.and_(
            retraining.c.id == request.id,
            retraining.c.fencing_token == request.fencing_token,
            retraining.c.state == S.RUNNING,
        )
        until = self._clock() + timedelta(seconds=lease_s)
        with self._db.writing() as connection:
            if connection.execute(sa.update(retraining).where(holds).values(lease_until=until)).rowcount == 0:
                raise Conflict(f"retraining {request.id}: the lease of {request.lease_owner} is lost; stop this run")

    def finish(
        self,
        request: RetrainingRequest,
        state: RetrainingState,
        *,
        by: str,
        outcome: str,
        result_version: int | None = None,
    ) -> RetrainingRequest:
        """Move a request on (gated, shipped, rejected, failed); a running one only with the newest fencing token.

        Raises:
            Conflict: the lease was lost meanwhile.
            Refused: the state machine has no such step.
        """
        with self._db.writing() as connection:
            row = self._held(connection, request)
            version = result_version if result_version is not None else row["result_version"]
            return self._move(
                connection,
                request.id,
                state,
                by=by,
                note=outcome,
                outcome=outcome,
                result_version=version,
                lease_owner=None,
                lease_until=None,
            )

    def decide(
        self, connection: Connection, model: str, version: int, state: RetrainingState, *, by: str, outcome: str
    ) -> None:
        """Close the request that made a version, if one waits for what becomes of it, in the caller's transaction."""
        waits = sa.and_(
            retraining.c.model == model, retraining.c.result_version == version, retraining.c.state == S.GATED
        )
        for request_id in connection.execute(sa.select(retraining.c.id).where(waits)).scalars().all():
            self._set(connection, request_id, state, by=by, note=outcome, outcome=outcome)

    def _held(self, connection: Connection, request: RetrainingRequest) -> sa.RowMapping:
        row = _locked(connection, request.id)
        if row is None or row["fencing_token"] != request.fencing_token:
            ends = {str(S.CANCELLED): "it was cancelled", str(S.FAILED): "it was given up"}
            what = ends.get(str(row["state"]) if row else "", "another worker took it over")
            raise Conflict(f"retraining {request.id}: {what}; this run's result is not recorded")
        return row

    def _one(self, condition: sa.ColumnElement[bool], shown: str) -> RetrainingRequest:
        with self._db.reading() as connection:
            row = connection.execute(sa.select(retraining).where(condition)).mappings().first()
        if row is None:
            raise NotFound(f"no retraining request {shown!r}; `tuneloop retraining list` shows them")
        return noun_of(RetrainingRequest, row)

    def _move(
        self, connection: Connection, request_id: str, state: RetrainingState, *, by: str, note: str, **values: object
    ) -> RetrainingRequest:
        self._set(connection, request_id, state, by=by, note=note, **values)
        return noun_of(
            RetrainingRequest,
            connection.execute(sa.select(retraining).where(retraining.c.id == request_id)).mappings().one(),
        )

    def _set(
        self, connection: Connection, request_id: str, state: RetrainingState, *, by: str, note: str, **values: object
    ) -> None:
        row = _locked(connection, request_id)
        if row is None:
            raise NotFound(f"no retraining request {request_id!r}; `tuneloop retraining list` shows them")
        before = RetrainingState(row["state"])
        if state not in NEXT_STATES[before]:
            allowed = ", ".join(sorted(NEXT_STATES[before])) or "nothing: it has ended"
            raise Refused(f"retraining {request_id} is {before}; it cannot become {state} (only {allowed})")
        now = self._clock()
        connection.execute(
            sa.update(retraining).where(retraining.c.id == request_id).values(state=state, updated_at=now, **values)
        )
        audit.record(
            connection,
            at=now,
            actor=by,
            action=f"retraining.{state}",
            subject=request_id,
            detail={"before": before, "note": note},
        )


def _requests(model: str | None, *, open_only: bool) -> sa.Select[Any]:
    query = sa.select(retraining)
    if model is not None:
        query = query.where(retraining.c.model == model)
    return query.where(retraining.c.state.not_in(ENDED)) if open_only else query


def _locked(connection: Connection, request_id: str) -> sa.RowMapping | None:
    """The row, held until the transaction ends: what was read is still true when it is written (PostgreSQL)."""
    query = sa.select(retraining).where(retraining.c.id == request_id).with_for_update()
    return connection.execute(query).mappings().first()


def new_request_id() -> str:
    """A fresh id, `rt_…`."""
    return f"rt_{secrets.token_hex(6)}"
