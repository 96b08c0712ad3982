"""Champions whose requests are recorded without text (`record_text = "none"`), or whose text has gone by its age: no
window of theirs can be judged, and looking for one again in each pass would go through everything since the last.

What was recorded with text before is judged first. Then the newest few records alone are looked at, until there is text
again; what arrives late with text meanwhile waits till then, or till the monitor is started anew.
"""

from __future__ import annotations

import logging

from tuneloop.registry import Registry
from tuneloop.registry.nouns import version_name
from tuneloop.registry.traffic import ANSWERED

log = logging.getLogger("tuneloop.monitor")
_FEW = 20  # of the newest; one with text among them is text


class Textless:
    """Remembers of whom nothing is left to be judged."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._through: set[tuple[str, int]] = set()
        self._said: set[tuple[str, int]] = set()

    def has_nothing_left(self, model: str, version: int) -> bool:
        """Whether the newest answers are without text, and everything before them was gone through."""
        if (model, version) in self._through and not is_textless(self._registry, model, version):
            self._through.discard((model, version))
        return (model, version) in self._through

    def gone_through(self, model: str, version: int) -> bool:
        """After a look that found no whole window: whether that is for want of text."""
        key = (model, version)
        if not is_textless(self._registry, model, version):
            self._said.discard(key)
            return False
        self._through.add(key)
        if key not in self._said:
            self._said.add(key)
            log.warning("%s", without_text(model, version))
        return True


def is_textless(registry: Registry, model: str, version: int) -> bool:
    """Whether the newest answers of a version are on record without text."""
    until = registry.clock()  # what a clock that was ahead has stamped says nothing yet
    newest = registry.traffic.window(model, until=until, version=version, newest=_FEW)
    answered = [record for record in newest if record.status == ANSWERED]
    return bool(answered) and not any(record.question for record in answered)


def without_text(model: str, version: int) -> str:
    """What a model waits for then."""
    return (
        f"the newest answers of {version_name(model, version)} are on record, all without text: no window is judged "
        "(docs/monitoring.md, `Without text`); gateways keep text unless `record_text` is none, and until "
        "`tuneloop retention` says it goes"
    )
