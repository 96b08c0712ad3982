"""Keeps a gateway's parts of shared limits, and what keys have spent, in step with the registry: a thread of its own.

While no key is limited it only counts the live gateways. Nothing on the request path waits for it but a request whose
gateway's part does not suffice while the others leave room, or whose key's spending has not been read yet: that one
waits for the next renewal, `RENEWAL_S` at most.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal

from tuneloop.registry import Registry
from tuneloop.registry.access.leases import Holder, Need
from tuneloop.registry.access.owners import owner_id
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import utc_now
from tuneloop.serve.gateway.admission.limits import Limits
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.on_loop import on_loop
from tuneloop.serve.gateway.snapshot import Snapshot

log = logging.getLogger(__name__)
EVERY_S = 1.0
PAUSE_S = 0.1  # between two renewals, however hurried
RENEWAL_S = 1.0
AWAY_AFTER_S = 5.0


class Sharing:
    """The thread, and the waiting for it."""

    def __init__(
        self,
        link: Link,
        gateway: str,
        limits: Limits,
        prices: Mapping[str, Price],
        snapshot: Callable[[], Snapshot | None],
        hurry: threading.Event,
        stored_until_s: Callable[[], float],
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Whoever cannot wait a second for the next renewal sets `hurry`.

        `stored_until_s` says, on `clock`, until when what has ended here is in the database.
        """
        self._link = link
        self._holder = Holder(gateway, secrets.token_hex(4))
        self._limits = limits
        self._prices = prices
        self._snapshot = snapshot
        self._stored_until_s = stored_until_s
        self._now = now
        self._clock = clock
        self._renewed = asyncio.Event()
        self._has_leases = False
        self._shared_at = clock()
        self._hurry = hurry
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="gateway-limits", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End; what this gateway let through stays on the registry's account for a minute."""
        self._stopping.set()
        self._hurry.set()
        self._thread.join(timeout=5.0)

    async def renewal(self) -> None:
        """Wait for the next renewal that knows what is needed now, `RENEWAL_S` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RENEWAL_S):
                await self._renewed.wait()

    def step(self, call: Callable[[Callable[[], None]], None]) -> None:
        """One look: tell what is needed, learn what is given; `call` runs its argument on the event loop.

        Raises:
            Unavailable: the database does not answer.
        """
        needs: dict[str, dict[str, Need]] = {}
        waiting = self._renewed

        def look() -> None:
            needs.update(self._limits.needs())
            self._renewed = asyncio.Event()

        call(look)
        self._tell_spending(call)  # of whoever waits for this renewal too
        with self._link.registry() as registry:
            if needs or self._has_leases:
                shared = registry.leases.renew(self._holder, needs)
                self._has_leases = bool(needs)
            else:
                shared = registry.leases.nothing(self._holder)

        def learn() -> None:
            self._limits.learn(shared)
            waiting.set()

        call(learn)
        self._shared_at = self._clock()

    def _tell_spending(self, call: Callable[[Callable[[], None]], None]) -> None:
        snapshot = self._snapshot()
        keys = snapshot.keys if snapshot is not None else ()
        budgets = [key.id for key in keys if key.limits.budget_usd_per_month is not None]
        owners = {
            key.owner
            for key in keys
            if key.owner_limits is not None and key.owner_limits.budget_usd_per_month is not None
        }
        if budgets or owners:
            # Asked before it reads: what is stored from here on may be missed.
            read_s = min(self._clock(), self._stored_until_s())
            with self._link.registry() as registry:
                spent = self._spent(registry, budgets) | self._spent_by(registry, owners)
            call(lambda: self._limits.learn_spending(spent, read_s))

    def _spent(self, registry: Registry, keys: list[str]) -> dict[str, Decimal]:
        """What keys spent this month; what was asked of a model without a price has none."""
        spent = dict.fromkeys(keys, Decimal(0))
        for used in registry.usage.month(self._now(), keys=keys):
            if (price := self._prices.get(used.model)) is not None:
                spent[used.api_key] += price.of(used.prompt_tokens, used.completion_tokens)
        return spent

    def _spent_by(self, registry: Registry, owners: Collection[str]) -> dict[str, Decimal]:
        """What all keys of owners spent this month, revoked ones too."""
        spent = {owner_id(owner): Decimal(0) for owner in owners}
        for owner, used in registry.usage.month_of_owners(self._now(), owners) if owners else ():
            if (price := self._prices.get(used.model)) is not None:
                spent[owner_id(owner)] += price.of(used.prompt_tokens, used.completion_tokens)
        return spent

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.step(self._call)
            except Unavailable:  # the link has logged it
                self._perhaps_away()
            except Exception:
                log.exception("sharing the limits of keys failed; they are kept as they were known last")
                self._perhaps_away()
            self._hurry.wait(EVERY_S)
            self._stopping.wait(PAUSE_S)
            self._hurry.clear()

    def _perhaps_away(self) -> None:
        if self._clock() - self._shared_at > AWAY_AFTER_S:
            with suppress(RuntimeError):  # the loop has ended
                self._call(self._limits.unshared)

    def _call(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        on_loop(self._loop, call)
