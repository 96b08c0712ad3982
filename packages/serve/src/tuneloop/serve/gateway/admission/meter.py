"""What one API key uses on this gateway, and how much of its limits this gateway may give it; pure but for its clock.

A part of a shared limit (`registry.access.leases`) is what may be used here within a minute, or at once. It shrinks
before the registry is told so, and grows once the registry has said so: the parts of all gateways never exceed a limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from tuneloop.registry.access.leases import Need, floor_of
from tuneloop.registry.access.limits import KeyLimits
from tuneloop.serve.gateway.admission.window import Window

_RECENT_S = 2  # what came in it may come again before the next renewal
_HEADROOM_PARTS = 8  # of a limit, kept ready for more
_NOTHING = Decimal(0)


@dataclass(slots=True)
class Gateways:
    """What is known of the others."""

    live: int = 1
    away: bool = False  # the registry has not answered for a while: everybody keeps to an even share


@dataclass(slots=True)
class Part:
    """Of one kind of limit."""

    held: int | None = None  # None: the floor
    others: int = 0  # what the other gateways hold
    refused: int = 0  # the largest that did not fit since the last renewal

    def of(self, limit: int, there: Gateways) -> int:
        """How much may be used here now."""
        if there.away:
            return max(1, limit // max(1, there.live))
        if there.live <= 1 and not self.others:
            return limit
        return floor_of(limit, there.live) if self.held is None else min(self.held, limit)

    def reach(self, limit: int, there: Gateways) -> int:
        """How much might be used here, were all that is free taken."""
        own = self.of(limit, there)
        if there.away or there.live <= 1:
            return own
        others = self.others or floor_of(limit, there.live) * (there.live - 1)
        return max(own, limit - others)

    def need(self, limit: int, used: int, recent: int, there: Gateways) -> Need:
        """What the registry is told; from here on no more than that is let through until it answers."""
        headroom = max(self.refused, recent, limit // _HEADROOM_PARTS, 1)
        held = self.of(limit, there)
        if there.live > 1 and not there.away:
            self.held = held = max(min(held, used + headroom), floor_of(limit, there.live))
        self.refused = 0
        return Need(limit, used, held, headroom)


@dataclass(slots=True)
class Meter:
    """Of one key."""

    limits: KeyLimits
    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    open: int = 0
    parts: Mapping[str, Part] = field(default_factory=lambda: {k: Part() for k in ("requests", "tokens", "streams")})
    mean_s: float = 0.0  # how long its requests take
    spent: Decimal = _NOTHING  # this month, on record
    reserved: Decimal = _NOTHING  # by what is under way
    unseen: deque[tuple[int, Decimal]] = field(default_factory=deque)  # second → what, until it is on record
    unseen_sum: Decimal = _NOTHING

    def is_idle(self, now_s: float) -> bool:
        """Whether nothing of it has to be remembered here."""
        if self.open or self.unseen or any(part.refused for part in self.parts.values()):
            return False
        return not self.requests.used(now_s) and not self.tokens.used(now_s)

    @property
    def owed(self) -> Decimal:
        """This month's money: on record, on its way there, and reserved."""
        return self.spent + self.reserved + self.unseen_sum

    def spend(self, now_s: float, cost: Decimal) -> None:
        """Something was spent that is not on record yet."""
        second = int(now_s)
        before = self.unseen.pop()[1] if self.unseen and self.unseen[-1][0] == second else _NOTHING
        self.unseen.append((second, before + cost))
        self.unseen_sum += cost

    def on_record(self, spent: Decimal, until_s: float) -> None:
        """What is on record, and until when what was spent here is among it."""
        self.spent = spent
        while self.unseen and self.unseen[0][0] + 1 <= until_s:
            self.unseen_sum -= self.unseen.popleft()[1]

    def needs(self, now_s: float, there: Gateways) -> dict[str, Need]:
        """Of each limit that is shared."""
        limits, requests, tokens = self.limits, self.requests, self.tokens
        kinds = (
            ("requests", limits.requests_per_minute, requests.used(now_s), requests.since(now_s, _RECENT_S)),
            ("tokens", limits.tokens_per_minute, tokens.used(now_s), tokens.since(now_s, _RECENT_S)),
            ("streams", limits.streams, self.open, 0),
        )
        return {
            kind: self.parts[kind].need(limit, used, recent, there)
            for kind, limit, used, recent in kinds
            if limit is not None
        }
