"""Experiments kept: draft → running → stopped, each step in one transaction with its audit record.

The start puts the declaration's digest on record; whatever reads a started experiment holds the declaration against it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.audit import Audit
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of
from tuneloop.registry.errors import Conflict, NotFound, Refused, Unreadable
from tuneloop.registry.experiments.declaration import Declaration, Experiment, ExperimentPlan, ExperimentState
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.routes.claims import claim_for_experiment
from tuneloop.registry.tables import experiments, routes

_START = "experiment.start"
STEP = "experiment.step"  # of the route, by a bandit


class Experiments:
    """Declaring, starting and stopping experiments."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def new(self, declaration: Declaration, plan: ExperimentPlan, *, by: str, reason: str) -> Experiment:
        """Keep a declaration as a draft."""
        made = Experiment(
            id=f"exp_{secrets.token_hex(6)}",
            model=declaration.model,
            declaration=declaration,
            plan=plan,
            state=ExperimentState.DRAFT,
            by=by,
            reason=reason,
            created_at=self._clock(),
        )
        with self._db.writing() as connection:
            connection.execute(sa.insert(experiments).values(**row_of(made, experiments)))
            self._on_record(connection, made, "experiment.new", by, reason)
        return made

    def redeclare(
        self, experiment_id: str, declaration: Declaration, plan: ExperimentPlan, *, by: str, reason: str
    ) -> Experiment:
        """Put another declaration in a draft's place.

        Raises:
            NotFound: there is none of that id.
            Refused: it has started: its declaration stands.
        """
        with self._db.writing() as connection:
            draft = self._in_state(connection, experiment_id, ExperimentState.DRAFT, "its declaration stands")
            changed = draft.model_copy(
                update={
                    "model": declaration.model,
                    "declaration": declaration,
                    "plan": plan,
                    "by": by,
                    "reason": reason,
                }
            )
            self._replace(connection, changed)
            self._on_record(connection, changed, "experiment.redeclare", by, reason)
        return changed

    def get(self, experiment_id: str) -> Experiment:
        """One experiment, its declaration held against what was put on record at its start.

        Raises:
            NotFound: there is none of that id.
            Unreadable: its declaration was changed since it started.
        """
        with self._db.reading() as connection:
            found = self._row(connection, experiment_id)
        if found.state is not ExperimentState.DRAFT:
            starts = Audit(self._db).entries(found.id, limit=1, action=_START).whole()
            if not starts or starts[0].detail.get("declaration") != found.declaration.digest:
                raise Unreadable(
                    f"the declaration of {found.id} is not the one it started with: the database was changed by hand; "
                    "what it would say now decides nothing. Restore that row from a copy, or begin a new experiment"
                )
        return found

    def all(self, model: str | None = None) -> Rows[Experiment]:
        """Experiments, the newest first."""
        query = sa.select(experiments).order_by(experiments.c.created_at.desc(), experiments.c.id)
        if model is not None:
            query = query.where(experiments.c.model == model)
        with self._db.reading() as connection:
            return readable(Experiment, connection.execute(query).mappings())

    def page(self, ask: Ask, model: str | None = None) -> Page[Experiment]:
        """The same, page by page."""
        query = sa.select(experiments) if model is None else sa.select(experiments).where(experiments.c.model == model)
        return page(self._db, Experiment, query, (experiments.c.created_at, experiments.c.id), ask)

    def all_running(self) -> Rows[Experiment]:
        """Those that run, of every model."""
        query = sa.select(experiments).where(experiments.c.state == ExperimentState.RUNNING)
        with self._db.reading() as connection:
            return readable(Experiment, connection.execute(query.order_by(experiments.c.id)).mappings())

    def looked(self, experiment_id: str, at: datetime) -> None:
        """Put down that a bandit's step was seen to; no record of the audit log, since nothing is decided by it."""
        with self._db.writing() as connection:
            self.looked_in(connection, experiment_id, at)

    def looked_in(self, connection: Connection, experiment_id: str, at: datetime) -> None:
        """The same, in the transaction that writes the step."""
        connection.execute(sa.update(experiments).where(experiments.c.id == experiment_id).values(looked_at=at))

    def running(self, model: str) -> Experiment | None:
        """The one that runs."""
        query = sa.select(experiments).where(
            experiments.c.model == model, experiments.c.state == ExperimentState.RUNNING
        )
        with self._db.reading() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else noun_of(Experiment, row)

    def start(self, experiment_id: str, *, revision: int, by: str, reason: str) -> Experiment:
        """From now on it runs, under the route's newest revision, which the caller saw to be `revision`.

        Raises:
            NotFound: there is none of that id.
            Refused: it has started before, or another one or a rollout of the model is running.
            Conflict: the route has changed meanwhile.
        """
        with self._db.writing() as connection:
            draft = self._in_state(connection, experiment_id, ExperimentState.DRAFT, "declare a new one to look again")
            claim_for_experiment(self._db, connection, draft.model)
            newest = sa.select(sa.func.max(routes.c.revision)).where(routes.c.model == draft.model)
            if (now := connection.execute(newest).scalar()) != revision:
                raise Conflict(f"route of {draft.model}: you saw revision {revision}, it is at {now} now; start again")
            started = draft.model_copy(
                update={
                    "state": ExperimentState.RUNNING,
                    "started_at": self._clock(),
                    "first_revision": revision,
                }
            )
            try:
                self._replace(connection, started)
            except sa.exc.IntegrityError:
                raise another_runs(self.running(draft.model)) from None
            self._on_record(connection, started, _START, by, reason, revision=revision)
        return started

    def stop(self, experiment_id: str, *, by: str, reason: str) -> Experiment:
        """What comes from now on no longer counts; the route stays as it is.

        Raises:
            NotFound: there is none of that id.
            Refused: it does not run.
        """
        with self._db.writing() as connection:
            running = self._in_state(connection, experiment_id, ExperimentState.RUNNING, "there is nothing to stop")
            stopped = running.model_copy(update={"state": ExperimentState.STOPPED, "stopped_at": self._clock()})
            self._replace(connection, stopped)
            self._on_record(connection, stopped, "experiment.stop", by, reason)
        return stopped

    def expect_running(self, connection: Connection, experiment_id: str) -> None:
        """For what is written in its name, in that transaction: it is not stopped before that is committed.

        Raises:
            Refused: somebody has stopped it.
        """
        if self._row(connection, experiment_id, lock=True).state is not ExperimentState.RUNNING:
            raise Refused(f"{experiment_id} was stopped meanwhile: the shares stay as they are")

    def _row(self, connection: Connection, experiment_id: str, *, lock: bool = False) -> Experiment:
        query = sa.select(experiments).where(experiments.c.id == experiment_id)
        row = connection.execute(query.with_for_update() if lock else query).mappings().first()
        if row is None:
            raise NotFound(f"no experiment {experiment_id!r}; `tuneloop experiment list` shows them")
        return noun_of(Experiment, row)

    def _in_state(self, connection: Connection, experiment_id: str, state: ExperimentState, so: str) -> Experiment:
        found = self._row(connection, experiment_id, lock=True)
        if found.state is not state:
            raise Refused(f"{found.id} is {found.state}, not {state}: {so}")
        return found

    def _replace(self, connection: Connection, experiment: Experiment) -> None:
        values = row_of(experiment, experiments)
        connection.execute(sa.update(experiments).where(experiments.c.id == experiment.id).values(**values))

    def _on_record(
        self,
        connection: Connection,
        experiment: Experiment,
        action: str,
        by: str,
        reason: str,
        *,
        revision: int | None = None,
    ) -> None:
        detail: dict[str, Any] = {
            "model": experiment.model,
            "declaration": experiment.declaration.digest,
            "reason": reason,
        }
        detail |= {} if revision is None else {"revision": revision}
        audit.record(connection, at=self._clock(), actor=by, action=action, subject=experiment.id, detail=detail)


def another_runs(running: Experiment | None) -> Refused:
    """The error for whoever would start a second one."""
    name = "another experiment" if running is None else running.id
    return Refused(
        f"{name} of the same model is running; one at a time: "
        f"`tuneloop experiment stop {name} --by YOU --reason WHY` ends it"
    )
