"""Routes: append-only revisions, each written with compare-and-swap and its audit record in one transaction."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Unreadable
from tuneloop.registry.nouns import Arm, Route, Shadow
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import routes

_PAGE = 100  # revisions a query
_log = logging.getLogger(__name__)


class CurrentRoutes(dict[str, Route]):
    """Model → its newest route, and `unreadable`: model → what is wrong with the newest row of its route.

    A model of `unreadable` has a route, which is not known: whoever holds an earlier one goes on with it.
    """

    def __init__(self, routes: Mapping[str, Route] | None = None, unreadable: Mapping[str, str] | None = None) -> None:
        super().__init__(routes or {})
        self.unreadable: dict[str, str] = dict(unreadable or {})


class Routes:
    """Reading and writing routes. Whether a version may serve is decided by `promotion`, before it calls `write`."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock
        self._told: dict[str, str] = {}  # model → what was last logged of its unreadable route

    def current(self, model: str) -> Route:
        """The newest revision of a model's route.

        Raises:
            NotFound: the model has no route yet.
        """
        found = self.history(model, limit=1).whole()
        if not found:
            raise NotFound(
                f"{model} has no route yet; approve a version and "
                f"promote it: `tuneloop approve {model}@1 --by YOU --reason WHY`, then `tuneloop promote` likewise"
            )
        return found[0]

    def current_all(self) -> CurrentRoutes:
        """Model → its newest route, for every model that has one; those that cannot be read are named aside and logged.

        An unreadable revision is in force nonetheless: what went before it is not shown in its place.
        """
        found = CurrentRoutes()
        with self._db.reading() as connection:
            rows = connection.execute(_newest_of_each()).mappings().all()
        for row in rows:
            try:
                found[row["model"]] = noun_of(Route, row)
            except Unreadable as error:
                found.unreadable[row["model"]] = str(error)
        for model, why in found.unreadable.items():
            if self._told.get(model) != why:  # readers ask twice a second
                _log.error("%s", why)
        self._told = found.unreadable
        return found

    def history(self, model: str, limit: int = 1_000) -> Rows[Route]:
        """A model's revisions, the newest first; whoever decides by them takes them `whole`."""
        query = sa.select(routes).where(routes.c.model == model).order_by(routes.c.revision.desc()).limit(limit)
        return readable(Route, self._db.rows(query))

    def back(self, model: str, *, first: int = 1) -> Iterator[Route]:
        """A model's revisions from `first` on, the newest first, read as far back as they are asked for.

        Raises:
            Unreadable: it has come to one that cannot be read.
        """
        here = sa.and_(routes.c.model == model, routes.c.revision >= first)
        query = sa.select(routes).where(here).order_by(routes.c.revision.desc()).limit(_PAGE)
        rows: Sequence[sa.RowMapping] = ()
        while True:
            further = query.where(routes.c.revision < rows[-1]["revision"]) if rows else query
            with self._db.reading() as connection:
                rows = connection.execute(further).mappings().all()
            yield from (noun_of(Route, row) for row in rows)
            if len(rows) < _PAGE:
                return

    def has_led(self, model: str, version: int) -> bool:
        """Whether a version is, or ever was, the champion; revisions that cannot be read tell nothing."""
        query = sa.select(routes.c.arms).where(routes.c.model == model).order_by(routes.c.revision.desc())
        with self._db.reading() as connection:
            return any(_last(arms) == version for arms in connection.execute(query).scalars())

    def page(self, model: str, ask: Ask) -> Page[Route]:
        """A model's revisions, the newest first, page by page."""
        return page(self._db, Route, sa.select(routes).where(routes.c.model == model), (routes.c.revision,), ask)

    def at(self, model: str, revision: int) -> Route:
        """One revision of a model's route.

        Raises:
            NotFound: there is no such revision.
        """
        query = sa.select(routes).where(routes.c.model == model, routes.c.revision == revision)
        with self._db.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFound(f"{model} has no revision {revision}; `tuneloop route history {model}` shows them")
        return noun_of(Route, row)

    def lost_race(self, model: str, expected: int, newest: Route | None) -> Conflict:
        """The error for a writer who saw revision `expected` of a route that is at `newest` by now."""
        with self._db.reading() as connection:
            return _lost_race(model, expected, newest, _taken(connection, model, expected))

    def write(
        self,
        model: str,
        arms: Sequence[Arm],
        *,
        by: str,
        reason: str,
        expected_revision: int,
        forced: bool = False,
        action: str = "route.set",
        noted: Mapping[str, Any] | None = None,
        overrides: Mapping[str, int] | None = None,
        holdout_bp: int | None = None,
        shadow: tuple[()] | tuple[Shadow] | None = None,
        follow: Callable[[Connection, Route], None] | None = None,
    ) -> Route:
        """Append revision `expected_revision + 1` if `expected_revision` is still the newest (0: there is none yet).

        `noted` joins the detail of the audit record; `overrides` replaces those of single keys, which otherwise stay as
        far as their version stays an arm; `holdout_bp` replaces the share that is held out, which otherwise stays;
        `shadow` replaces the shadow (by none, if empty), which otherwise stays while its version is an arm without a
        share; `follow` writes what follows from the route, or the route is not written either.

        Raises:
            InvalidInput: the arms do not make a whole, or `by` or `reason` is empty.
            Conflict: somebody wrote that revision first; the message says who and what.
        """
        if not by.strip() or not reason.strip():
            raise InvalidInput("a route change needs --by and --reason: it is kept for ever")
        with self._db.writing() as connection:
            query = sa.select(routes).where(routes.c.model == model).order_by(routes.c.revision.desc()).limit(1)
            row = connection.execute(query).mappings().first()
            newest = noun_of(Route, row) if row else None
            if (newest.revision if newest else 0) != expected_revision:
                raise _lost_race(model, expected_revision, newest, _taken(connection, model, expected_revision))
            try:
                route = Route(
                    model=model,
                    revision=expected_revision + 1,
                    arms=tuple(arms),
                    salt=newest.salt if newest else secrets.token_hex(8),
                    by=by,
                    reason=reason,
                    at=self._clock(),
                    forced=forced,
                    overrides=_overrides(newest, arms) if overrides is None else dict(overrides),
                    holdout_bp=(newest.holdout_bp if newest else 0) if holdout_bp is None else holdout_bp,
                    shadow=_shadow(newest, arms) if shadow is None else next(iter(shadow), None),
                )
            except ValidationError as error:
                raise InvalidInput(
                    f"route of {model}: " + "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
                ) from None
            insert = self._db.insert(routes).values(**row_of(route, routes))
            insert = insert.on_conflict_do_nothing(index_elements=["model", "revision"])
            if connection.execute(insert.returning(routes.c.revision)).first() is None:
                won = connection.execute(query).mappings().one()  # who committed while this looked (PostgreSQL)
                taken = _taken(connection, model, expected_revision)
                raise _lost_race(model, expected_revision, noun_of(Route, won), taken)
            detail = {
                "revision": route.revision,
                "split": route.split_text,
                "reason": reason,
                "forced": forced,
                "before": newest.split_text if newest else "",
            }
            had, has = (one.shadow.text if one and one.shadow else None for one in (newest, route))
            if had != has:
                detail |= {"shadow": has, "shadow_before": had}
            detail |= noted or {}
            audit.record(connection, at=route.at, actor=by, action=action, subject=model, detail=detail)
            if follow is not None:
                follow(connection, route)
        return route


def _last(arms: object) -> object:
    """The version of the last of a row's arms, whole routes of which are too many to read."""
    last = arms[-1] if isinstance(arms, list) and arms else None
    return last.get("version") if isinstance(last, dict) else None


def _overrides(newest: Route | None, arms: Sequence[Arm]) -> dict[str, int]:
    versions = {arm.version for arm in arms}
    return {key: version for key, version in (newest.overrides if newest else {}).items() if version in versions}


def _shadow(newest: Route | None, arms: Sequence[Arm]) -> Shadow | None:
    """It ends when its version gets a share, or leaves the route."""
    shadow = newest.shadow if newest else None
    return shadow if shadow is not None and Arm(version=shadow.version, weight_bp=0) in arms else None


def _taken(connection: Connection, model: str, expected: int) -> Route | None:
    """The revision that a writer who saw `expected` would have written; None where nobody has, or it is unreadable."""
    query = sa.select(routes).where(routes.c.model == model, routes.c.revision == expected + 1)
    row = connection.execute(query).mappings().first()
    return next(iter(readable(Route, [row])), None) if row else None


def _lost_race(model: str, expected: int, newest: Route | None, taken: Route | None) -> Conflict:
    """Who wrote the revision that was to be written, and, where that is another, the newest."""
    if newest is None or newest.revision < expected:
        there = f"the newest is {newest.revision}" if newest else "it has no revision yet"
        return Conflict(f"route of {model}: you named revision {expected}, and {there}; look at it and try again")
    won = taken or newest
    since = "" if won == newest else f"; since then {newest.by} wrote revision {_what(newest)}"
    return Conflict(
        f"route of {model}: you saw revision {expected}, but {won.by} wrote revision {_what(won)}{since}; look at it "
        "and try again"
    )


def _what(route: Route) -> str:
    return f"{route.revision} ({route.split_text}) at {route.at:%H:%M:%S} because {route.reason!r}"


@cache
def _newest_of_each() -> sa.Select[Any]:
    """The newest revision of every model, by two steps in the index for each: gateways ask twice a second, and grouping
    would read every revision there ever was. To make this statement takes longer than to run it."""
    models = sa.select(sa.func.min(routes.c.model).label("model")).cte("models", recursive=True)
    following = sa.select(sa.func.min(routes.c.model)).where(routes.c.model > models.c.model).scalar_subquery()
    models = models.union_all(sa.select(following).where(models.c.model.is_not(None)))
    others = routes.alias("others")
    newest = sa.select(sa.func.max(others.c.revision)).where(others.c.model == models.c.model).scalar_subquery()
    here = sa.and_(routes.c.model == models.c.model, routes.c.revision == newest)
    return sa.select(routes).join(models, here)
