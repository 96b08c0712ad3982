"""What retraining runs took, row by row: written in the transactions of the queue that begin and end them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.database import Rows, readable, row_of
from tuneloop.registry.nouns import RetrainingRequest, RetrainingRun
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.budgets import BudgetHold, Estimate, hold, month_of
from tuneloop.registry.tables import retraining_runs


def runs_of(
    connection: Connection,
    model: str | None = None,
    *,
    request_id: str | None = None,
    requests: Collection[str] | None = None,
    since: datetime | None = None,
) -> Rows[RetrainingRun]:
    """Runs of one model, of one request or several, that started at `since` or later; the newest first."""
    query = sa.select(retraining_runs).order_by(retraining_runs.c.started_at.desc())
    if model is not None:
        query = query.where(retraining_runs.c.model == model)
    if request_id is not None:
        query = query.where(retraining_runs.c.request_id == request_id)
    if requests is not None:
        query = query.where(retraining_runs.c.request_id.in_(requests))
    if since is not None:
        query = query.where(retraining_runs.c.started_at >= since)
    return readable(RetrainingRun, connection.execute(query).mappings())


def held_back(
    connection: Connection, request: RetrainingRequest, wanted: Estimate, policy: RetrainingPolicy, now: datetime
) -> BudgetHold | None:
    """Why the budgets of the request's model do not let it train now; None where they do.

    Raises:
        Unreadable: what was spent cannot be told for certain.
    """
    runs = runs_of(connection, request.model, since=month_of(now)).whole()
    return hold(policy, wanted, request.id, runs, now)


def begin_run(connection: Connection, request: RetrainingRequest, wanted: Estimate, *, by: str, now: datetime) -> None:
    """Note, on record, that a claimed request trains from now on, and what that is to take."""
    run = RetrainingRun(
        request_id=request.id,
        fencing_token=request.fencing_token,
        model=request.model,
        worker=by,
        started_at=now,
        devices=wanted.devices,
        planned_hours=wanted.hours,
        usd_per_hour=wanted.usd_per_hour,
        basis=wanted.basis,
    )
    connection.execute(sa.insert(retraining_runs).values(**row_of(run, retraining_runs)))
    takes = "hours not known" if wanted.hours is None else f"{wanted.hours:.3g} hours on {wanted.devices} device(s)"
    detail = {"note": f"{takes}: {wanted.basis}"}
    audit.record(connection, at=now, actor=by, action="retraining.begin", subject=request.id, detail=detail)


def end_run(connection: Connection, request_id: str, *, at: datetime, end: str) -> None:
    """Note when a request's run ended, if one goes on; of a dead worker's that is when its lease ran out."""
    goes_on = sa.and_(retraining_runs.c.request_id == request_id, retraining_runs.c.ended_at.is_(None))
    connection.execute(sa.update(retraining_runs).where(goes_on).values(ended_at=at, end=end))
