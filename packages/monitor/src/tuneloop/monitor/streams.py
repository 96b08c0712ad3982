"""The last scores of a stream by their number: their times are those of clocks, which may have been ahead or behind.

The newest by time is only where the look begins. Numbers have no gaps but where retention took the oldest, and ids are
made of them, so that two look-ups tell as a rule.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuneloop.monitor.reference import score_id
from tuneloop.registry import Registry
from tuneloop.registry.nouns import WindowScore

_AT_ONCE = 64
_BEGIN = 4  # one of them may not be readable


def last_scores(registry: Registry, model: str, version: int, signal: str, limit: int) -> list[WindowScore]:
    """So many scores of a stream at most, up to its last, in order of their numbers."""

    def numbered(numbers: Iterable[int]) -> dict[int, WindowScore]:
        found = registry.episodes.scores_of([score_id(model, version, signal, number) for number in numbers])
        return {_number(score): score for score in found}

    newest = registry.episodes.scores(model, version=version, signal=signal, limit=_BEGIN)
    if not newest:
        return []
    last = max(map(_number, newest))
    held = numbered(range(max(0, last - limit + 1), last + 2))
    if last + 1 in held:  # a clock was ahead when that was judged which time calls the newest, or behind since
        while ahead := numbered(range(last + 1, last + 1 + _AT_ONCE)):
            last = max(ahead)
        held = numbered(range(max(0, last - limit + 1), last + 1))
    return [held[number] for number in sorted(held)][-limit:]


def _number(score: WindowScore) -> int:
    return int(score.detail["window"])
