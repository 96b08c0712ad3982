"""The outbox: what is to be delivered of an episode, one row per (episode, transition, receiver), written in the
transaction that changes the episode.

Invariants: a row's id is made of those three, so nothing is to be delivered twice under two keys; a row waits until
it is sent, given up or dropped, so a sender that is killed leaves it to the next, which sends it under the same key.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal

import sqlalchemy as sa
from pydantic import AwareDatetime, ValidationError
from sqlalchemy.engine import Connection

from tuneloop.registry.database import Database, Rows, faults, readable
from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy
from tuneloop.registry.deliveries.silences import Silence, told_despite
from tuneloop.registry.evidence import findings_of, pages_too
from tuneloop.registry.nouns import AlertEpisode, Noun
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import deliveries, policies, silences

Transition = Literal["opened", "worse", "acknowledged", "resolved"]
DeliveryState = Literal["waiting", "sent", "given up", "dropped"]
_TOLD: tuple[Transition, ...] = ("opened", "worse")  # what tells a receiver of an episode first
_REVISIONS = 10  # of the receivers, that are tried from the newest
_log = logging.getLogger("tuneloop.registry")


class Delivery(Noun):
    """One thing to tell one receiver of one episode."""

    id: str  # the key receivers tell repetitions by
    episode_id: str
    receiver: str
    transition: Transition
    sequence: int  # among what this receiver is told of this episode, from 0
    created_at: AwareDatetime
    state: DeliveryState
    attempts: int
    first_at: AwareDatetime | None  # of the first attempt
    next_at: AwareDatetime  # not before; while somebody sends it, when another may
    ended_at: AwareDatetime | None
    error: str  # of the last attempt that failed, or why it was dropped


@dataclass(frozen=True)
class Backlog:
    """What a receiver has not taken."""

    failing_s: float  # since the first attempt at the oldest that waits; 0: nothing failed
    given_up: int  # within the last day


def delivery_id(episode_id: str, transition: Transition, receiver: str, joined: Sequence[str] = ()) -> str:
    """The same for the same, whoever asks; `joined` are the signals by which a page got worse."""
    parts = (episode_id, transition, receiver, *joined)
    return "dl_" + sha256("\0".join(parts).encode()).hexdigest()[:24]


def despite_id(episode_id: str, receiver: str, cause: str) -> str:
    """Of what is told, once, of a cause that joined while the episode was silenced for another."""
    return delivery_id(episode_id, "worse", receiver, ("despite a silence", cause))


def transition_of(before: AlertEpisode | None, after: AlertEpisode) -> Transition | None:
    """What of a change people are told of; most changes add evidence and are not."""
    if before is None:
        return "opened"
    if after.state == "resolved":
        return None if before.state == "resolved" else "resolved"
    if after.severity == "page" and (before.severity != "page" or _joined(before, after)):
        return "worse"
    return "acknowledged" if after.state == "acknowledged" and before.state != "acknowledged" else None


def _joined(before: AlertEpisode | None, after: AlertEpisode) -> list[str]:
    """The problems a page has now that would page alone: whoever works on the one has not heard of the other."""
    known = findings_of(before) if before is not None else {}
    return [signal for signal in pages_too(after) if signal not in known]


def receivers_in_force(connection: Connection) -> ReceiversPolicy | None:
    """Those that are told now: of the newest revision that can be read, and it is logged where that is not the newest;
    None when some were set and none of it can be read."""
    query = sa.select(policies.c.body).where(policies.c.model == EVERY_MODEL, policies.c.kind == "receivers")
    bodies = connection.execute(query.order_by(policies.c.id.desc()).limit(_REVISIONS)).scalars().all()
    for body in bodies:
        try:
            return ReceiversPolicy.model_validate(body)
        except ValidationError as error:
            _log.error("the receivers cannot be read, those set before them are told: %s", faults(error))
    if bodies:
        _log.error("nobody is told of episodes: none of the receivers that were set can be read")
        return None
    return ReceiversPolicy()


def enqueue(
    database: Database, connection: Connection, before: AlertEpisode | None, after: AlertEpisode, at: datetime
) -> None:
    """Write down, in the transaction of the episode's change, who is to be told of it.

    A receiver hears how an episode goes on only after it was told, or is to be told, that there is one.
    """
    transition = transition_of(before, after)
    apart = _despite(connection, after, at) if before is not None and after.state != "resolved" else ()
    policy = receivers_in_force(connection) if transition is not None or apart else None
    if policy is None:
        return
    joined = _joined(before, after) if transition == "worse" else []
    known: dict[str, list[str]] = {}
    query = sa.select(deliveries.c.receiver, deliveries.c.id).where(deliveries.c.episode_id == after.id)
    for receiver_name, told in connection.execute(query):
        known.setdefault(receiver_name, []).append(told)
    for receiver in policy.receivers:
        heard = known.get(receiver.name, [])
        if not receiver.takes(after.model, after.severity):
            continue
        keys = [despite_id(after.id, receiver.name, cause) for cause in apart]
        due: list[tuple[str, Transition]] = [(key, "worse") for key in keys if key not in heard]
        if transition is not None and not (transition == "worse" and due) and (transition in _TOLD or heard):
            due.insert(0, (delivery_id(after.id, transition, receiver.name, joined), transition))
        for place, (key, what) in enumerate(due, len(heard)):
            values = {
                "id": key,
                "episode_id": after.id,
                "receiver": receiver.name,
                "transition": what,
                "sequence": place,
                "created_at": at,
                "state": "waiting",
                "attempts": 0,
                "next_at": at,
                "error": "",
            }
            insert = database.insert(deliveries).values(**values)
            connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]))


def _despite(connection: Connection, episode: AlertEpisode, at: datetime) -> list[str]:
    """The causes that no silence of an episode covers, though it is silenced."""
    query = sa.select(silences).where(silences.c.model == episode.model, silences.c.until > at)
    standing = readable(Silence, connection.execute(query).mappings())
    return sorted(told_despite(episode, standing, at))


class Outbox:
    """Reading the outbox, and what senders write to it."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def receivers(self) -> ReceiversPolicy | None:
        """See `receivers_in_force`."""
        with self._db.reading() as connection:
            return receivers_in_force(connection)

    def all(self, episode_id: str | None = None, *, limit: int = 1_000) -> Rows[Delivery]:
        """The newest first, of one episode or all."""
        query = sa.select(deliveries).order_by(deliveries.c.created_at.desc(), deliveries.c.sequence.desc())
        if episode_id is not None:
            query = query.where(deliveries.c.episode_id == episode_id)
        with self._db.reading() as connection:
            return readable(Delivery, connection.execute(query.limit(limit)).mappings())

    def page(self, ask: Ask, episode_id: str | None = None) -> Page[Delivery]:
        """The same page by page."""
        query = sa.select(deliveries)
        if episode_id is not None:
            query = query.where(deliveries.c.episode_id == episode_id)
        return page(self._db, Delivery, query, (deliveries.c.created_at, deliveries.c.id), ask)

    def waiting(self) -> Rows[Delivery]:
        """Everything nobody has taken yet, in the order to try it in."""
        query = sa.select(deliveries).where(deliveries.c.state == "waiting")
        query = query.order_by(deliveries.c.next_at, deliveries.c.created_at, deliveries.c.sequence)
        with self._db.reading() as connection:
            return readable(Delivery, connection.execute(query).mappings())

    def told(self, receiver: str) -> set[str]:
        """The episodes this receiver has been told of."""
        query = sa.select(deliveries.c.episode_id).where(
            deliveries.c.receiver == receiver, deliveries.c.state == "sent", deliveries.c.transition.in_(_TOLD)
        )
        with self._db.reading() as connection:
            return set(connection.execute(query).scalars())

    def reached(self, episode_ids: Collection[str], receivers: Collection[str]) -> set[str]:
        """The episodes, of these, that one of these receivers has been told of or is still to be told of."""
        query = sa.select(deliveries.c.episode_id).where(
            deliveries.c.episode_id.in_(episode_ids),
            deliveries.c.receiver.in_(receivers),
            deliveries.c.state.in_(("waiting", "sent")),
            deliveries.c.transition.in_(_TOLD),
        )
        with self._db.reading() as connection:
            return set(connection.execute(query).scalars())

    def claim(self, found: Delivery, at: datetime, lease_s: float) -> bool:
        """Take one to send it now; False when somebody else has. Killed, the lease runs out and another takes it."""
        as_read = (
            deliveries.c.id == found.id,
            deliveries.c.state == "waiting",
            deliveries.c.attempts == found.attempts,
            deliveries.c.next_at == found.next_at,
        )
        values = {
            "attempts": found.attempts + 1,
            "first_at": found.first_at or at,
            "next_at": at + timedelta(seconds=lease_s),
        }
        with self._db.writing() as connection:
            return connection.execute(sa.update(deliveries).where(*as_read).values(**values)).rowcount == 1

    def postpone(self, delivery: str, until: datetime, error: str) -> None:
        """An attempt failed; another is due then."""
        self._write(delivery, next_at=until, error=error[:500])

    def end(self, delivery: str, state: Literal["sent", "given up", "dropped"], at: datetime, error: str = "") -> None:
        """It waits no more."""
        self._write(delivery, state=state, ended_at=at, error=error[:500])

    def told_as_page(self, opened: Delivery, read_at: datetime, at: datetime) -> bool:
        """The episode was told as the page it had become: when it was one before anything was tried (else before it
        was read), that it got worse is no news. A ticket may have gone out with an attempt that seemed to fail."""
        where = (
            deliveries.c.episode_id == opened.episode_id,
            deliveries.c.receiver == opened.receiver,
            deliveries.c.transition == "worse",
            deliveries.c.state == "waiting",
            deliveries.c.created_at <= (opened.first_at or read_at),
        )
        values = {"state": "dropped", "ended_at": at, "error": "it was told as a page from the first"}
        with self._db.writing() as connection:
            return connection.execute(sa.update(deliveries).where(*where).values(**values)).rowcount > 0

    def told_with_opening(self, opened: Delivery, causes: Iterable[str], at: datetime) -> None:
        """That these causes joined under a silence goes out with the episode's opening: nobody had heard of it."""
        keys = [despite_id(opened.episode_id, opened.receiver, cause) for cause in causes]
        where = (deliveries.c.id.in_(keys), deliveries.c.state == "waiting")
        values = {"state": "dropped", "ended_at": at, "error": "it was told with the episode's opening"}
        with self._db.writing() as connection:
            connection.execute(sa.update(deliveries).where(*where).values(**values))

    def backlogs(self, receivers: Sequence[str], at: datetime) -> dict[str, Backlog]:
        """By receiver: what fails, and what was given up."""
        oldest = sa.select(deliveries.c.receiver, sa.func.min(deliveries.c.first_at))
        oldest = oldest.where(deliveries.c.state == "waiting", deliveries.c.error != "")
        lost = sa.select(deliveries.c.receiver, sa.func.count())
        lost = lost.where(deliveries.c.state == "given up", deliveries.c.ended_at > at - timedelta(days=1))
        with self._db.reading() as connection:
            since = {row[0]: row[1] for row in connection.execute(oldest.group_by(deliveries.c.receiver))}
            gone = {row[0]: row[1] for row in connection.execute(lost.group_by(deliveries.c.receiver))}
        return {
            name: Backlog(
                max(0.0, (at - since[name]).total_seconds()) if since.get(name) else 0.0, int(gone.get(name, 0))
            )
            for name in {*receivers, *gone}
        }

    def _write(self, delivery: str, **values: object) -> None:
        where = (deliveries.c.id == delivery, deliveries.c.state == "waiting")  # what has ended stays so
        with self._db.writing() as connection:
            connection.execute(sa.update(deliveries).where(*where).values(**values))
