"""How long the monitor needs the texts of a champion: what a retention policy that is set should leave it.

All windows of a champion are held against its first requests, so that each day it serves needs another day of text; and
a window has to fill and be judged before its own text goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from tuneloop.registry.deliveries.receivers import EVERY_MODEL
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import WindowScore, version_name
from tuneloop.registry.retention_policy import current_retention

_ANCHOR = "prompt_drift"  # every window that the monitor judges has a score of it
_RECENT = 10  # windows looked at for how long one takes
_DAY = timedelta(days=1)


def warnings_of(registry: Registry, subject: str) -> Iterator[str]:
    """What the policy in force for a model, or for every other, takes from the windows that the monitor judges now,
    with how many days would suffice.

    Raises:
        Unreadable: the policy cannot be read.
    """
    current = current_retention(registry.database)
    days = current.of(subject).longest_text_days
    if days is None:
        return
    for model, route in sorted(registry.routes.current_all().items()):
        its_own = model in current.by_model or model in current.unreadable
        if model != subject and (subject != EVERY_MODEL or its_own):
            continue
        judged = registry.episodes.scores(model, version=route.champion, signal=_ANCHOR, limit=_RECENT)
        enough = _days(judged, registry.clock())
        if enough > days:
            yield (
                f"texts of {model} go after {days} days, and then no window of {version_name(model, route.champion)} "
                f"is judged: they are held against its first requests. {enough} days suffice today, and one more for "
                "each day that it serves on; or promote a version before (docs/serving.md, `Deletion by age`)"
            )


def _days(judged: list[WindowScore], now: datetime) -> int:
    """Days of text that the next window of these needs until it is judged; 0 where none tells its reference."""
    told = [(score, begun) for score in judged if (begun := score.detail.get("reference", {}).get("from"))]
    if not told:
        return 0
    first = min(datetime.fromisoformat(begun) for _, begun in told)
    fills = max(score.at - score.window_start for score, _ in told)
    return (now - first + fills) // _DAY + 1
