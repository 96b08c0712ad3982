"""Retraining requests as they are kept: filed, read, and moved from state to state, on record with who moved them.

Every move goes through `_set`, which lets nobody step around the state machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of
from tuneloop.registry.errors import NotFound, Refused
from tuneloop.registry.nouns import RetrainingRequest, RetrainingRun, RetrainingState
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.policies import Policies
from tuneloop.registry.retraining.runs import end_run, runs_of
from tuneloop.registry.retraining.states import ENDED, NEXT_STATES, S
from tuneloop.registry.tables import retraining


class KeptRequests:
    """Filing and reading requests; what moves them stands in the classes built on this."""

    def __init__(self, database: Database, clock: Callable[[], datetime], policies: Policies) -> None:
        self._db = database
        self._clock = clock
        self._policies = policies

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

    def counts(self, model: str | None = None) -> dict[RetrainingState, int]:
        """How many requests are in which state; what is in none that is known is not counted."""
        query = sa.select(retraining.c.state, sa.func.count()).group_by(retraining.c.state)
        if model is not None:
            query = query.where(retraining.c.model == model)
        with self._db.reading() as connection:
            found = connection.execute(query).all()
        return {S(state): count for state, count in found if state in set(S)}

    def runs(
        self,
        model: str | None = None,
        *,
        request_id: str | None = None,
        requests: Collection[str] | None = None,
    ) -> Rows[RetrainingRun]:
        """What has trained, of one model, of one request, of several, or all, the newest first."""
        with self._db.reading() as connection:
            return runs_of(connection, model, request_id=request_id, requests=requests)

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
        before = RetrainingState(known(connection, request_id)["state"])
        if state not in NEXT_STATES[before]:
            allowed = ", ".join(sorted(NEXT_STATES[before])) or "nothing: it has ended"
            raise Refused(f"retraining {request_id} is {before}; it cannot become {state} (only {allowed})")
        now = self._clock()
        if state in ENDED:  # nothing holds it any more
            values |= {"held": "", "held_until": None}
        connection.execute(
            sa.update(retraining).where(retraining.c.id == request_id).values(state=state, updated_at=now, **values)
        )
        if before is S.RUNNING is not state:
            end_run(connection, request_id, at=now, end=state)
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


def known(connection: Connection, request_id: str) -> sa.RowMapping:
    row = locked(connection, request_id)
    if row is None:
        raise NotFound(f"no retraining request {request_id!r}; `tuneloop retraining list` shows them")
    return row


def expect(row: sa.RowMapping, *states: RetrainingState) -> None:
    if row["state"] not in states:
        raise Refused(f"retraining {row['id']} is {row['state']}; this is for one that is {' or '.join(states)}")


def locked(connection: Connection, request_id: str) -> sa.RowMapping | None:
    """The row, held until the transaction ends: what was read is still true when it is written (PostgreSQL)."""
    query = sa.select(retraining).where(retraining.c.id == request_id).with_for_update()
    return connection.execute(query).mappings().first()
