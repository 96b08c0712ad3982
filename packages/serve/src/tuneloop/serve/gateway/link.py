"""The gateway's line to the database: opened when it first answers, and a plain answer to whether it does.

Shared by the threads that read routes, beat the heart and store records; none of them is on the request path.
Whatever keeps the database from being used comes out as `Unavailable` with its cause; rows that are at fault do not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from tuneloop.registry import Registry
from tuneloop.registry.errors import TuneloopError, Unavailable
from tuneloop.registry.settings import RegistrySettings

log = logging.getLogger(__name__)
OPEN_AGAIN_AFTER_S = 0.5  # opening costs a schema check: three threads that ask must not make three a poll
SAY_AGAIN_AFTER_S = 60.0  # a database that reads and refuses to write would else fill the log


class Link:
    """Gives the registry, or `Unavailable`; logs when that changes."""

    def __init__(
        self,
        settings: RegistrySettings,
        open_registry: Callable[[RegistrySettings], Registry] = Registry.open,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._open = open_registry
        self._clock = clock
        self._registry: Registry | None = None
        self._lock = threading.Lock()
        self._refusal = ""  # why it could not be opened
        self._open_again_at = 0.0
        self._up: bool | None = None
        self._said, self._say_again_at = "", 0.0
        self._muted = False  # the failure under way was not logged: neither is its end

    @property
    def down(self) -> bool:
        """Whether the last call failed."""
        return self._up is False

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        """The open registry.

        Raises:
            Unavailable: the database does not answer, refuses, or is not one that this code can use.
        """
        try:
            yield self._opened()
        except Unavailable as error:
            self._says(up=False, why=str(error))
            raise
        except SQLAlchemyError as error:
            if blames_rows(error):
                raise
            why = cause_of(error)
            self._says(up=False, why=why)
            raise Unavailable(f"the database refuses: {why}") from error
        self._says(up=True)

    def close(self) -> None:
        """Close the connections."""
        if self._registry is not None:
            self._registry.close()

    def _opened(self) -> Registry:
        with self._lock:
            if self._registry is None:
                if self._refusal and self._clock() < self._open_again_at:
                    raise Unavailable(self._refusal)
                try:
                    self._registry = self._open(self.settings)
                except Exception as error:
                    self._open_again_at = self._clock() + OPEN_AGAIN_AFTER_S
                    unforeseen = not isinstance(error, Unavailable)
                    self._refusal = f"the database cannot be opened: {cause_of(error)}" if unforeseen else str(error)
                    raise Unavailable(self._refusal) from error
            return self._registry

    def _says(self, *, up: bool, why: str = "") -> None:
        if up == self._up:
            return
        if not up:
            self._muted = why == self._said and self._clock() < self._say_again_at
            if not self._muted:
                self._said, self._say_again_at = why, self._clock() + SAY_AGAIN_AFTER_S
                log.error("the database does not answer as it should; serving on with what is known: %s", why)
        elif self._up is False and not self._muted:
            log.warning("the database answers again")
        self._up = up


def blames_rows(error: SQLAlchemyError) -> bool:
    """Whether the database is there and the rows of this call are the problem."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError)
    return isinstance(error, StatementError)  # a value that could not even be sent


def cause_of(error: BaseException) -> str:
    """One line on what went wrong, without the statement and its values, which may be what users wrote."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"an unreadable {error.title}: {where + ': ' if where else ''}{first['msg']}"
    told = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    text = str(told).strip().partition("\n")[0]
    return text if isinstance(told, TuneloopError) and text else f"{type(told).__name__}: {text}"
