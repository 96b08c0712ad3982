"""The controller: goes on with every open rollout, takes the steps of bandits that declared how often, watches MLflow's
aliases, takes out of the routes what a change that was killed has left staged, ends registrations that were broken off,
and deletes what is older than retention policies allow. Start as many as you like, anywhere.

One controller at a time holds a rollout's lease, and whatever it writes stands behind the lease's fencing token: killed
at any point, the next one finds each step written once or not at all. A look at a rollout reads the records since its
version got a share, and may take a fifth of the time.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

# MLflow imports this in a thread of its own when it is first asked, and until that is done a query in another thread
# may find it half there.
import sqlalchemy.orm  # noqa: F401

from tuneloop.registry.aliases.watch import AliasWatch
from tuneloop.registry.errors import Conflict, TuneloopError, Unavailable
from tuneloop.registry.experiments.stepping import Stepping
from tuneloop.registry.facade import Registry
from tuneloop.registry.retention import LOOK_EVERY_S as RETENTION_EVERY_S
from tuneloop.registry.retention import Retention
from tuneloop.registry.rollouts.advancing import go_on
from tuneloop.registry.rollouts.rollout import Rollout, RolloutState
from tuneloop.registry.routes.abandoned import Abandoned
from tuneloop.registry.settings import ControllerSettings
from tuneloop.registry.versions.left_behind import LOOK_EVERY_S, BrokenOff

LEASE_S = 15.0  # a controller that dies holds its rollouts up for so long
LOOK_COST = 5  # a look takes at most a fifth of the time
_RENEWALS_PER_LEASE = 3
_END_S = 10.0  # for what is under way when it is asked to stop; what takes longer, the next controller finishes
_log = logging.getLogger(__name__)


class Controller:
    """Drives rollouts under leases, bandits, the alias watch and retention."""

    def __init__(
        self, registry: Registry, settings: ControllerSettings | None = None, *, lease_s: float = LEASE_S
    ) -> None:
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._registry = registry
        self._settings = settings or ControllerSettings()
        self._lease_s = lease_s
        self._watch = AliasWatch(registry)
        self._abandoned = Abandoned(registry)
        self._broken_off = BrokenOff(registry)
        self._retention = Retention(registry)
        self._stepping = Stepping(registry, self.owner)
        self._told: dict[str, str] = {}  # what was looked at → what was last logged of it
        self._held: dict[str, Rollout] = {}

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Rollouts go on side by side: one that waits for an engine holds up no other."""
        drivers: dict[str, threading.Thread] = {}
        while not stop.is_set():
            drivers = {what: driver for what, driver in drivers.items() if driver.is_alive()}
            self._survived("rollouts", partial(self._start_missing, drivers, stop))
            stop.wait(self._settings.every_s)
        deadline = time.monotonic() + _END_S
        for driver in drivers.values():
            driver.join(max(0.0, deadline - time.monotonic()))
        self.release()

    def turn(self, stop: threading.Event | None = None) -> None:
        """One look at everything, in this thread; `stop` ends a deletion by age, which may take hours."""
        for rollout in self._running():
            self._guarded(rollout.id, partial(self.look, rollout.id))
        self._step_bandits()
        self._guarded("aliases", self._watch.turn)
        self._guarded("staged", self._abandoned.turn)
        self._guarded("registrations", self._broken_off.turn)
        self._guarded("retention", partial(self._retention.turn, stop))

    def look(self, rollout_id: str) -> None:
        """Go on with one rollout if it runs and nobody else holds it: at most one change of the route.

        Raises:
            Conflict: somebody changed the route or the rollout meanwhile; the next look sees what.
            Unavailable: the database is away; or a gateway is late to follow a change, which is written.
        """
        held = self._registry.rollouts.claim(rollout_id, self.owner, self._lease_s)
        if held is None:
            self._held.pop(rollout_id, None)
            return
        self._held[rollout_id] = held
        with self._kept(held):
            go_on(self._registry, held, controller=self.owner)

    def release(self) -> None:
        """Let others go on at once with what this one holds."""
        for held in list(self._held.values()):
            self._guarded(held.id, partial(self._registry.rollouts.release, held))
        self._held.clear()

    def _start_missing(self, drivers: dict[str, threading.Thread], stop: threading.Event) -> None:
        """A thread for each watch and each running rollout that has none, or whose last one an error ended."""
        watches = (
            ("aliases", self._watching),
            ("bandits", self._stepping_bandits),
            ("registrations", self._ending_registrations),
            ("retention", self._applying_retention),
        )
        for what, watching in watches:
            if what not in drivers:
                drivers[what] = self._driver(what, partial(watching, stop))
        for rollout in self._running():
            if rollout.id not in drivers:
                drivers[rollout.id] = self._driver(rollout.id, partial(self._driving, rollout.id, stop))

    def _driver(self, what: str, act: Callable[[], None]) -> threading.Thread:
        return _started(what, partial(self._survived, what, act))

    def _running(self) -> list[Rollout]:
        found: list[Rollout] = []

        def look() -> None:
            rows = self._registry.rollouts.all(states={RolloutState.RUNNING})
            self._registry.database.tell(rows.unreadable)
            found.extend(rows)

        self._guarded("rollouts", look)
        return found

    def _driving(self, rollout_id: str, stop: threading.Event) -> None:
        while not stop.is_set():
            looked = time.monotonic()
            self._guarded(rollout_id, partial(self.look, rollout_id))
            if rollout_id not in self._held:  # over, paused or another's: `run` starts anew when there is work
                return
            stop.wait(max(self._settings.every_s, LOOK_COST * (time.monotonic() - looked)))

    def _step_bandits(self) -> None:
        found: list[str] = []
        self._guarded("bandits", lambda: found.extend(self._stepping.stepping()))
        for experiment_id in found:
            look = partial(self._stepping.look, experiment_id)
            self._survived(experiment_id, partial(self._guarded, experiment_id, look))

    def _stepping_bandits(self, stop: threading.Event) -> None:
        while not stop.is_set():
            looked = time.monotonic()
            self._step_bandits()
            stop.wait(max(self._settings.every_s, LOOK_COST * (time.monotonic() - looked)))

    def _watching(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._guarded("aliases", self._watch.turn)
            self._guarded("staged", self._abandoned.turn)
            stop.wait(self._watch.pause_s(self._settings.aliases_every_s))

    def _ending_registrations(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._guarded("registrations", self._broken_off.turn)
            stop.wait(LOOK_EVERY_S)

    def _applying_retention(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._guarded("retention", partial(self._retention.turn, stop))
            stop.wait(RETENTION_EVERY_S)

    def _guarded(self, what: str, act: Callable[[], None]) -> None:
        """Do it; what hinders it is said once, and tried again at the next look."""
        try:
            act()
        except Conflict as error:
            _log.info("%s: %s", what, error)
        except TuneloopError as error:
            if self._told.get(what) != str(error):
                _log.warning("%s: %s", what, error)
            self._told[what] = str(error)
        else:
            self._told.pop(what, None)

    def _survived(self, what: str, act: Callable[[], None]) -> None:
        """Do it; an error that nobody foresaw ends that alone, and is logged with where it came from, once."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 (whatever it is, the others go on)
            if self._told.get(what) != repr(error):
                _log.exception("%s: an error nobody foresaw; it is tried again", what)
            self._told[what] = repr(error)

    @contextmanager
    def _kept(self, held: Rollout) -> Iterator[None]:
        """Renew the lease while the block runs: an engine may take minutes to load a version.

        A lease that cannot be renewed stops nothing here: the fence refuses what is written without one.
        """
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(self._lease_s / _RENEWALS_PER_LEASE):
                try:
                    self._registry.rollouts.renew(held, self._lease_s)
                except Unavailable as away:
                    _log.warning("%s: its lease cannot be renewed: %s", held.id, away)
                except Conflict:  # over or lost, which the block finds out by itself
                    return

        keeper = _started(f"lease-{held.id}", renew)
        try:
            yield
        finally:
            ended.set()
            keeper.join()


def _started(name: str, act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, name=name, daemon=True)
    thread.start()
    return thread
