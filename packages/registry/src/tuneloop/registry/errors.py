"""Every error tuneloop raises on purpose, in one tree; the message tells the reader what to do next.

TuneloopError            something failed while doing what was asked            (exit code 1)
├── InvalidInput         what was given cannot be used as it is                 (2, also a ValueError)
├── NotFound             a name that leads nowhere                              (2, also a LookupError)
├── Refused              a gate or a policy says no                             (3, also a PermissionError)
├── Conflict             somebody else was first; read again and retry          (1, also a RuntimeError)
├── Unreadable           what is stored is damaged or of another version        (1, also a ValueError)
└── Unavailable          a part this one leans on does not answer               (1, also a ConnectionError)
    ├── DatabaseAway     the database does not                                  (1)
    └── Late             what was asked is written, and not all follow it yet   (1)
"""

from __future__ import annotations

from typing import ClassVar


class TuneloopError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class InvalidInput(TuneloopError, ValueError):
    """What was given (recipe, data, adapter, request, argument) cannot be used; nothing was changed."""

    exit_code = 2


class NotFound(TuneloopError, LookupError):
    """A model, version, request or episode of that name does not exist."""

    exit_code = 2


class Refused(TuneloopError, PermissionError):
    """A gate or a policy refuses what was asked; nothing was changed."""

    exit_code = 3


class Conflict(TuneloopError, RuntimeError):
    """A concurrent writer was first (lost compare-and-swap, lost lease); nothing was changed."""


class Unreadable(TuneloopError, ValueError):
    """Something stored (a row, a version's tag) is not what this version of tuneloop writes; the rest may be sound."""


class Unavailable(TuneloopError, ConnectionError):
    """A part this one leans on (database, MLflow, engine, gateway) does not answer or did not start."""


class DatabaseAway(Unavailable):
    """The database does not answer; what was under way may be tried again once it does."""


class Late(Unavailable):
    """What was asked is written and in force, but somebody (a gateway) does not follow it in time: do not ask again."""
