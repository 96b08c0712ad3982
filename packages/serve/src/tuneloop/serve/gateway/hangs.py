"""Engines that take connections and answer nothing, as a process that is stopped does: found by a question of its own.

An engine that has requests under way and begins none is asked for `/health`. Any answer will do, also an error or the
end of the connection: a server with a long prefill or a full queue gives one. Silence for `ANSWER_WITHIN_S` is a hang:
others are preferred until an answer comes. An engine that begins answers is never asked, and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from tuneloop.serve.gateway.load import Load

log = logging.getLogger(__name__)
LOOK_EVERY_S = 2.0
ANSWER_WITHIN_S = 5.0  # as long as an engine's agent waits


class Hangs:
    """Looks after the engines of one gateway; needs a running event loop from the start."""

    def __init__(self, load: Load, urls: Callable[[], Mapping[str, str]]) -> None:
        """`urls` gives where the live engines are, by id."""
        self._load = load
        self._urls = urls
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._looking = asyncio.create_task(self._look_for_ever())

    async def close(self) -> None:
        """Ask no more."""
        tasks = [self._looking, *self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            urls = self._urls()
            self._asking = {engine: task for engine, task in self._asking.items() if not task.done()}
            for engine in self._load.quiet() | self._load.hung:
                if engine not in urls:
                    self._load.hung.discard(engine)
                elif engine not in self._asking:
                    self._asking[engine] = asyncio.create_task(self._ask(engine, urls[engine]))

    async def _ask(self, engine: str, url: str) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await _answer(url)
        except TimeoutError:
            if engine not in self._load.hung:
                log.error("engine %s answers nothing, not even /health: others are preferred until it does", engine)
            self._load.hung.add(engine)
        else:
            if engine in self._load.hung:
                log.warning("engine %s answers again", engine)
            self._load.hung.discard(engine)


async def _answer(url: str) -> None:
    """Wait until whoever is there says anything, or ends or refuses the connection: requests find that themselves."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    writer: asyncio.StreamWriter | None = None
    try:
        port = parts.port or (443 if secure else 80)
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure or None)
        path, host = parts.path.rstrip("/"), parts.netloc.rpartition("@")[2]
        writer.write(f"GET {path}/health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        await reader.read(1)
    except TimeoutError:  # an OSError too
        raise
    except OSError:
        pass  # refused or broken off is an answer too: requests meet it themselves
    finally:
        if writer is not None:
            writer.transport.abort()
