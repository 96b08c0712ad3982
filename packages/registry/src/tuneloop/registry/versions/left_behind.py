"""What a registration that was killed has left: completed where MLflow has its version already, undone elsewhere.

A registration begins with `version.register` in the audit log and ends with `version.registered`, or with
`version.not_registered`; its run carries the digest of its files from the moment it is there. So between any two writes
it can be told what was begun, and what is missing of its end. Whoever registers next for the model ends what is open
there, and the controller whatever is open. Who still works at it holds a lock, and is left alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import sqlalchemy as sa

from tuneloop.registry import audit
from tuneloop.registry.database import noun_of
from tuneloop.registry.errors import TuneloopError, Unavailable
from tuneloop.registry.exclusive import alone
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import AuditEntry, Version
from tuneloop.registry.tables import audit as log

BEGUN, DONE, UNDONE = "version.register", "version.registered", "version.not_registered"
ACTOR = "controller"
LOOK_EVERY_S = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begun:
    """A registration that was begun: of which files, for which model."""

    model: str
    digest: str

    @property
    def lock(self) -> str:
        """What whoever works at it holds (see `exclusive`)."""
        return f"register {self.model} {self.digest}"


class BrokenOff:
    """Ends what is open of every model; reads of the audit log only what was written since its last look."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen = 0  # the newest entry of the last look
        self._open: set[Begun] = set()  # what somebody may still work at, or could not be ended

    def turn(self) -> None:
        """End what was broken off; MLflow is asked only where something was.

        Raises:
            Unavailable: the database or MLflow does not answer; the next turn tries again.
        """
        with self._registry.database.reading() as connection:
            newest = connection.execute(sa.select(sa.func.max(log.c.id))).scalar() or 0
        self._open |= open_ones(self._registry, after=self._seen)
        self._seen, failures = newest, []
        for begun in sorted(self._open, key=lambda one: (one.model, one.digest)):
            try:
                if settled_alone(self._registry, begun, by=ACTOR):
                    self._open.discard(begun)
            except TuneloopError as error:  # one model's trouble must not hide another's
                failures.append(f"{begun.model}: {error}")
        if failures:
            raise Unavailable(f"registrations that were broken off cannot be ended: {'; '.join(failures)}")


def settle_others(registry: Registry, mine: Begun, *, by: str) -> None:
    """End what is left of registering other files for a model; what hinders that hinders nothing else."""
    try:
        others = open_ones(registry, mine.model) | {
            Begun(mine.model, digest) for digest in registry.versions.registering(mine.model)
        }
        for begun in sorted(others - {mine}, key=lambda one: one.digest):
            settled_alone(registry, begun, by=by)
    except TuneloopError as error:
        _log.warning("%s: what was broken off earlier cannot be ended, the next one tries again: %s", mine.model, error)


def settled_alone(registry: Registry, begun: Begun, *, by: str) -> bool:
    """End what is left of one registration; False: somebody works at it."""
    with alone(registry.database, begun.lock) as nobody_else:
        if nobody_else:
            settle(registry, begun.model, begun.digest, by=by)
        return nobody_else


def settle(registry: Registry, model: str, digest: str, *, by: str) -> Version | None:
    """End what is left of registering these files; the caller is the only one who registers them now.

    Returns:
        The version that had been made and is whole now; None: there was nothing to complete.
    """
    versions = registry.versions
    made, runs = versions.holding(model, digest), versions.registrations(model, digest)
    whole = made if made is not None and made.run_id in runs else None
    last = _last(registry, model, digest)
    completed = False
    if last is not None and whole is not None and last.action != DONE:
        note(registry, by, DONE, whole.name, last.detail | {"begun_by": last.actor, "completed": "it was broken off"})
        completed = True
    elif last is not None and last.action == BEGUN:
        note(registry, by, UNDONE, model, last.detail | {"begun_by": last.actor, "why": "it was broken off"})
    for run_id, status in runs.items():
        if whole is not None and run_id == whole.run_id:
            if status != "FINISHED":
                versions.end_run(run_id, "FINISHED")
                completed = True
            continue
        if status == "RUNNING":
            versions.end_run(run_id, "FAILED")
        if status != "FINISHED":  # else its version was there, and somebody deleted it
            versions.discard_files(run_id)
    return whole if completed else None


def note(registry: Registry, by: str, action: str, subject: str, detail: dict[str, str]) -> None:
    """Put a step of a registration on record."""
    with registry.database.writing() as connection:
        audit.record(connection, at=registry.clock(), actor=by, action=action, subject=subject, detail=detail)


def open_ones(registry: Registry, model: str | None = None, *, after: int = 0) -> set[Begun]:
    """What was begun, of one model or all, behind an entry of the audit log, and has no end there."""
    begun, end = log.alias("begun"), log.alias("ended")
    digest = begun.c.detail["digest"].as_string()
    ended = (
        sa.select(sa.literal(1))
        .where(end.c.id > begun.c.id, end.c.action.in_([DONE, UNDONE]), _about(end, begun.c.subject))
        .where(end.c.detail["digest"].as_string() == digest)
    )
    query = sa.select(begun.c.subject, digest).where(begun.c.action == BEGUN, begun.c.id > after, ~ended.exists())
    if model is not None:
        query = query.where(begun.c.subject == model)
    with registry.database.reading() as connection:
        return {Begun(subject, digest) for subject, digest in connection.execute(query) if digest}


def _last(registry: Registry, model: str, digest: str) -> AuditEntry | None:
    """The newest step of registering these files, if there ever was one."""
    steps = sa.select(log).where(log.c.action.in_([BEGUN, DONE, UNDONE]), _about(log, sa.literal(model)))
    newest = steps.where(log.c.detail["digest"].as_string() == digest).order_by(log.c.id.desc()).limit(1)
    with registry.database.reading() as connection:
        row = connection.execute(newest).mappings().first()
    return None if row is None else noun_of(AuditEntry, row)


def _about(entries: sa.FromClause, model: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Whether an entry is about a model, or a version of it."""
    subject = entries.c.subject
    return sa.or_(subject == model, sa.func.substr(subject, 1, sa.func.length(model) + 1) == model + "@")
