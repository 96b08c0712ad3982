"""Deletion by age, as each model's retention policy says: texts are blanked first, and later the records go.

What there is to do is asked of the rows, by indexes of what still has text: a pass that was killed is gone on with by
the next, and what came late is found like all else. A transaction takes at most `BATCH` rows. The usage of keys stays,
and so does what the monitor has counted. A pass that took something is on record, and is a model's only one that day.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from functools import partial
from typing import Any

import sqlalchemy as sa

from tuneloop.registry import audit, forgetting
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
Step = Callable[[], Counter[str]]  # what one transaction took, by kind; nothing: there is no more
_OF_MODELS = (requests, shadow_requests, window_scores, episodes)
_COUNTED = (  # in the order in which they are told
    *("texts of requests", "texts of copies", "texts of feedback", "windows and episodes with examples"),
    *("requests", "copies", "feedback"),
)
_log = logging.getLogger(__name__)


class Retention:
    """Applies the policies in force; of several that do, one at a time."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._db = registry.database

    def turn(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Take what is older than allowed, unless somebody else does now; `is_over` ends it between two transactions.

        Raises:
            Unreadable: a policy cannot be read; nothing was deleted by it, and all else was.
        """
        with alone(self._db, "retention") as mine:
            if mine:
                self._apply(is_over)

    def _apply(self, is_over: Callable[[], bool]) -> None:
        now, current, faults = self._registry.clock(), current_retention(self._db), set[str]()
        for model in sorted(self._models(current)):
            try:
                policy = current.of(model)
            except Unreadable as error:
                faults.add(str(error))
                continue
            self._keep(model, policy, self._of_model(model, policy, now), now, is_over)
        # What names no request on record may be any model's.
        strictest = current.strictest
        self._keep(EVERY_MODEL, strictest, self._of_nobody(strictest, now), now, is_over)
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

    def _keep(
        self, subject: str, policy: RetentionPolicy, steps: list[Step], now: datetime, is_over: Callable[[], bool]
    ) -> None:
        """Do all of these steps, and put on record what they took."""
        said = policy.model_dump(mode="json")
        if not steps or is_over() or self._was_done(subject, said, now):
            return
        taken: Counter[str] = Counter()
        for step in steps:
            while not is_over() and (some := step()):
                taken += some
        if not taken:
            return
        note = ", ".join(f"{taken[kind]} {kind}" for kind in _COUNTED if taken[kind])
        detail = {"policy": said, "taken": dict(taken), "whole": not is_over(), "note": note}
        with self._db.writing() as connection:
            audit.record(connection, at=now, actor=ACTOR, action=ACTION, subject=subject, detail=detail)
        _log.info("%s: older than its retention policy allows, and gone: %s", subject, note)

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
        if (until := policy.records_until(now)) is not None:
            steps += [
                partial(self._drop, table, kind, table.c.model == model, table.c.at <= until)
                for table, kind in ((requests, "requests"), (shadow_requests, "copies"))
            ]
        if (until := policy.texts_until(now)) is not None:
            steps += [
                partial(self._blank, table, f"texts of {kind}", table.c.model == model, table.c.at <= until)
                for table, kind in ((requests, "requests"), (shadow_requests, "copies"))
            ]
            steps.append(partial(self._blank, feedback, "texts of feedback", feedback.c.at <= until, mine))
            steps.append(_once(partial(self._blank_examples, model, until)))
        return steps

    def _of_nobody(self, policy: RetentionPolicy, now: datetime) -> list[Step]:
        steps: list[Step] = []
        nobodys = ~sa.exists().where(requests.c.id == feedback.c.request_id)
        if (until := policy.records_until(now)) is not None:
            steps.append(partial(self._drop, feedback, "feedback", feedback.c.at <= until, nobodys))
        if (until := policy.texts_until(now)) is not None:
            steps.append(partial(self._blank, feedback, "texts of feedback", feedback.c.at <= until, nobodys))
        return steps

    def _blank(self, table: sa.Table, kind: str, *where: sa.ColumnElement[bool]) -> Counter[str]:
        has_text, values = REQUESTS_WITH_TEXT, dict[str, Any](messages=[], answer=None)
        if table is feedback:
            has_text, values = FEEDBACK_WITH_TEXT, {"comment": None, "correction": None}
        else:  # that a request failed stays; what an engine said of it may be a user's words
            values["error"] = sa.case((table.c.error.is_not(None), BLANK))
        # Of no type that SQLAlchemy knows: it would ask SQLite whether it is 1, which is in no index.
        still: sa.ColumnElement[bool] = sa.literal_column(f"({has_text})")
        with self._db.writing() as connection:
            forgetting.hold(connection, self._db)
            ids = connection.execute(_some(table, *where, still)).scalars().all()
            if ids:
                connection.execute(sa.update(table).where(table.c.id.in_(ids)).values(**values))
        return _counted(kind, len(ids))

    def _drop(self, table: sa.Table, kind: str, *where: sa.ColumnElement[bool]) -> Counter[str]:
        with self._db.writing() as connection:
            forgetting.hold(connection, self._db)
            ids = connection.execute(_some(table, *where)).scalars().all()
            taken = _counted(kind, len(ids))
            if ids and table is requests:
                said = connection.execute(sa.delete(feedback).where(feedback.c.request_id.in_(ids)))
                taken += _counted("feedback", said.rowcount)
            if ids:
                connection.execute(sa.delete(table).where(table.c.id.in_(ids)))
        return taken

    def _blank_examples(self, model: str, until: datetime) -> Counter[str]:
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
                return (table.c.model == model) & (table.c.window_start <= until) & shows_questions("detail")
            return (table.c.model == model) & shows_questions("evidence")

        return _counted("windows and episodes with examples", blank_examples(self._db, gone, of_then))


def _counted(kind: str, rows: int) -> Counter[str]:
    return Counter({kind: rows} if rows else {})


def _some(table: sa.Table, *where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """A batch of ids; what somebody else writes at this moment is the next one's."""
    return sa.select(table.c.id).where(*where).limit(BATCH).with_for_update(skip_locked=True, of=table)


def _once(step: Step) -> Step:
    """A step that does everything at its first call."""
    left = [step]
    return lambda: left.pop()() if left else Counter()
