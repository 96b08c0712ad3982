"""The gateway's line to the database: opened when it first answers, and a plain answer to whether it does.

Shared by the threads that read routes, beat the heart and store records; none of them is on the request path.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from tuneloop.registry import Registry
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.settings import RegistrySettings

log = logging.getLogger(__name__)


class Link:
    """Gives the registry, or `Unavailable`; logs once when that changes."""

    def __init__(
        self, settings: RegistrySettings, open_registry: Callable[[RegistrySettings], Registry] = Registry.open
    ) -> None:
        self.settings = settings
        self._open = open_registry
        self._registry: Registry | None = None
        self._lock = threading.Lock()
        self._up: bool | None = None
        self._answered_at = 0.0

    def up(self, within_s: float) -> bool:
        """Whether the last call succeeded, not longer than `within_s` ago."""
        return bool(self._up) and time.monotonic() - self._answered_at <= within_s

    @property
    def down(self) -> bool:
        """Whether the last call failed."""
        return self._up is False

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        """The open registry.

        Raises:
            Unavailable: the database does not answer, or refuses the connection.
        """
        try:
            yield self._opened()
        except Unavailable as error:
            self._says(up=False, why=str(error))
            raise
        except DBAPIError as error:
            if isinstance(error, DataError | IntegrityError):  # the database is there; these rows are the problem
                raise
            self._says(up=False, why=str(error.orig))
            raise Unavailable(f"the database refuses: {error.orig}") from error
        self._says(up=True)

    def close(self) -> None:
        """Close the connections."""
        if self._registry is not None:
            self._registry.close()

    def _opened(self) -> Registry:
        with self._lock:
            if self._registry is None:
                self._registry = self._open(self.settings)
            return self._registry

    def _says(self, *, up: bool, why: str = "") -> None:
        if up:
            self._answered_at = time.monotonic()
        if up == self._up:
            return
        if not up:
            log.error("the database does not answer; serving on with the last known routes: %s", why)
        elif self._up is False:
            log.warning("the database answers again")
        self._up = up
