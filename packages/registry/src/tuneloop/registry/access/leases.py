"""One key's limit, shared out among the gateways: each holds a part of it, and the parts never sum to more than it.

Every gateway always has its floor, a quarter of its even share, so that a request of an idle key waits for nobody. The
rest lies in a pool from which a gateway takes what its traffic needs, in one transaction that sees what every other
holds: off the request path, about once a second. What a dead gateway held comes back when a minute's window has passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry.ages import Ages
from tuneloop.registry.database import Database
from tuneloop.registry.fleet import Fleet
from tuneloop.registry.tables import limit_leases

KINDS = ("requests", "tokens", "streams")
FLOOR_PARTS = 4  # a floor is an even share divided by this
LEASE_S = 70.0  # a window's minute, a second for its edges, and clocks that differ by a few seconds
REWRITE_AFTER_S = 5.0
_KEPT = timedelta(days=3)  # of keys that nobody uses any more; a clock that is set ahead must not lose what is held
_LOCK = 7463012
Parts = dict[str, int]  # kind → part of the limit of that kind


@dataclass(frozen=True)
class Need:
    """What one gateway has to say of one key and kind."""

    limit: int
    used: int  # of it there, in the minute's window or right now
    held: int  # what it goes on to let through until it hears the answer
    headroom: int  # what may come soon


def floor_of(limit: int, live: int) -> int:
    """What each of `live` gateways may always use of a limit."""
    return limit if live <= 1 else limit // (FLOOR_PARTS * live)


def part_of(need: Need, others: int, live: int) -> int:
    """The part of a limit that a gateway may hold while the others hold `others` of it; pure.

    One that uses more than an even share takes half of what is free, so that the others find some at their turn.
    """
    if live <= 1 and not others:
        return need.limit
    most = need.limit - others
    free = max(0, most - need.used)
    if need.used > need.limit // max(1, live):
        free //= 2
    wanted = need.used + min(need.headroom, free)
    return max(wanted, min(need.held, most), min(floor_of(need.limit, live), most))


@dataclass(frozen=True)
class Holder:
    """One life of a gateway, from its start to its end."""

    gateway: str
    life: str

    @property
    def name(self) -> str:
        """What no other life goes by."""
        return f"{self.gateway} {self.life}"


@dataclass(frozen=True)
class Shared:
    """What a renewal gave: how many gateways are live, the parts held here, and what others hold."""

    live: int
    held: Mapping[str, Parts]  # key → kind → part
    others: Mapping[str, Parts]


class Leases:
    """The parts that gateways hold."""

    def __init__(
        self, database: Database, fleet: Fleet, clock: Callable[[], datetime], steady: Callable[[], float]
    ) -> None:
        self._db = database
        self._fleet = fleet
        self._clock = clock
        self._ages = Ages(steady)

    def renew(self, holder: Holder, needs: Mapping[str, Mapping[str, Need]]) -> Shared:
        """Say what a gateway needs of the limits of its busy keys, and learn what it may use; gives back the rest.

        Args:
            holder: who it is. What an earlier life of it held counts as a dead gateway's: it may have been used.
            needs: key → kind → need, of keys that are in use there.
        """
        now, names, here = self._clock(), list(needs), limit_leases.c.gateway == holder.gateway
        with self._db.writing() as connection:
            if not self._db.is_sqlite:  # which has one writer at a time anyway
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            live = self._fleet.live_gateways(connection) | {holder.gateway}
            theirs: dict[str, list[sa.RowMapping]] = {key: [] for key in names}
            mine: dict[str, sa.RowMapping] = {}
            query = sa.select(limit_leases).where(limit_leases.c.api_key.in_(names))
            rows = {(row["api_key"], row["holder"]): row for row in connection.execute(query).mappings()}
            ages = self._ages.seen({which: row["at"] for which, row in rows.items()}, now)
            for (key, name), row in rows.items():
                if name == holder.name:
                    mine[key] = row
                elif ages[key, name] < LEASE_S:
                    theirs[key].append(row)
            others = {key: _others(need, theirs[key], live - {holder.gateway}) for key, need in needs.items()}
            held = {
                key: {kind: part_of(one, others[key][kind], len(live)) for kind, one in need.items()}
                for key, need in needs.items()
            }
            for key, parts in held.items():
                self._write(connection, holder, key, parts, mine.get(key), now)
            gone = sa.and_(limit_leases.c.holder == holder.name, limit_leases.c.api_key.not_in(names))
            over = [which for which, age_s in ages.items() if age_s >= LEASE_S and which[1] != holder.name]
            old = sa.tuple_(limit_leases.c.api_key, limit_leases.c.holder).in_(over)
            oldest = limit_leases.c.at < now - _KEPT
            connection.execute(sa.delete(limit_leases).where(sa.or_(gone, old, oldest)))
            ended = sa.and_(here, limit_leases.c.holder != holder.name, limit_leases.c.streams != 0)
            connection.execute(sa.update(limit_leases).where(ended).values(streams=0))
        return Shared(len(live), held, others)

    def nothing(self, holder: Holder) -> Shared:
        """What a gateway learns that holds and needs nothing: how many live; writes nothing."""
        with self._db.reading() as connection:
            live = self._fleet.live_gateways(connection)
        return Shared(len(live | {holder.gateway}), {}, {})

    def _write(
        self,
        connection: Connection,
        holder: Holder,
        key: str,
        parts: Parts,
        before: sa.RowMapping | None,
        now: datetime,
    ) -> None:
        values = {kind: parts.get(kind, 0) for kind in KINDS}
        fresh = before is not None and abs(now - before["at"]) < timedelta(seconds=REWRITE_AFTER_S)
        if before is not None and fresh and all(before[kind] == part for kind, part in values.items()):
            return
        named = {"api_key": key, "holder": holder.name, "gateway": holder.gateway}
        changed = {**values, "at": now}
        insert = self._db.insert(limit_leases).values(**named, **changed)
        connection.execute(insert.on_conflict_do_update(index_elements=["api_key", "holder"], set_=changed))


def _others(needs: Mapping[str, Need], rows: Sequence[sa.RowMapping], live: Set[str]) -> Parts:
    """What the other gateways hold of each kind: what stands in their rows, but those that live their floor at least.

    A gateway that is dead serves no stream any more; what it let through within the window still counts.
    """
    found: Parts = {}
    for kind, need in needs.items():
        floor = floor_of(need.limit, len(live) + 1)
        held: Counter[str] = Counter()
        for row in rows:
            held[row["gateway"]] += row[kind]
        living = sum(max(held[name], floor) for name in live)
        dead = 0 if kind == "streams" else sum(part for name, part in held.items() if name not in live)
        found[kind] = living + dead
    return found
