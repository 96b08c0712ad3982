"""Verdicts of the guards' workers: remembered by a digest of policy and text, because a conversation comes again with
every turn, and long texts not judged twice at once.

A worker goes on with a text though whoever asked has given up at the deadline; its verdict is remembered when it comes.
So a text that takes longer than the deadline is answered when it is asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from tuneloop.serve.gateway.guard_worker import Finding, Incoming
from tuneloop.serve.gateway.pool import Pool, TooLate

_REMEMBERED = 20_000  # verdicts; a hundred bytes or two for each finding
_MOST_FINDINGS = 16  # of such a verdict; of those with more few are
_LARGE_REMEMBERED = 32
_LONG_CHARS = 2_000  # shorter texts take milliseconds: nobody's wait for another's long one that was asked with them
Found: TypeAlias = tuple[Finding, ...]


class Verdicts:
    """The verdicts of one gateway; used on one event loop."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: OrderedDict[bytes, Found] = OrderedDict()
        self._large: OrderedDict[bytes, Found] = OrderedDict()
        self._coming: dict[bytes, asyncio.Future[object]] = {}  # of long texts, which nobody waited for to the end

    async def judge(self, policy: str, texts: Mapping[bytes, str], within_s: float) -> dict[bytes, Found]:
        """The verdict on each text, by digest; those that are not known a worker makes.

        Raises:
            Unavailable: they could not be judged, or not in time.
        """
        until = time.monotonic() + within_s
        await self._came(texts, within_s)
        found = {digest: known for digest in texts if (known := self.known(digest)) is not None}
        if unknown := {digest: text for digest, text in texts.items() if digest not in found}:
            found |= await self._ask(policy, unknown, max(0.0, until - time.monotonic()))
        return found

    def known(self, digest: bytes) -> Found | None:
        """An earlier verdict."""
        for known in (self._known, self._large):
            if (found := known.get(digest)) is not None:
                known.move_to_end(digest)
                return found
        return None

    def remember(self, digest: bytes, found: Found) -> None:
        """Keep a verdict, and let go of the one that was not asked for the longest."""
        large = len(found) > _MOST_FINDINGS
        known, most = (self._large, _LARGE_REMEMBERED) if large else (self._known, _REMEMBERED)
        known[digest] = found
        if len(known) > most:
            known.popitem(last=False)

    async def _came(self, digests: Collection[bytes], within_s: float) -> None:
        """Wait for verdicts that are coming since earlier."""
        coming = {self._coming[digest] for digest in digests if digest in self._coming}
        if coming and (await asyncio.wait(coming, timeout=within_s))[1]:
            raise TooLate("a worker is still at work on this text")

    async def _ask(self, policy: str, texts: Mapping[bytes, str], within_s: float) -> dict[bytes, Found]:
        try:
            answer = await self._pool.ask(Incoming(policy, tuple(texts.values())), within_s)
        except TooLate as error:
            if error.coming is not None:
                long = [digest for digest, text in texts.items() if len(text) >= _LONG_CHARS]
                self._coming |= dict.fromkeys(long, error.coming)
                error.coming.add_done_callback(partial(self._late, tuple(texts)))
            raise
        return self._all_of(tuple(texts), answer)

    def _late(self, digests: Sequence[bytes], answer: asyncio.Future[object]) -> None:
        for digest in digests:
            if self._coming.get(digest) is answer:
                del self._coming[digest]
        if not answer.cancelled() and answer.exception() is None:
            self._all_of(digests, answer.result())

    def _all_of(self, digests: Sequence[bytes], answer: object) -> dict[bytes, Found]:
        assert isinstance(answer, list)
        found: dict[bytes, Found] = dict(zip(digests, answer, strict=True))
        for digest, one in found.items():
            self.remember(digest, one)
        return found
