"""What a window is judged by, and what is said of it: values, without a test of their own.

A judgement without enough data says so with its reason; it is never a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from tuneloop.monitor.detectors import Outcome
from tuneloop.monitor.late_corrections import LateCorrections
from tuneloop.monitor.parity_pool import Pool
from tuneloop.monitor.reference import Reference, score_id
from tuneloop.monitor.settings import FEWEST_IN_A_WINDOW
from tuneloop.monitor.windows import Window
from tuneloop.registry.corrections import corrects
from tuneloop.registry.nouns import Feedback, RequestRecord

ENOUGH_TEXT = 0.8  # of a window's or reference's answers
ENOUGH_CORRECTED = 10  # on either side
_EXAMPLES, _EXAMPLE_CHARS = 5, 300


@dataclass(frozen=True)
class Finds:
    """What guards found on either side, and how many requests there were, those that were stopped among them."""

    reference: tuple[int, int]
    window: tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """A window of a champion's traffic, held against its reference."""

    model: str
    version: int
    reference: Reference
    window: Window
    corrections: Mapping[str, str]  # request id → how the answer should have read, of both sides
    thumbs: Mapping[str, bool]  # request id → whether the user's thumb points down, of both sides
    guarded: Mapping[str, Finds] = field(default_factory=dict)  # by signal; none where no guard looks for it
    pool: Pool = field(default_factory=Pool)  # what of parity is taken together with this window
    late: AbstractSet[str] = frozenset()  # ids of the reference whose corrections came later than the window's could
    belated: LateCorrections = field(default_factory=LateCorrections)  # of answers of earlier windows

    def score_id(self, signal: str) -> str:
        """The id of one signal's judgement."""
        return score_id(self.model, self.version, signal, self.window.index)

    def corrected(self) -> dict[str, tuple[RequestRecord, ...]]:
        """The records of either side that users corrected, the reference's as soon as the window's."""
        sides = {"reference": self.reference.records, "window": self.window.records}
        return {
            what: tuple(r for r in s if r.id in self.corrections and r.id not in self.late) for what, s in sides.items()
        }


def corrected_late(
    reference: Sequence[RequestRecord],
    window: Sequence[RequestRecord],
    feedback: Mapping[str, Sequence[Feedback]],
    now: datetime,
) -> frozenset[str]:
    """Ids of a reference whose first correction came later than one of the window's could.

    A reference goes on being corrected for weeks, a window only until it is judged, and what is corrected late may be
    another kind of answer. So each record of the reference is given the time that the window's record of the same rank
    has had by `now`: both sides then had as long, whatever is in them.
    """
    late = set()
    for rank, record in enumerate(reference):
        given = now - window[rank * len(window) // len(reference)].at
        came = [item.at for item in feedback.get(record.id, ()) if corrects(item)]
        if came and min(came) - record.at > given:
            late.add(record.id)
    return frozenset(late)


@dataclass(frozen=True)
class Judgement:
    """What one signal says of one window; `detail` is JSON."""

    verdict: Literal["drift", "none", "not enough data"]
    n: int
    result: Outcome | None
    detail: dict[str, Any]


def examples_of(records: Sequence[RequestRecord], weights: Sequence[float]) -> list[dict[str, Any]]:
    """The records of most weight, as evidence."""
    order = sorted(range(len(records)), key=lambda index: -weights[index])[:_EXAMPLES]
    return [
        {
            "request_id": records[index].id,
            "question": records[index].question[:_EXAMPLE_CHARS],
            "weight": round(float(weights[index]), 4),
        }
        for index in order
    ]


def without_reference(why: str) -> Judgement:
    """Of what can only be held against the version's own reference, which is not complete."""
    return Judgement("not enough data", 0, None, {"reason": why})


def thin(window: Window) -> Judgement:
    """Of a window that what guards stopped has closed before enough was answered."""
    answered = len(window.records)
    reason = f"guards stopped {window.stopped} requests and {answered} were answered; {FEWEST_IN_A_WINDOW} are needed"
    return Judgement("not enough data", answered, None, {"reason": reason})


def unread(episode: str) -> Judgement:
    """Of a perplexity that no engine needs to read: whatever it were, the episode stays as it is."""
    reason = f"not read: the questions alone keep {episode} open, which has a perplexity among its signals already"
    return Judgement("not enough data", 0, None, {"reason": reason})
