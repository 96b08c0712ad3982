"""Personal data out of the examples of a page, by a process that ends when it is done.

Records are redacted before they are stored; a page leaves for somebody else's servers, so it is done again here, also
for what an older tuneloop stored. A text that cannot be redacted is not sent. The process costs some 3 s and the 120 MB
that the monitor does not keep; what it said is remembered for the other receivers and for the next attempt.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

log = logging.getLogger("tuneloop.monitor.delivery")
NOT_SHOWN = "(not shown: it could not be redacted)"
_REMEMBERED = 256
_WORK = """
import json, sys
from tuneloop.registry.redaction import redact
print(json.dumps([redact(text).text for text in json.load(sys.stdin)]))
"""


class Redactor:
    """Redacts texts; safe to share between threads."""

    def __init__(self, timeout_s: float = 60.0) -> None:
        self._timeout_s = timeout_s
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The texts without personal data, in their order."""
        with self._lock:
            if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
                for text, said in zip(new, self._redacted(new), strict=True):
                    self._known[text] = said
            found = [self._known[text] for text in texts]
            for text in [text for text in self._known if self._known[text] == NOT_SHOWN]:
                del self._known[text]  # the next attempt tries again
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return found

    def _redacted(self, texts: list[str]) -> list[str]:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _WORK],
                input=json.dumps(texts),
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
                check=True,
            )
            said: list[str] = json.loads(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            log.error("examples are left out of pages: redaction failed: %s", type(error).__name__)
            return [NOT_SHOWN] * len(texts)
        return said if len(said) == len(texts) else [NOT_SHOWN] * len(texts)
