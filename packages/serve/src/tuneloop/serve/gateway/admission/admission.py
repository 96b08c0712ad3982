"""What a request passes before an engine is picked for it: its key's limits, then its turn."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tuneloop.registry.nouns import ApiKey
from tuneloop.serve.gateway.admission.estimate import tokens_of
from tuneloop.serve.gateway.admission.limits import Limits, Told
from tuneloop.serve.gateway.admission.sharing import Sharing
from tuneloop.serve.gateway.admission.turns import Shed, Turns
from tuneloop.serve.gateway.body import Ask
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.settings import GatewaySettings
from tuneloop.serve.gateway.snapshot import Snapshot


class Admission:
    """Lets requests in, and takes back what they held; one for each event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        link: Link,
        snapshot: Callable[[], Snapshot | None],
        refused: Callable[[str, Told], None],
        shed: Callable[[Shed], None],
        waited: Callable[[float], None],
        stored_until_s: Callable[[], float],
    ) -> None:
        """`refused` hears of key and limit, `shed` why nobody waits, `waited` how many seconds somebody did.

        `stored_until_s` says, on the monotonic clock, until when what has ended here is in the database.
        """
        self._settings = settings
        self._waited = waited
        self.turns = Turns(settings.max_in_flight, settings.max_waiting, settings.queue_timeout_s, shed)
        hurry = threading.Event()
        self._limits = Limits(settings.prices, settings.reserve_tokens, refused, hurry.set)
        self.sharing = Sharing(
            link, settings.effective_id, self._limits, settings.prices, snapshot, hurry, stored_until_s
        )

    @property
    def is_shared(self) -> bool:
        """Whether this gateway's parts of limits are as the registry has them."""
        return not self._limits.gateways.away

    @property
    def gateways(self) -> int:
        """How many gateways share the limits, this one included."""
        return self._limits.gateways.live

    async def enter(self, exchange: Exchange, key: ApiKey, ask: Ask, model: str) -> None:
        """Let a request in, at once or when its turn comes; `leave` must follow, whatever becomes of it.

        Raises:
            ApiError: 429, a limit of its key; 403, its budget cannot be kept; 503, too many wait.
        """
        limited = not (key.owner_limits is None and key.limits.are_none)
        if limited and not self._limits.admit(exchange, key, ask, model, at_last=False):
            await self.sharing.renewal()
            self._limits.admit(exchange, key, ask, model)
        exchange.turn_began = self.turns.enter()
        if exchange.turn_began is None:
            arrived_ms = exchange.elapsed_ms()
            cost = tokens_of(ask, self._settings.reserve_tokens)
            exchange.turn_began = await self.turns.wait(key.id, key.limits.priority, cost)
            self._waited((exchange.elapsed_ms() - arrived_ms) / 1e3)

    async def count(self, key: ApiKey) -> None:
        """Let in a request that no engine is asked for.

        Raises:
            ApiError: 429, its key has too many within a minute.
        """
        limited = not (key.owner_limits is None and key.limits.are_none)
        if limited and not self._limits.count(key, at_last=False):
            await self.sharing.renewal()
            self._limits.count(key)

    def leave(self, exchange: Exchange) -> None:
        """A request has ended, or was not let in."""
        if exchange.turn_began is not None:
            self.turns.leave(exchange.turn_began)
        if exchange.taken:
            self._limits.settle(exchange)
