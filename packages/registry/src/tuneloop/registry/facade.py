"""One object that holds every store of the registry, on one database and one MLflow."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tuneloop.registry.access.keys import Keys
from tuneloop.registry.access.leases import Leases
from tuneloop.registry.access.owners import Owners
from tuneloop.registry.access.tokens import Tokens
from tuneloop.registry.access.usage import Usage
from tuneloop.registry.audit import Audit
from tuneloop.registry.database import Database
from tuneloop.registry.deliveries.outbox import Outbox
from tuneloop.registry.deliveries.silences import Silences
from tuneloop.registry.episodes import Episodes
from tuneloop.registry.errors import NotFound, Unavailable
from tuneloop.registry.experiments.store import Experiments
from tuneloop.registry.fleet import Fleet
from tuneloop.registry.gates.store import Gates
from tuneloop.registry.nouns import Route, utc_now
from tuneloop.registry.policies import Policies
from tuneloop.registry.retraining.queue import RetrainingQueue
from tuneloop.registry.rollouts.store import Rollouts
from tuneloop.registry.routes.store import Routes
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.traffic import Traffic
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within

if TYPE_CHECKING:
    from tuneloop.registry.versions.store import Versions


class Registry:
    """Every store. Cheap to make; safe to share between threads, not between processes."""

    def __init__(
        self,
        settings: RegistrySettings,
        clock: Callable[[], datetime] = utc_now,
        steady: Callable[[], float] | None = None,
        *,
        begin: bool = True,
    ) -> None:
        if steady is None:
            steady = time.monotonic if clock is utc_now else lambda: clock().timestamp()
        self.settings = settings
        self.clock = clock
        self.database = Database(settings.database, begin=begin)
        self.audit = Audit(self.database)
        self.routes = Routes(self.database, clock)
        self.traffic = Traffic(self.database)
        self.fleet = Fleet(self.database, clock, steady)
        self.keys = Keys(self.database, clock)
        self.owners = Owners(self.database, clock)
        self.usage = Usage(self.database)
        self.leases = Leases(self.database, self.fleet, clock, steady)
        self.tokens = Tokens(self.database, clock)
        self.episodes = Episodes(self.database, clock)
        self.outbox = Outbox(self.database)
        self.silences = Silences(self.database, clock)
        self.rollouts = Rollouts(self.database, clock)
        self.policies = Policies(self.database, clock)
        self.retraining = RetrainingQueue(self.database, clock, self.policies)
        self.gates = Gates(self.database, clock, self.policies, self.routes, self.rollouts)
        self.experiments = Experiments(self.database, clock)

    @classmethod
    def open(
        cls,
        settings: RegistrySettings | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
        steady: Callable[[], float] | None = None,
        upgrade: bool = True,
        begin: bool = False,
    ) -> Self:
        """The registry the settings name; `upgrade` brings its schema to the newest revision first.

        Settings that are handed over say where a state is, or begins. Those that are found, in whatever folder somebody
        stands, name one that is there, unless `begin` says that it may begin here.

        `clock` is what this machine shows, `steady` a clock in seconds that nobody sets: left out, the machine's own,
        or `clock` itself where that is another one.

        Raises:
            InvalidInput: the settings are wrong.
            NotFound: there is no state where the settings that were found say, and it is not to begin there.
            Unavailable: the database does not answer.
        """
        registry = cls(settings or RegistrySettings.load(), clock, steady, begin=begin or settings is not None)
        if upgrade:
            registry.database.upgrade()
        return registry

    @cached_property
    def versions(self) -> Versions:
        """The versions in MLflow; the import takes about 2 s."""
        from tuneloop.registry.versions.store import Versions  # noqa: PLC0415 (a gateway never pays for MLflow)

        return Versions(self.settings, self.clock)

    def check_model(self, model: str) -> None:
        """Tell a model of which nothing is known yet from a name that is misspelt.

        Raises:
            NotFound: no route and no version has that name.
            Unavailable: it has no route, and MLflow does not say whether it has versions.
        """
        routes = self.routes.current_all()
        names = {*routes, *routes.unreadable}
        if model in names:
            return
        names |= set(mlflow_within(self, self.versions.models, LOOKUP_TIMEOUT_S))
        if model not in names:
            close = difflib.get_close_matches(model, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise NotFound(f"no model named {model!r}; {hint}`tuneloop models` lists them")

    def route(self, model: str) -> Route:
        """The route in force.

        Raises:
            NotFound: there is no such model, or it has no route yet.
        """
        try:
            return self.routes.current(model)
        except NotFound:
            with suppress(Unavailable):  # whether it has versions is not known then; that it has no route is
                self.check_model(model)
            raise

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
