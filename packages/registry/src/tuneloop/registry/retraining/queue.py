"""The retraining queue: idempotent filing, leases with fencing tokens, budgets, and a state machine nobody can step
around.

A lease that runs out hands the request to the next worker; the old one's token is then stale and its writes are
refused. A failed request that is tried again stays the same request, so that it still makes one version at most.
"""

from __future__ import annotations

import logging
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry.database import noun_of
from tuneloop.registry.errors import Conflict, Refused, Unreadable
from tuneloop.registry.nouns import RetrainingRequest, RetrainingState
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.budgets import Estimate
from tuneloop.registry.retraining.deciding import Decisions
from tuneloop.registry.retraining.kept import expect, locked
from tuneloop.registry.retraining.runs import begin_run, end_run, held_back
from tuneloop.registry.retraining.states import (
    ENDED,
    LONGEST_LEASE_S,
    MAX_ATTEMPTS,
    NEXT_STATES,
    RESULTS,
    S,
    idempotency_key,
    new_request_id,
)
from tuneloop.registry.tables import retraining

__all__ = [
    "ENDED",
    "MAX_ATTEMPTS",
    "NEXT_STATES",
    "RESULTS",
    "RetrainingQueue",
    "idempotency_key",
    "new_request_id",
]
_log = logging.getLogger(__name__)


class RetrainingQueue(Decisions):
    """Filing, approving, claiming and finishing retraining requests."""

    def claim(self, owner: str, lease_s: float) -> RetrainingRequest | None:
        """Take the queued request that waits longest, or one whose worker let its lease run out; None where none is.

        A request that has already been tried `MAX_ATTEMPTS` times is failed instead; one that cannot be read is left
        out, and said; one that a budget holds waits. What nobody has decided about for too long ends. A lease that ends
        later than any could was written by a clock that was ahead: it holds nobody off.
        """
        self.expire(by=owner)
        now = self._clock()
        never = now + timedelta(seconds=2 * LONGEST_LEASE_S)
        free = sa.or_(retraining.c.held_until.is_(None), retraining.c.held_until <= now)
        waiting = sa.or_(
            sa.and_(retraining.c.state == S.QUEUED, free),
            sa.and_(
                retraining.c.state == S.RUNNING,
                sa.or_(retraining.c.lease_until < now, retraining.c.lease_until > never),
            ),
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
                    end_run(connection, request.id, at=min(request.lease_until or now, now), end="lost")
                    self._move(connection, request.id, S.FAILED, by=owner, note=outcome, **ended)
                    continue
                end_run(connection, request.id, at=min(request.lease_until or now, now), end="lost")
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
            expect(row, S.RUNNING)
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
            expect(row, S.RUNNING, S.GATED)
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
        row = locked(connection, request.id)
        if row is None or row["fencing_token"] != request.fencing_token:
            ends = {str(S.CANCELLED): "it was cancelled", str(S.FAILED): "it was given up"}
            what = ends.get(str(row["state"]) if row else "", "another worker took it over")
            raise Conflict(f"retraining {request.id}: {what}; this run's result is not recorded")
        return row
