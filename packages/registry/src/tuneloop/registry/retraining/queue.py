"""The retraining queue: idempotent filing, leases with fencing tokens, budgets, and a state machine nobody can step
around.

A lease that runs out hands the request to the next worker; the old one's token is then stale and its writes are
refused. A failed request that is tried again stays the same request, so that it still makes one version at most.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of
from tuneloop.registry.errors import Conflict, NotFound, Refused, Unreadable
from tuneloop.registry.nouns import RetrainingRequest, RetrainingRun, RetrainingState
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.policies import Policies, RetrainingPolicy
from tuneloop.registry.retraining.budgets import Estimate
from tuneloop.registry.retraining.runs import begin_run, end_run, held_back, runs_of
from tuneloop.registry.tables import retraining

S = RetrainingState
NEXT_STATES: dict[RetrainingState, frozenset[RetrainingState]] = {
    S.PROPOSED: frozenset({S.APPROVED, S.REJECTED, S.CANCELLED, S.EXPIRED}),
    S.APPROVED: frozenset({S.QUEUED, S.REJECTED, S.CANCELLED, S.EXPIRED}),
    S.QUEUED: frozenset({S.RUNNING, S.CANCELLED}),
    # queued: put back, or held until the day is over; proposed: above a budget, for a person to decide.
    S.RUNNING: frozenset({S.RUNNING, S.QUEUED, S.PROPOSED, S.GATED, S.REJECTED, S.FAILED, S.CANCELLED}),
    S.GATED: frozenset({S.SHIPPED, S.REJECTED, S.CANCELLED}),
    S.SHIPPED: frozenset(),
    S.REJECTED: frozenset(),
    S.FAILED: frozenset({S.APPROVED}),  # tried again because a person says so
    S.CANCELLED: frozenset(),
    S.EXPIRED: frozenset(),
}
ENDED = frozenset({S.SHIPPED, S.REJECTED, S.FAILED, S.CANCELLED, S.EXPIRED})  # nothing more happens by itself
RESULTS = frozenset({S.GATED, S.SHIPPED, S.REJECTED, S.FAILED})  # what `finish` may say of a request
_UNDECIDED = (S.PROPOSED, S.APPROVED)
MAX_ATTEMPTS = 3
_log = logging.getLogger(__name__)


def idempotency_key(*parts: object) -> str:
    """Hash of (model, base version, episode, data-window digest, recipe digest): twice filed is the same request."""
    return sha256("\0".join(map(str, parts)).encode()).hexdigest()


class RetrainingQueue:
    """Filing, approving, claiming and finishing retraining requests."""

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

    def approve(self, request_id: str, *, by: str, reason: str) -> RetrainingRequest:
        """Let a proposed request run: proposed → approved → queued, on record.

        One that a budget sent back to be decided is let past every budget.

        Raises:
            Refused: it is not waiting for approval.
        """
        with self._db.writing() as connection:
            row = _known(connection, request_id)
            if row["state"] == S.FAILED:
                raise Refused(
                    f"retraining {request_id} has failed ({row['outcome']}); "
                    f"`tuneloop retraining retry {request_id} --by YOU --reason WHY` gives it another try"
                )
            waived = {"budget_waived_by": by} if row["held"] else {}
            self._move(connection, request_id, S.APPROVED, by=by, note=reason, held="", **waived)
            return self._move(connection, request_id, S.QUEUED, by=by, note=reason)

    def reject(self, request_id: str, *, by: str, reason: str) -> RetrainingRequest:
        """Say no to a request that waits to be decided, on record; the monitor asks no more for its episode.

        Raises:
            Refused: it does not wait to be decided.
        """
        with self._db.writing() as connection:
            _expect(_known(connection, request_id), *_UNDECIDED)
            return self._move(connection, request_id, S.REJECTED, by=by, note=reason, outcome=reason)

    def retry(self, request_id: str, *, by: str, reason: str) -> RetrainingRequest:
        """Give a failed request all its attempts again: failed → approved → queued, on record.

        It stays the same request: whatever it has made by now is found, and it makes one version at most.

        Raises:
            Refused: it has not failed.
        """
        with self._db.writing() as connection:
            row = _known(connection, request_id)
            _expect(row, S.FAILED)
            again = {"attempts": 0, "outcome": "", "fencing_token": row["fencing_token"] + 1}
            self._move(connection, request_id, S.APPROVED, by=by, note=reason, **again)
            return self._move(connection, request_id, S.QUEUED, by=by, note=reason)

    def expire(self, *, by: str) -> None:
        """End every request that nobody has decided about for as long as its model's policy waits.

        Raises:
            Unavailable: the database does not answer.
        """
        query = sa.select(retraining.c.id, retraining.c.model).where(retraining.c.state.in_(_UNDECIDED))
        with self._db.reading() as connection:
            waiting = connection.execute(query).all()
        for request_id, model in waiting:
            try:
                limit_s = self._policies.get(model, RetrainingPolicy).expires_s
            except Unreadable as error:  # what it says is not known; its requests wait on
                self._db.tell([str(error)])
                continue
            self._expire(request_id, timedelta(seconds=limit_s), by)

    def _expire(self, request_id: str, limit: timedelta, by: str) -> None:
        now = self._clock()
        overdue = sa.and_(retraining.c.state.in_(_UNDECIDED), retraining.c.updated_at <= now - limit)
        query = sa.select(retraining.c.id).where(retraining.c.id == request_id, overdue)
        with self._db.reading() as connection:  # nearly always: nobody has to wait for that
            if connection.execute(query).first() is None:
                return
        with self._db.writing() as connection:
            if connection.execute(query.with_for_update()).first() is not None:
                outcome = f"nobody decided within {limit.total_seconds() / 86_400:g} days"
                self._move(connection, request_id, S.EXPIRED, by=by, note=outcome, outcome=outcome)

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
        out, and said; one that a budget holds waits. What nobody has decided about for too long ends.
        """
        self.expire(by=owner)
        now = self._clock()
        free = sa.or_(retraining.c.held_until.is_(None), retraining.c.held_until <= now)
        waiting = sa.or_(
            sa.and_(retraining.c.state == S.QUEUED, free),
            sa.and_(retraining.c.state == S.RUNNING, retraining.c.lease_until < now),
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
                    end_run(connection, request.id, at=request.lease_until or now, end="lost")
                    self._move(connection, request.id, S.FAILED, by=owner, note=outcome, **ended)
                    continue
                end_run(connection, request.id, at=request.lease_until or now, end="lost")
                return self._move(
                    connection,
                    request.id,
                    S.RUNNING,
                    by=owner,
                    note=f"attempt {request.attempts + 1}",
                    held="",
                    held_until=None,
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
            _expect(row, S.RUNNING)
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

    def begin(self, request: RetrainingRequest, wanted: Estimate, *, by: str) -> RetrainingRequest:
        """Let a claimed request train, if its model's budgets do; what it will take is put on record.

        Above a budget it is handed back, untried: queued until the day is over, or proposed for a person to decide.
        The request as it is then says which: `running`, or not.

        Raises:
            Conflict: the lease was lost meanwhile.
        """
        policy = self._policies.get(request.model, RetrainingPolicy)
        now = self._clock()
        running = sa.select(retraining.c.id).where(retraining.c.model == request.model, retraining.c.state == S.RUNNING)
        with self._db.writing() as connection:
            # In one order: two that begin at once do so one after the other, and the second sees the first.
            connection.execute(running.order_by(retraining.c.id).with_for_update()).all()
            row = self._held(connection, request)
            waived = row["budget_waived_by"] is not None
            held = None if waived else held_back(connection, request, wanted, policy, now)
            if held is None:
                begin_run(connection, request, wanted, by=by, now=now)
                return request
            return self._move(
                connection,
                request.id,
                S.PROPOSED if held.until is None else S.QUEUED,
                by=by,
                note=held.reason,
                held=held.reason,
                held_until=held.until,
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
        """Move a request on to one of `RESULTS`; a running one only with the newest fencing token.

        Raises:
            Conflict: the lease was lost meanwhile.
            Refused: the state machine has no such step.
        """
        if state not in RESULTS:
            raise Refused(f"retraining {request.id}: {state} is no result of a run ({', '.join(sorted(RESULTS))})")
        with self._db.writing() as connection:
            row = self._held(connection, request)
            _expect(row, S.RUNNING, S.GATED)
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
        before = RetrainingState(_known(connection, request_id)["state"])
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


def _known(connection: Connection, request_id: str) -> sa.RowMapping:
    row = _locked(connection, request_id)
    if row is None:
        raise NotFound(f"no retraining request {request_id!r}; `tuneloop retraining list` shows them")
    return row


def _expect(row: sa.RowMapping, *states: RetrainingState) -> None:
    if row["state"] not in states:
        raise Refused(f"retraining {row['id']} is {row['state']}; this is for one that is {' or '.join(states)}")


def _locked(connection: Connection, request_id: str) -> sa.RowMapping | None:
    """The row, held until the transaction ends: what was read is still true when it is written (PostgreSQL)."""
    query = sa.select(retraining).where(retraining.c.id == request_id).with_for_update()
    return connection.execute(query).mappings().first()


def new_request_id() -> str:
    """A fresh id, `rt_…`."""
    return f"rt_{secrets.token_hex(6)}"
