"""Corrections that come once the window of their answer is judged: each is looked at once, with the window that is
judged next.

A window's score keeps which of its answers were corrected by then, and which of earlier windows it looked at. Costs, a
window: the feedback of the answers of LOOK_BACK windows, MOST answers at most, and the records of those corrected late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tuneloop.monitor.reference import Reference
from tuneloop.monitor.signals import BAD_CORRECTIONS
from tuneloop.monitor.streams import last_scores
from tuneloop.registry import Registry
from tuneloop.registry.corrections import corrects, wording
from tuneloop.registry.nouns import Feedback, RequestRecord, WindowScore

LOOK_BACK = 64  # windows; what is corrected after so many more is looked at by none
MOST = 4_000  # answers of theirs, the newest: windows may be large
SEEN, SEEN_LATE = "corrected", "corrected_late"  # of a score: ids of its own answers, and of earlier windows'
LOOKED_UNTIL = "looked_until"  # of a score: by when what was looked at was said


@dataclass(frozen=True)
class LateCorrections:
    """What came too late for its window, and what of the reference it is held against."""

    window: Sequence[RequestRecord] = ()  # of earlier windows; no judgement has looked at their corrections
    reference: Sequence[RequestRecord] = ()  # corrected late too, and within the time the oldest of `window` has had
    texts: Mapping[str, str] = field(default_factory=dict)  # request id → its newest correction, of `window`
    until: datetime | None = None  # by when what is looked at was said, in time or late; None: nothing is looked at


def late_corrections(
    registry: Registry,
    model: str,
    version: int,
    index: int,
    reference: Reference,
    given: Mapping[str, Sequence[Feedback]],
    late: frozenset[str],
    now: datetime,
) -> LateCorrections:
    """What the judgement of the `index`th window has to look at besides its own.

    Args:
        registry, model, version, index: whose window. reference: what it is held against.
        given: the feedback of the reference's answers, by request. late: ids of the reference's that were corrected
            later than the window's could be (`comparison.corrected_late`).
        now: by when what is looked at was said.
    """
    judged = last_scores(registry, model, version, BAD_CORRECTIONS, LOOK_BACK + 1)
    unseen = _unseen([score for score in judged if int(score.detail["window"]) < index])
    said = registry.traffic.feedback_for(unseen)
    texts = {
        request_id: found[-1]
        for request_id, items in said.items()
        if (found := [text for item in items if item.at <= now and (text := wording(item)) is not None])
    }
    held = registry.traffic.held(list(texts))
    window = [record for record in held if record.question]
    if not window:
        return LateCorrections(until=now)
    longest = now - window[0].at
    against = [
        record
        for record in reference.records
        if record.id in late
        and min(item.at for item in given.get(record.id, ()) if corrects(item)) - record.at <= longest
    ]
    return LateCorrections(window, against, texts, now)


def _unseen(judged: Sequence[WindowScore]) -> list[str]:
    """Answers of judged windows whose corrections no judgement has looked at; earlier releases kept none of it."""
    kept = [score for score in judged if SEEN in score.detail]
    seen = {request_id for score in kept for what in (SEEN, SEEN_LATE) for request_id in score.detail.get(what, ())}
    ids = [request_id for score in reversed(kept) for request_id in score.request_ids]
    return [request_id for request_id in ids[:MOST] if request_id not in seen]
