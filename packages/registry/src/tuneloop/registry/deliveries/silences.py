"""Silences: for a time nothing is delivered of one episode, or of a model's; what is seen is on record all the same.

Who silences an episode has seen what it is of. A signal of another cause that joins it later is news all the same,
where somebody could do something about it: an attack, a deploy, an engine. It is told once, and the silence goes on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic import AwareDatetime

from tuneloop.registry import audit
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of
from tuneloop.registry.errors import InvalidInput, NotFound, Refused
from tuneloop.registry.evidence import findings_of, listed_of
from tuneloop.registry.nouns import AlertEpisode, Noun
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import silences

APART = ("attack", "deploy", "engine")  # causes that a silence of an episode for another one does not cover
LONGEST_S = 90 * 86_400.0  # what nobody wants to hear of for longer is a rule to change


class Silence(Noun):
    """Who asked for quiet about what, from when to when and why."""

    id: str
    model: str
    episode_id: str | None = None  # None: every episode of the model, …
    signal: str | None = None  # … or those that this signal is among
    cause: str | None = None  # the likeliest of the episode when it was asked for; None: not known, it covers every one
    signals: tuple[str, ...] | None = None  # what had been seen in the episode then
    created_at: AwareDatetime
    until: AwareDatetime
    by: str
    reason: str
    revoked_at: AwareDatetime | None = None
    revoked_by: str | None = None

    @property
    def ends_at(self) -> datetime:
        """When it ends, or ended."""
        return self.until if self.revoked_at is None else min(self.until, self.revoked_at)

    def stands(self, model: str, at: datetime) -> bool:
        """Whether it asks for quiet about anything of that model at that time."""
        return model == self.model and self.created_at <= at < self.ends_at

    def covers(self, episode: AlertEpisode, at: datetime) -> bool:
        """Whether it asks for quiet about that episode at that time: of a signal, only where nothing else is in it."""
        if not self.stands(episode.model, at):
            return False
        if self.episode_id is not None:
            return episode.id == self.episode_id
        return self.signal is None or _signals(episode) == {self.signal}

    def uncovered(self, episode: AlertEpisode) -> frozenset[str]:
        """The causes, of those in `APART`, of what has joined its episode since, other than the one it is for."""
        if self.episode_id is None or self.cause is None or self.signals is None:
            return frozenset()
        since = _signals(episode) - set(self.signals)
        causes = listed_of(episode.evidence, "causes", "kind", "explains")
        joined = {str(cause["kind"]) for cause in causes if not since.isdisjoint(map(str, cause["explains"]))}
        return frozenset(joined & set(APART) - {self.cause})


def silenced(episode: AlertEpisode, found: Iterable[Silence], at: datetime) -> Silence | None:
    """The silence that covers an episode at a time and ends last; where it takes those of several signals together to
    cover all that is in it, the first of them to end."""
    standing = [silence for silence in found if silence.stands(episode.model, at)]
    covering = [silence for silence in standing if silence.covers(episode, at)]
    signals = _signals(episode)
    of_signals = [silence for silence in standing if silence.episode_id is None and silence.signal in signals]
    lasting = {str(silence.signal): silence for silence in sorted(of_signals, key=lambda silence: silence.ends_at)}
    if lasting.keys() == signals:
        covering.append(min(lasting.values(), key=lambda silence: silence.ends_at))
    return max(covering, key=lambda silence: silence.ends_at, default=None)


def told_despite(episode: AlertEpisode, found: Iterable[Silence], at: datetime) -> frozenset[str]:
    """The causes of what has joined a silenced episode that no silence of it covers."""
    standing = [silence for silence in found if silence.stands(episode.model, at)]
    covering = [silence for silence in standing if silence.covers(episode, at)]
    if not covering or silenced(episode, [s for s in standing if s.episode_id is None], at) is not None:
        return frozenset()  # nobody silenced it, or its whole model, or each of its signals
    return frozenset.intersection(*(silence.uncovered(episode) for silence in covering))


def _signals(episode: AlertEpisode) -> set[str]:
    return {episode.signal, *findings_of(episode)}


class Silences:
    """The silences of one database; an ended one stays, since it says why nothing was delivered."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def add(
        self,
        model: str,
        for_s: float,
        *,
        by: str,
        reason: str,
        episode_id: str | None = None,
        signal: str | None = None,
        cause: str | None = None,
        signals: Iterable[str] | None = None,
    ) -> Silence:
        """Ask for quiet from now on; of an episode for its `cause` and with the `signals` it has now.

        Raises:
            InvalidInput: no time, too long a time, or nobody or no reason is named.
        """
        if not 0 < for_s <= LONGEST_S:
            raise InvalidInput(f"a silence lasts more than nothing and {LONGEST_S / 86_400:.0f} days at most")
        if not by.strip() or not reason.strip():
            raise InvalidInput("a silence needs --by and --reason: it is kept for ever")
        now = self._clock()
        made = Silence(
            id="sl_" + secrets.token_hex(6),
            model=model,
            episode_id=episode_id,
            signal=signal,
            cause=cause,
            signals=None if signals is None else tuple(sorted(signals)),
            created_at=now,
            until=now + timedelta(seconds=for_s),
            by=by,
            reason=reason,
        )
        detail = {"model": model, "episode": episode_id, "signal": signal, "cause": cause, "reason": reason}
        detail |= {"until": made.until.isoformat()}
        with self._db.writing() as connection:
            connection.execute(sa.insert(silences).values(**row_of(made, silences)))
            audit.record(connection, at=now, actor=by, action="silence.new", subject=made.id, detail=detail)
        return made

    def revoke(self, silence_id: str, *, by: str, reason: str) -> Silence:
        """End one now.

        Raises:
            NotFound: there is none of that id.
            Refused: it has ended already.
        """
        now = self._clock()
        with self._db.writing() as connection:
            where = silences.c.id == silence_id
            row = connection.execute(sa.select(silences).where(where)).mappings().first()
            if row is None:
                raise NotFound(f"no silence {silence_id!r}; `tuneloop alert silences` lists them")
            found = noun_of(Silence, row)
            if found.ends_at <= now:
                raise Refused(f"{silence_id} ended at {found.ends_at:%Y-%m-%d %H:%M:%S}Z already")
            connection.execute(sa.update(silences).where(where).values(revoked_at=now, revoked_by=by))
            detail = {"model": found.model, "reason": reason}
            audit.record(connection, at=now, actor=by, action="silence.revoke", subject=silence_id, detail=detail)
        return found.model_copy(update={"revoked_at": now, "revoked_by": by})

    def page(self, ask: Ask, *, active_only: bool = False) -> Page[Silence]:
        """Silences page by page, the newest first."""
        return page(self._db, Silence, self._chosen(active_only), (silences.c.created_at, silences.c.id), ask)

    def _chosen(self, active_only: bool) -> sa.Select[Any]:
        query = sa.select(silences)
        if active_only:
            query = query.where(silences.c.until > self._clock(), silences.c.revoked_at.is_(None))
        return query

    def all(self, *, active_only: bool = False) -> Rows[Silence]:
        """Silences, the newest first, less rows that cannot be read."""
        query = self._chosen(active_only).order_by(silences.c.created_at.desc(), silences.c.id)
        with self._db.reading() as connection:
            return readable(Silence, connection.execute(query).mappings())
