"""A spot machine's notice: its provider says, some seconds before, that it takes the machine away.

The notice stops a run as SIGTERM does: the pass it is in ends, the state of the last whole step is written down, and
--resume goes on elsewhere. Asked every few seconds in a thread; what each provider answers is from its documentation:

- aws (two minutes): https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
- gcp (30 seconds): https://cloud.google.com/compute/docs/instances/create-use-preemptible
- azure (30 seconds at least): https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from tuneloop.train.stopping import StopFlag, Stopped

Provider = Literal["aws", "gcp", "azure"]
HOSTS: Mapping[Provider, str] = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
    "azure": "http://169.254.169.254",
}
POLL_S = 5.0
_TIMEOUT_S = 2.0
_TOKEN_S = 21_600  # the longest AWS gives
_NOT_FOUND, _UNAUTHORISED = 404, 401


@contextmanager
def stop_on_notice(
    flag: StopFlag, provider: Provider | None, say: Callable[[str], None], *, host: str = "", poll_s: float = POLL_S
) -> Iterator[None]:
    """Let the provider's notice set the flag while the block runs; that it cannot be asked is said, once."""
    if provider is None:
        yield
        return
    over = threading.Event()
    look = _Look(provider, host or HOSTS[provider])

    def watch() -> None:
        told = False
        while not over.is_set():
            try:
                notice = look.notice()
            except (OSError, ValueError) as error:
                if not told:
                    say(
                        f"warning: no spot notice of {provider} will be seen while {look.host} does not answer: {error}"
                    )
                told, notice = True, None
            if notice is not None:
                flag.stop(Stopped(f"stopped by a spot notice of {provider} ({notice}); nothing was published"))
                return
            over.wait(poll_s)

    watcher = threading.Thread(target=watch, name="spot", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class _Look:
    """One provider's metadata service."""

    def __init__(self, provider: Provider, host: str) -> None:
        self.host = host
        self._provider = provider
        self._token = ""

    def notice(self) -> str | None:
        """What it says, if it does.

        Raises:
            OSError: it does not answer.
            ValueError: it answers something else.
        """
        if self._provider == "aws":
            return self._aws()
        if self._provider == "gcp":
            path = "/computeMetadata/v1/instance/preempted"
            return "preempted" if self._get(path, {"Metadata-Flavor": "Google"}) == "TRUE" else None
        events = json.loads(self._get("/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"}) or "{}")
        found = [event for event in events.get("Events", ()) if event.get("EventType") == "Preempt"]
        return f"preempted, not before {found[0].get('NotBefore') or 'now'}" if found else None

    def _aws(self) -> str | None:
        try:
            said = self._get("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code != _UNAUTHORISED:
                raise
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            self._token = self._get("/latest/api/token", headers, method="PUT") or ""
            said = self._get("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})
        if said is None:
            return None
        action = json.loads(said)
        return f"{action['action']} at {action['time']}"

    def _get(self, path: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
        """The text of an answer; None where there is nothing of that name."""
        asked = urllib.request.Request(f"{self.host}{path}", headers=dict(headers), method=method)  # noqa: S310 (a setting's own address)
        try:
            with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:  # noqa: S310 (likewise)
                text: str = answer.read().decode().strip()
                return text
        except urllib.error.HTTPError as error:
            if error.code == _NOT_FOUND:
                return None
            raise
