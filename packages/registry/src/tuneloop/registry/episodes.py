"""Window scores and the alert episodes they open: at most one open episode per model, version and signal.

What people are to be told of a change is written to the outbox in the change's own transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from tuneloop.registry import audit
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of
from tuneloop.registry.deliveries.outbox import enqueue
from tuneloop.registry.deliveries.silences import Silence, silenced
from tuneloop.registry.errors import Conflict, NotFound, Refused
from tuneloop.registry.evidence import findings_of
from tuneloop.registry.nouns import AlertEpisode, WindowScore
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import episodes, window_scores

ShownState = Literal["open", "ongoing", "acknowledged", "silenced", "resolved"]


@dataclass(frozen=True)
class Look:
    """The newest window of a signal."""

    at: datetime  # when it was looked at
    judged_at: datetime | None  # when there was last enough of it to judge; None: never


def shown_state(episode: AlertEpisode, silences: Iterable[Silence], at: datetime) -> ShownState:
    """open, ongoing (further windows raised it), acknowledged, silenced or resolved, as people read it."""
    if episode.state == "resolved":
        return "resolved"
    if silenced(episode, silences, at) is not None:
        return "silenced"
    goes_on = len(episode.windows) > max(1, len(findings_of(episode)))
    return "ongoing" if episode.state == "open" and goes_on else episode.state


def noted(episode: AlertEpisode, note: str, at: datetime, **evidence: Any) -> AlertEpisode:
    """The episode with one more line of what was done about it."""
    done = (*episode.done, f"{at:%Y-%m-%d %H:%M:%S}Z {note}")
    return episode.model_copy(update={"done": done, "evidence": episode.evidence | evidence, "updated_at": at})


def resolved(episode: AlertEpisode, note: str, at: datetime) -> AlertEpisode:
    """The episode, over."""
    return noted(episode, f"resolved: {note}", at).model_copy(update={"state": "resolved", "resolved_at": at})


class Episodes:
    """What the monitor saw, what it made of it, and what people did about it."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def add_score(self, score: WindowScore) -> bool:
        """Store one judged window; False when one of that id is stored already, which then stands."""
        insert = self._db.insert(window_scores).values(**row_of(score, window_scores))
        insert = insert.on_conflict_do_nothing(index_elements=["id"])
        with self._db.writing() as connection:  # psycopg knows no number of rows by then
            return connection.execute(insert.returning(window_scores.c.id)).first() is not None

    def scores(
        self,
        model: str,
        *,
        version: int | None = None,
        signal: str | None = None,
        since: datetime | None = None,
        verdict: str | None = None,
        limit: int = 10_000,
    ) -> Rows[WindowScore]:
        """Windows judged after `since`, in order of time, less those that cannot be read, which are logged."""
        query = sa.select(window_scores).where(window_scores.c.model == model)
        if version is not None:
            query = query.where(window_scores.c.version == version)
        if signal is not None:
            query = query.where(window_scores.c.signal == signal)
        if since is not None:
            query = query.where(window_scores.c.at > since)
        if verdict is not None:
            query = query.where(window_scores.c.verdict == verdict)
        with self._db.reading() as connection:
            newest = connection.execute(query.order_by(window_scores.c.at.desc()).limit(limit)).mappings()
            found = readable(WindowScore, newest)
        found.reverse()
        self._db.tell(found.unreadable)
        return found

    def looks(self, model: str, version: int) -> dict[str, Look]:
        """By signal of a version: when it was looked at last."""
        judged = sa.case((window_scores.c.verdict != "not enough data", window_scores.c.at))
        query = sa.select(window_scores.c.signal, sa.func.max(window_scores.c.at), sa.func.max(judged))
        query = query.where(window_scores.c.model == model, window_scores.c.version == version)
        with self._db.reading() as connection:
            rows = connection.execute(query.group_by(window_scores.c.signal)).all()
        return {signal: Look(at, judged_at) for signal, at, judged_at in rows}

    def scores_of(self, score_ids: Sequence[str]) -> Rows[WindowScore]:
        """Those of these judged windows that are there, in no order, less what cannot be read, which is logged."""
        with self._db.reading() as connection:
            rows = connection.execute(sa.select(window_scores).where(window_scores.c.id.in_(score_ids))).mappings()
            found = readable(WindowScore, rows)
        self._db.tell(found.unreadable)
        return found

    def score(self, score_id: str) -> WindowScore:
        """One judged window.

        Raises:
            NotFound: there is none of that id.
        """
        with self._db.reading() as connection:
            row = connection.execute(sa.select(window_scores).where(window_scores.c.id == score_id)).mappings().first()
        if row is None:
            raise NotFound(f"no window score {score_id!r}")
        return noun_of(WindowScore, row)

    def open(self, episode: AlertEpisode) -> AlertEpisode:
        """Open an episode, or return the one already open for that model, version and signal."""
        of_this_problem = sa.select(episodes).where(
            episodes.c.model == episode.model,
            episodes.c.version == episode.version,
            episodes.c.signal == episode.signal,
            episodes.c.state != "resolved",
        )
        with self._db.writing() as connection:
            insert = self._db.insert(episodes).values(**row_of(episode, episodes))
            opened = connection.execute(insert.on_conflict_do_nothing().returning(episodes.c.id)).first()
            if opened is None:  # another monitor may have been first: the index `episodes_one_open` decides
                return noun_of(AlertEpisode, connection.execute(of_this_problem).mappings().one())
            enqueue(self._db, connection, None, episode, episode.opened_at)
            detail = {"model": episode.model, "version": episode.version, "signal": episode.signal}
            audit.record(
                connection,
                at=episode.opened_at,
                actor="monitor",
                action="episode.open",
                subject=episode.id,
                detail=detail,
            )
        return episode

    def update(self, before: AlertEpisode, episode: AlertEpisode, *, by: str, action: str, reason: str = "") -> None:
        """Replace an episode with its next state, on record.

        Args:
            before: the episode as it was read; what somebody else wrote since is not overwritten.
            episode: its next state.
            by: who.
            action: what, for the audit log.
            reason: why, for the audit log.

        Raises:
            NotFound: there is no such episode.
            Conflict: it has changed since `before` was read; nothing was written.
        """
        as_read = (
            episodes.c.id == before.id,
            episodes.c.updated_at == before.updated_at,
            episodes.c.state == before.state,
        )
        with self._db.writing() as connection:
            changed = connection.execute(sa.update(episodes).where(*as_read).values(**row_of(episode, episodes)))
            if changed.rowcount == 0:
                if connection.execute(sa.select(episodes.c.id).where(episodes.c.id == episode.id)).first() is None:
                    raise NotFound(f"no alert episode {episode.id!r}; `tuneloop alerts` lists them")
                raise Conflict(
                    f"{episode.id} has changed meanwhile; look at it (`tuneloop alert show`), then try again"
                )
            now = self._clock()
            enqueue(self._db, connection, before, episode, now)
            audit.record(
                connection,
                at=now,
                actor=by,
                action=action,
                subject=episode.id,
                detail={"state": episode.state} | ({"reason": reason} if reason else {}),
            )

    def acknowledge(self, episode_id: str, *, by: str, note: str = "") -> AlertEpisode:
        """Say that somebody is on it.

        Raises:
            NotFound: there is no such episode.
            Refused: it is resolved already.
            Conflict: it changed at the same moment.
        """
        episode = self._not_over(episode_id)
        said = f"acknowledged by {by}" + (f": {note}" if note else "")
        changed = noted(episode, said, self._clock()).model_copy(update={"state": "acknowledged"})
        self.update(episode, changed, by=by, action="episode.ack", reason=note)
        return changed

    def resolve(self, episode_id: str, *, by: str, reason: str) -> AlertEpisode:
        """End one by hand; a new alarm opens a new one.

        Raises:
            NotFound: there is no such episode.
            Refused: it is resolved already.
            Conflict: it changed at the same moment.
        """
        episode = self._not_over(episode_id)
        changed = resolved(episode, f"{reason} (by {by})", self._clock())
        self.update(episode, changed, by=by, action="episode.resolve", reason=reason)
        return changed

    def _not_over(self, episode_id: str) -> AlertEpisode:
        episode = self.get(episode_id)
        if episode.state == "resolved":
            raise Refused(f"{episode_id} is resolved already; `tuneloop alert show {episode_id}` says how")
        return episode

    def page(self, ask: Ask, model: str | None = None, *, open_only: bool = False) -> Page[AlertEpisode]:
        """Episodes page by page, the newest first."""
        query = sa.select(episodes)
        if model is not None:
            query = query.where(episodes.c.model == model)
        if open_only:
            query = query.where(episodes.c.state != "resolved")
        return page(self._db, AlertEpisode, query, (episodes.c.opened_at, episodes.c.id), ask)

    def get(self, episode_id: str) -> AlertEpisode:
        """One episode.

        Raises:
            NotFound: there is none of that id.
        """
        with self._db.reading() as connection:
            row = connection.execute(sa.select(episodes).where(episodes.c.id == episode_id)).mappings().first()
        if row is None:
            raise NotFound(f"no alert episode {episode_id!r}; `tuneloop alerts` lists them")
        return noun_of(AlertEpisode, row)

    def all(
        self,
        model: str | None = None,
        *,
        version: int | None = None,
        signal: str | None = None,
        open_only: bool = False,
    ) -> Rows[AlertEpisode]:
        """Episodes, the newest first; `signal` is the one that opened them."""
        query = sa.select(episodes).order_by(episodes.c.opened_at.desc())
        if model is not None:
            query = query.where(episodes.c.model == model)
        if version is not None:
            query = query.where(episodes.c.version == version)
        if signal is not None:
            query = query.where(episodes.c.signal == signal)
        if open_only:
            query = query.where(episodes.c.state != "resolved")
        with self._db.reading() as connection:
            return readable(AlertEpisode, connection.execute(query).mappings())
