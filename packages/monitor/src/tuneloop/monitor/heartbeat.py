"""The monitor's own dead man's switch: after each whole pass it asks for a URL whose owner notices when that ends.

Whatever the answer, the monitor goes on; nothing but the request itself leaves.
"""

from __future__ import annotations

import logging

import httpx

log = logging.getLogger("tuneloop.monitor")
_TIMEOUT_S = 5.0


class Heartbeat:
    """Asks for one URL; an empty one for nothing."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._heard = True

    def beat(self) -> bool:
        """Ask once; False when it was not taken, which is logged the first time."""
        if not self._url:
            return True
        said = ""
        try:
            with (
                httpx.Client(timeout=_TIMEOUT_S, trust_env=False, follow_redirects=False) as client,
                client.stream("GET", self._url) as answer,
            ):
                if not 200 <= answer.status_code < 300:
                    said = f"it answers {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            said = f"{type(error).__name__}: {error}".replace(self._url, "its address")
        if said and self._heard:
            log.warning("heartbeat_url does not take the heartbeat: %s", said)
        self._heard = not said
        return self._heard
