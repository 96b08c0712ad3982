"""Times that a clock which was wrong has left behind: a reading that is said to end tomorrow holds up none of today's,
and one that is said to end before it began earns no level anew.

When it really ended is not known. It counts as ended when this process sees it first: what was answered before that
earns nothing, so that the false-alarm budget is spent once, and a monitor that is started again waits a little longer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from tuneloop.registry.nouns import WindowScore


class SetRight:
    """Ends readings whose end cannot be when they were first seen."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[str, datetime]] = {}  # stream → the reading, and when

    def __call__(self, score: WindowScore) -> WindowScore:
        """The reading, ended by now."""
        now, stream = self._clock(), (score.model, score.version, score.signal)
        if score.window_start <= score.window_end <= now:
            self._seen.pop(stream, None)
            return score
        known, at = self._seen.get(stream, ("", now))
        if known != score.id or at > now:
            self._seen[stream] = score.id, now
            at = now
        return score.model_copy(update={"window_start": min(score.window_start, at), "window_end": at})
