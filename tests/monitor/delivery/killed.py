"""A program for test_kills.py: `killed.py HOME URL` prints at how many points a monitor was killed.

It does so twice: as the monitor is, in HOME/right, and with a sender that is broken on purpose, in HOME/broken, to show
that the test would see it.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[2]))

from monitor.delivery.post import as_they_are, end, open_episode, tell
from tuneloop.monitor.delivery.rounds import LEASE_S, Deliverer
from tuneloop.monitor.delivery.sending import Sending, trusted
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.registry import Registry
from tuneloop.registry.deliveries.outbox import Delivery, Outbox
from tuneloop.registry.errors import NotFound
from tuneloop.registry.settings import RegistrySettings

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
_READS = ("SELECT", "PRAGMA")
_ENOUGH_WHEN_BROKEN = 12  # the first request is among the points by then


class Points:
    """Counts what a monitor does, and kills its process at one point; 0: at none."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0

    def __call__(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def statement(self, *event: Any) -> None:
        """Before one that writes."""
        if not event[2].startswith(_READS):
            self()


def monitor(home: Path, now: datetime, at: int, noted_first: bool) -> None:
    """One monitor that sees a problem come and go, until it is done or killed."""
    points = Points(at)
    registry = Registry(RegistrySettings(home=home), clock=lambda: now)
    engine = registry.database.engine
    sa.event.listen(engine, "connect", _in_memory)
    sa.event.listen(engine, "before_cursor_execute", points.statement)
    sa.event.listen(engine, "commit", lambda _connection: points())
    _count(points, noted_first)
    made = Deliverer(
        registry, MonitorSettings(delivery_timeout_s=5.0), Metrics(), rng=random.Random(1), redact=as_they_are
    )
    try:
        episode = registry.episodes.get("ep1")
    except NotFound:
        episode = open_episode(registry)
    made.round(to_the_end=True)
    if episode.state != "resolved":
        end(registry, episode)
    made.round(to_the_end=True)
    os._exit(0)


def _in_memory(connection: Any, _record: Any) -> None:
    """SIGKILL leaves what was written to the system; a disk would only make this slow."""
    connection.execute("PRAGMA synchronous=OFF")


def _count(points: Points, noted_first: bool) -> None:
    send = Sending.send

    def counted(self: Sending, receiver: Any, page: Any) -> None:
        points()
        send(self, receiver, page)
        points()

    def noted(self: Outbox, found: Delivery, at: datetime, lease_s: float) -> bool:
        self.end(found.id, "sent", at)
        return True

    Sending.send = counted  # type: ignore[method-assign]
    if noted_first:
        Outbox.claim = noted  # type: ignore[method-assign]


def forked(work: Callable[[], None]) -> int:
    """What it ended with, in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(home: Path, url: str, noted_first: bool) -> int:
    """A monitor killed at the first point, at the second, … until one comes to its end."""
    home.mkdir()
    (home / "secret").write_text("key")
    for point in itertools.count(1):
        here = shutil.copytree(home.parent / "new", home / str(point))
        registry = Registry(RegistrySettings(home=here), clock=lambda: START)
        where = {"url": f"{url}/{point}", "secret_file": str(home / "secret")}
        tell(registry, {"kind": "webhook", "name": "ops", "examples": 0, **where})
        registry.close()
        ended = forked(partial(monitor, here, START, point, noted_first))
        if ended == 0:
            return point - 1
        if noted_first and point == _ENOUGH_WHEN_BROKEN:
            return point
        again = partial(monitor, here, START + timedelta(seconds=LEASE_S + 1), 0, noted_first)
        if ended != -signal.SIGKILL or forked(again) != 0:
            break
    raise SystemExit(f"point {point}: a monitor failed")


if __name__ == "__main__":
    folder, address = Path(sys.argv[1]), sys.argv[2]
    with Registry.open(RegistrySettings(home=folder / "new"), clock=lambda: START):
        pass  # the schema, to be copied
    trusted()
    print(main(folder / "right", f"{address}/right", False), main(folder / "broken", f"{address}/broken", True))
