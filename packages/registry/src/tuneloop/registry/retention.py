"""Deletion by age, as each model's retention policy says: texts are blanked first, and later the records go.

What there is to do is asked of the rows, by indexes of what still has text: a pass that was killed is gone on with by
the next, and what came late is found like all else. A look reads at most `BATCH` rows and locks nothing; only where it
found some a transaction takes them, and then all others may write for as long as that took. The usage of keys stays,
and so does what the monitor has counted. A pass that took something is on record, and is a model's only one that day.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry import audit, forgetting
from tuneloop.registry.corrections import CORRECTS
from tuneloop.registry.deliveries.receivers import EVERY_MODEL
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.examples import blank_examples
from tuneloop.registry.exclusive import alone
from tuneloop.registry.facade import Registry
from tuneloop.registry.retention_policy import CurrentRetention, RetentionPolicy, current_retention
from tuneloop.registry.tables import (
    BLANK,
    FEEDBACK_WITH_TEXT,
    REQUESTS_WITH_TEXT,
    episodes,
    feedback,
    requests,
    shadow_requests,
    shows_questions,
    window_scores,
)

ACTION = "retention.apply"
ACTOR = "controller"
BATCH = 500
LOOK_EVERY_S = 3_600.0
PAUSE_S = 0.1  # at least, after each transaction that took something: SQLite has one writer
Step = Iterator[Counter[str]]  # what each look took, by kind; it may be nothing
_OF_MODELS = (requests, shadow_requests, window_scores, episodes)
_COUNTED = (  # in the order in which they are told
    *("texts of requests", "texts of copies", "texts of feedback", "windows and episodes with examples"),
    *("requests", "copies", "feedback"),
)
_Whose = sa.ColumnElement[bool] | None
# What is left of feedback without its text: that a user corrected the answer, which experiments and canaries count.
_OF_FEEDBACK: Mapping[str, Any] = {"comment": None, "label": None, "correction": sa.case((CORRECTS, BLANK))}
_log = logging.getLogger(__name__)


class Stop(Protocol):
    """What ends a pass, as `threading.Event` does."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float, /) -> bool: ...


class Retention:
    """Applies the policies in force; of several that do, one at a time."""

    def __init__(self, registry: Registry, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._db = registry.database
        self._monotonic_s = monotonic_s

    def turn(self, stop: Stop | None = None) -> None:
        """Take what is older than allowed, unless somebody else does now; `stop` ends it between two looks.

        Raises:
            Unreadable: a policy cannot be read; nothing was deleted by it, and all else was.
        """
        with alone(self._db, "retention") as mine:
            if mine:
                self._apply(stop or threading.Event())

    def _apply(self, stop: Stop) -> None:
        now, current, faults = self._registry.clock(), current_retention(self._db), set[str]()
        for model in sorted(self._models(current)):
            try:
                policy = current.of(model)
            except Unreadable as error:
                faults.add(str(error))
                continue
            self._keep(model, policy, self._of_model(model, policy, now), now, stop)
        # What names no request on record may be any model's.
        strictest = current.strictest
        self._keep(EVERY_MODEL, strictest, self._of_nobody(strictest, now), now, stop)
        if faults:
            raise Unreadable("; ".join(sorted(faults)))

    def _models(self, current: CurrentRetention) -> set[str]:
        """Those that a policy may be for: with one for every other, all of which something is stored."""
        named = {*current.by_model, *current.unreadable}
        if EVERY_MODEL in named:
            named |= {model for table in _OF_MODELS for model in self._stored(table)}
        return named - {EVERY_MODEL}

    def _stored(self, table: sa.Table) -> Iterator[str]:
        """The models of a table's rows, by one look into its index for each."""
        last = ""
        while True:
            with self._db.reading() as connection:
                following = connection.execute(sa.select(sa.func.min(table.c.model)).where(table.c.model > last))
                model = following.scalar()
            if model is None:
                return
            yield (last := model)

    def _keep(self, subject: str, policy: RetentionPolicy, steps: list[Step], now: datetime, stop: Stop) -> None:
        """Do all of these steps, and put on record what they took, also where they are broken off."""
        said = policy.model_dump(mode="json")
        if not steps or stop.is_set() or self._was_done(subject, said, now):
            return
        taken: Counter[str] = Counter()
        whole = False
        try:
            for step in steps:
                self._take(step, taken, stop)
            whole = not stop.is_set()
        finally:
            if taken:
                note = ", ".join(f"{taken[kind]} {kind}" for kind in _COUNTED if taken[kind])
                detail = {"policy": said, "taken": dict(taken), "whole": whole, "note": note}
                with self._db.writing() as connection:
                    audit.record(connection, at=now, actor=ACTOR, action=ACTION, subject=subject, detail=detail)
                _log.info("%s: older than its retention policy allows, and gone: %s", subject, note)

    def _take(self, step: Step, taken: Counter[str], stop: Stop) -> None:
        """Go through a step; what took something is followed by as long a pause, in which all others may write."""
        while not stop.is_set():
            began = self._monotonic_s()
            some = next(step, None)
            if some is None:
                return
            if some:
                taken += some
                stop.wait(max(PAUSE_S, self._monotonic_s() - began))

    def _was_done(self, subject: str, policy: dict[str, Any], now: datetime) -> bool:
        """Whether a whole pass took something this day (UTC) by the same policy: what became due since waits."""
        newest = self._registry.audit.entries(subject, limit=1, action=ACTION)
        return any(
            entry.at.date() == now.date() and entry.detail["whole"] and entry.detail["policy"] == policy
            for entry in newest
        )

    def _of_model(self, model: str, policy: RetentionPolicy, now: datetime) -> list[Step]:
        steps: list[Step] = []
        mine = sa.exists().where(requests.c.id == feedback.c.request_id, requests.c.model == model)
        both = ((requests, "requests"), (shadow_requests, "copies"))
        if (until := policy.records_until(now)) is not None:
            steps += [self._drop(table, kind, until, table.c.model == model) for table, kind in both]
        if (until := policy.texts_until(now)) is not None:
            steps += [self._blank(table, f"texts of {kind}", until, table.c.model == model) for table, kind in both]
            steps.append(self._blank(feedback, "texts of feedback", until, whose=mine))
            steps.append(self._blank_examples(model, until))
        return steps

    def _of_nobody(self, policy: RetentionPolicy, now: datetime) -> list[Step]:
        steps: list[Step] = []
        nobodys = ~sa.exists().where(requests.c.id == feedback.c.request_id)
        if (until := policy.records_until(now)) is not None:
            steps.append(self._drop(feedback, "feedback", until, whose=nobodys))
        if (until := policy.texts_until(now)) is not None:
            steps.append(self._blank(feedback, "texts of feedback", until, whose=nobodys))
        return steps

    def _blank(
        self, table: sa.Table, kind: str, until: datetime, *where: sa.ColumnElement[bool], whose: _Whose = None
    ) -> Step:
        has_text, values = (
            (FEEDBACK_WITH_TEXT, _OF_FEEDBACK) if table is feedback else (REQUESTS_WITH_TEXT, _asked(table))
        )
        # Of no type that SQLAlchemy knows: it would ask SQLite whether it is 1, which is in no index.
        still: sa.ColumnElement[bool] = sa.literal_column(f"({has_text})")

        def blank(connection: Connection, ids: list[str]) -> Counter[str]:
            connection.execute(sa.update(table).where(table.c.id.in_(ids)).values(**values))
            return Counter({kind: len(ids)})

        return self._batches(table, (*where, table.c.at <= until, still), whose, blank)

    def _drop(
        self, table: sa.Table, kind: str, until: datetime, *where: sa.ColumnElement[bool], whose: _Whose = None
    ) -> Step:
        def drop(connection: Connection, ids: list[str]) -> Counter[str]:
            taken = Counter({kind: len(ids)})
            if table is requests:
                said = connection.execute(sa.delete(feedback).where(feedback.c.request_id.in_(ids)))
                taken += Counter({"feedback": said.rowcount})
            connection.execute(sa.delete(table).where(table.c.id.in_(ids)))
            return taken

        return self._batches(table, (*where, table.c.at <= until), whose, drop)

    def _batches(
        self,
        table: sa.Table,
        where: tuple[sa.ColumnElement[bool], ...],
        whose: _Whose,
        take: Callable[[Connection, list[str]], Counter[str]],
    ) -> Step:
        """Look through a table's rows in order of time, a batch at a time, and take those of each that are due.

        Args:
            table: whose.
            where: what an index finds.
            whose: what is asked of each row that it found; None: nothing. Rows of others are only read.
            take: takes rows by id, in a transaction; returns what it took.
        """
        of = sa.true() if whose is None else whose
        newest, seen = (table.c.at, table.c.id), sa.true()
        while True:
            query = (
                sa.select(table.c.id, table.c.at, of.label("due")).where(*where, seen).order_by(*newest).limit(BATCH)
            )
            with self._db.reading() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            last, at, _ = rows[-1]
            seen = (table.c.at >= at) & ((table.c.at > at) | (table.c.id > last))
            found = [row.id for row in rows if row.due]
            yield self._taken(table, (*where, of, table.c.id.in_(found)), take) if found else Counter()

    def _taken(
        self,
        table: sa.Table,
        due: tuple[sa.ColumnElement[bool], ...],
        take: Callable[[Connection, list[str]], Counter[str]],
    ) -> Counter[str]:
        """Take what is due still; what somebody else writes at this moment is the next pass's."""
        with self._db.writing() as connection:
            forgetting.hold(connection, self._db)
            query = sa.select(table.c.id).where(*due).with_for_update(skip_locked=True, of=table)
            ids = list(connection.execute(query).scalars())
            return take(connection, ids) if ids else Counter()

    def _blank_examples(self, model: str, until: datetime) -> Step:
        """Questions stay shown of requests that are on record and young enough; a window may hold both kinds."""

        def gone(named: set[str]) -> Collection[str]:
            young = set[str]()
            with self._db.reading() as connection:
                for table in (requests, shadow_requests):
                    query = sa.select(table.c.id).where(table.c.id.in_(named), table.c.at > until)
                    young |= set(connection.execute(query).scalars())
            return named - young

        def of_then(table: sa.Table) -> sa.ColumnElement[bool]:
            if table is window_scores:
                # Corrections that came late are told with the window they came in: their requests are older than it.
                as_old = (table.c.window_start <= until) | (table.c.signal == "bad_corrections")
                return (table.c.model == model) & as_old & shows_questions("detail")
            return (table.c.model == model) & shows_questions("evidence")

        for rows in blank_examples(self._db, gone, of_then):
            yield Counter({"windows and episodes with examples": rows} if rows else {})


def _asked(table: sa.Table) -> Mapping[str, Any]:
    """What a request or a copy is without its text: that it failed stays; what an engine said of it may be a user's."""
    return {"messages": [], "answer": None, "error": sa.case((table.c.error.is_not(None), BLANK))}
