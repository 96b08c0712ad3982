"""The living: engines and gateways, each known by its last heartbeat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry.ages import Ages
from tuneloop.registry.database import Database, Rows, readable, row_of
from tuneloop.registry.errors import Late, Unavailable
from tuneloop.registry.nouns import EngineState, GatewayState
from tuneloop.registry.tables import engines, gateways

STALE_AFTER_S = 10.0
_LOOKED_AT = timedelta(days=3)  # a clock that is set further ahead loses those that live


class Fleet:
    """Heartbeats in, the live ones out. An engine or gateway silent for `STALE_AFTER_S` is not live.

    A clock that is set makes nobody live or dead, once a heartbeat has been seen (`ages`).
    """

    def __init__(self, database: Database, clock: Callable[[], datetime], steady: Callable[[], float]) -> None:
        self._db = database
        self._clock = clock
        self._ages = {table.name: Ages(steady) for table in (engines, gateways)}
        self._stopping = threading.Event()

    def stop_waiting(self) -> None:
        """Let nobody wait for an engine any longer: this process is asked to end, and loading one can take minutes."""
        self._stopping.set()

    def beat_engine(self, state: EngineState) -> None:
        """Store an engine agent's heartbeat."""
        self._beat(engines, state)

    def beat_gateway(self, state: GatewayState) -> None:
        """Store a gateway's heartbeat."""
        self._beat(gateways, state)

    def engines(self, *, live_only: bool = True) -> Rows[EngineState]:
        """Engines by id."""
        return readable(EngineState, self._rows(engines, live_only))

    def gateways(self, *, live_only: bool = True) -> Rows[GatewayState]:
        """Gateways by id."""
        return readable(GatewayState, self._rows(gateways, live_only))

    def silent_gateways(self, within_s: float) -> Rows[GatewayState]:
        """Gateways that are not live, did not end in order, and were heard of within `within_s`, by id."""
        return readable(GatewayState, [r for r, age_s in self._aged(gateways) if STALE_AFTER_S <= age_s < within_s])

    def live_gateways(self, connection: Connection) -> set[str]:
        """The ids of the live gateways, read in a transaction of somebody else's."""
        stamps = sa.select(gateways.c.id, gateways.c.at).where(gateways.c.at > self._clock() - _LOOKED_AT)
        ages = self._ages[gateways.name].seen({row.id: row.at for row in connection.execute(stamps)}, self._clock())
        return {str(name) for name, age_s in ages.items() if age_s < STALE_AFTER_S}

    def forget_engine(self, engine_id: str) -> None:
        """Take an engine that shut down in order off the list."""
        with self._db.writing() as connection:
            connection.execute(sa.delete(engines).where(engines.c.id == engine_id))

    def forget_gateway(self, gateway_id: str) -> None:
        """Take a gateway that shut down in order off the list."""
        with self._db.writing() as connection:
            connection.execute(sa.delete(gateways).where(gateways.c.id == gateway_id))

    def serving(self, name: str) -> list[EngineState]:
        """Live engines that can serve this version name now."""
        return [engine for engine in self.engines() if engine.serves(name)]

    def wait_serving(self, name: str, timeout_s: float) -> list[EngineState]:
        """Wait until some live engine can serve the version.

        Raises:
            Unavailable: none could in time, the message says what each engine reports; or this process is to end.
        """
        deadline = time.monotonic() + timeout_s
        while not (ready := self.serving(name)):
            if time.monotonic() > deadline:
                said = [
                    f"{e.id} is {e.state}, {name} is {e.adapters.get(name, 'not known there')} {e.detail}".strip()
                    for e in self.engines()
                ]
                raise Unavailable(
                    f"no live engine serves {name} after {timeout_s:.0f} s: {'; '.join(said) or 'no engine is live'}"
                )
            if self._stopping.wait(0.2):
                raise Unavailable(f"no live engine serves {name} yet, and this process is asked to end; ask another")
        return ready

    def wait_applied(self, model: str, revision: int, timeout_s: float) -> list[str]:
        """Wait until every live gateway applies the revision; the ids of those that did.

        Raises:
            Late: some did not in time; the message names the stragglers.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            live = self.gateways()
            late = [g.id for g in live if g.applied.get(model, 0) < revision]
            late += live.unreadable  # what they apply is not known
            if not late:
                return [g.id for g in live]
            if time.monotonic() > deadline:
                raise Late(
                    f"{model} revision {revision} is written, but after {timeout_s:.0f} s these gateways do "
                    f"not apply it: {', '.join(late)}"
                )
            time.sleep(0.05)

    def _beat(self, table: sa.Table, state: EngineState | GatewayState) -> None:
        values = row_of(state, table)
        with self._db.writing() as connection:
            insert = self._db.insert(table).values(**values)
            connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=values))

    def _rows(self, table: sa.Table, live_only: bool) -> list[sa.RowMapping]:
        if live_only:
            return [row for row, age_s in self._aged(table) if age_s < STALE_AFTER_S]
        with self._db.reading() as connection:
            return list(connection.execute(sa.select(table).order_by(table.c.id)).mappings())

    def _aged(self, table: sa.Table) -> list[tuple[sa.RowMapping, float]]:
        """Every row that may be of one that lives, by id, and how many seconds ago it was heard of."""
        query = sa.select(table).where(table.c.at > self._clock() - _LOOKED_AT).order_by(table.c.id)
        with self._db.reading() as connection:
            rows = list(connection.execute(query).mappings())
        ages = self._ages[table.name].seen({row["id"]: row["at"] for row in rows}, self._clock())
        return [(row, ages[row["id"]]) for row in rows]
