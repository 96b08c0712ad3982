"""What people say about retraining requests, and what is said when nobody does: approved, rejected, retried, expired,
cancelled."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from tuneloop.registry.errors import Refused, Unreadable
from tuneloop.registry.nouns import RetrainingRequest
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.kept import KeptRequests, expect, known
from tuneloop.registry.retraining.states import UNDECIDED, S
from tuneloop.registry.tables import retraining


class Decisions(KeptRequests):
    """Decisions about requests, each on record."""

    def approve(self, request_id: str, *, by: str, reason: str) -> RetrainingRequest:
        """Let a proposed request run: proposed → approved → queued, on record.

        One that a budget sent back to be decided is let past every budget.

        Raises:
            Refused: it is not waiting for approval.
        """
        with self._db.writing() as connection:
            row = known(connection, request_id)
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
            expect(known(connection, request_id), *UNDECIDED)
            return self._move(connection, request_id, S.REJECTED, by=by, note=reason, outcome=reason)

    def retry(self, request_id: str, *, by: str, reason: str) -> RetrainingRequest:
        """Give a failed request all its attempts again: failed → approved → queued, on record.

        It stays the same request: whatever it has made by now is found, and it makes one version at most.

        Raises:
            Refused: it has not failed.
        """
        with self._db.writing() as connection:
            row = known(connection, request_id)
            expect(row, S.FAILED)
            again = {"attempts": 0, "outcome": "", "fencing_token": row["fencing_token"] + 1}
            self._move(connection, request_id, S.APPROVED, by=by, note=reason, **again)
            return self._move(connection, request_id, S.QUEUED, by=by, note=reason)

    def expire(self, *, by: str) -> None:
        """End every request that nobody has decided about for as long as its model's policy waits.

        Raises:
            Unavailable: the database does not answer.
        """
        query = sa.select(retraining.c.id, retraining.c.model).where(retraining.c.state.in_(UNDECIDED))
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
        overdue = sa.and_(retraining.c.state.in_(UNDECIDED), retraining.c.updated_at <= now - limit)
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
