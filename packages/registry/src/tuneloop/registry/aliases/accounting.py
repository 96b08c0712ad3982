"""What MLflow's aliases should say, and whether what they say is ours; pure.

An alias that says what some revision since the last accounting said is our own mirror, late or half done. One that says
anything else was moved by somebody in MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tuneloop.registry.nouns import Route

Alias = Literal["champion", "challenger"]
NAMES: tuple[Alias, ...] = ("champion", "challenger")  # all others in MLflow are their owners' business
Pending = Literal["", "revert", "adopt", "report"]


@dataclass(frozen=True)
class Aliases:
    """The version each alias names; None: it is not set."""

    champion: int | None
    challenger: int | None

    @classmethod
    def of(cls, route: Route) -> Aliases:
        """`champion` for the stable arm, `challenger` for the last one with a share beside it."""
        challengers = [arm.version for arm in route.arms[:-1] if arm.weight_bp > 0]
        return cls(route.champion, challengers[-1] if challengers else None)

    @classmethod
    def found(cls, aliases: Mapping[str, int]) -> Aliases:
        """As MLflow holds them."""
        return cls(aliases.get("champion"), aliases.get("challenger"))

    def get(self, alias: Alias) -> int | None:
        """What one of them names."""
        return self.champion if alias == "champion" else self.challenger


@dataclass(frozen=True)
class Accounted:
    """What the aliases of a model were last accounted to hold, and what is still to be done about it."""

    aliases: Aliases
    revision: int  # of the route at that time
    pending: Pending
    token: int


@dataclass(frozen=True)
class Move:
    """An alias that somebody moved in MLflow."""

    alias: Alias
    was: int | None  # what the route says
    now: int | None


@dataclass(frozen=True)
class Settled:
    """The aliases say what the route says."""

    back: tuple[Move, ...] = ()  # what was moved back for this revision and is not on record yet


@dataclass(frozen=True)
class LateMirror:
    """Our own mirror is late or half done: it has to be moved on."""


@dataclass(frozen=True)
class Moved:
    """Somebody moved them, and nobody has seen it yet."""

    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Unfinished:
    """A move was seen, and what was to be done about it has not been done."""

    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Reported:
    """A move was seen and reported; by policy it is left."""


def compare(
    seen: Aliases, newest: Route, ours: Sequence[Route], accounted: Accounted | None
) -> Settled | LateMirror | Moved | Unfinished | Reported:
    """What the aliases of one model show.

    Args:
        seen: as MLflow holds them; read before the route was.
        newest: the route in force.
        ours: the revisions whose mirror may be the one that is seen: all since the last accounting.
        accounted: None, if nobody ever looked.
    """
    wanted = Aliases.of(newest)
    if seen == wanted:
        dealt_with = accounted is not None and accounted.pending in ("revert", "adopt")
        if accounted is None or not dealt_with or accounted.revision != newest.revision:
            return Settled()
        return Settled(_moves(accounted.aliases, wanted))
    if accounted is not None and accounted.pending and seen == accounted.aliases:
        if accounted.pending != "report":
            return Unfinished(_moves(seen, wanted))
        return Reported() if accounted.revision == newest.revision else LateMirror()
    known = [Aliases.of(route) for route in (*ours, newest)]
    known += [accounted.aliases] if accounted is not None else [Aliases(None, None)]
    foreign = [alias for alias in NAMES if seen.get(alias) not in {one.get(alias) for one in known}]
    return Moved(tuple(move for move in _moves(seen, wanted) if move.alias in foreign)) if foreign else LateMirror()


def _moves(seen: Aliases, wanted: Aliases) -> tuple[Move, ...]:
    return tuple(
        Move(alias, wanted.get(alias), seen.get(alias)) for alias in NAMES if seen.get(alias) != wanted.get(alias)
    )
