"""The reference of a champion: the first N answered records it served after it first became champion, frozen once
complete.

A new champion, trained for the traffic it now gets, is held against its own beginnings, never against its
predecessor's. Once a window has been judged the reference is what that first judgement wrote down, whatever arrives
late or is set otherwise since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from tuneloop.registry import Registry
from tuneloop.registry.errors import NotFound
from tuneloop.registry.nouns import RequestRecord, Route, WindowScore

ANCHOR = "prompt_drift"  # scored first for every window: its scores are the list of windows
JUST_BEFORE = timedelta(milliseconds=1)  # `Traffic.window` leaves its `since` out; this brings the first record back in


@dataclass(frozen=True)
class Reference:
    """What windows are compared with; `records` in order of time and id."""

    records: tuple[RequestRecord, ...]
    digest: str
    frozen: bool  # a window was held against it; before that a late record may still change it

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of its records."""
        return tuple(record.id for record in self.records)

    def summary(self) -> dict[str, object]:
        """What every window score says about the reference it was held against."""
        return {
            "digest": self.digest,
            "n": len(self.records),
            "from": self.records[0].at.isoformat(),
            "to": self.records[-1].at.isoformat(),
        }


@dataclass(frozen=True)
class Gathering:
    """A reference that is not complete yet, or cannot be."""

    why: str
    records: tuple[RequestRecord, ...] = ()  # those that are sure to be in it, but for one that arrives late


def reference_of(records: Sequence[RequestRecord], *, frozen: bool) -> Reference:
    """A reference of these records."""
    ordered = tuple(sorted(records, key=lambda record: (record.at, record.id)))
    return Reference(ordered, sha256("\n".join(record.id for record in ordered).encode()).hexdigest(), frozen)


def judgeable(record: RequestRecord) -> bool:
    """Answered, and with the question on record: refusals and cut-off answers say nothing about what is normal."""
    return record.status == 200 and bool(record.question)


def became_champion(history: Sequence[Route], version: int) -> datetime | None:
    """When the version first became champion; `history` in any order."""
    return min((route.at for route in history if route.champion == version), default=None)


def champion_since(history: Sequence[Route]) -> datetime:
    """When the present champion took over last; `history` the newest first, as `Routes.history` gives it."""
    since = history[0].at
    for route in history:
        if route.champion != history[0].champion:
            break
        since = route.at
    return since


def score_id(model: str, version: int, signal: str, window: int) -> str:
    """The id of one judgement; a second monitor, or a restarted one, arrives at the same."""
    return "ws_" + sha256(f"{model}\0{version}\0{signal}\0{window}".encode()).hexdigest()[:24]


def find_reference(registry: Registry, history: Sequence[Route], version: int, size: int) -> Reference | Gathering:
    """The champion's reference, or what there is of it and why it is no more."""
    model = history[0].model
    try:
        first = registry.episodes.score(score_id(model, version, ANCHOR, 0))
    except NotFound:
        return _beginning(registry, history, version, size)
    return _frozen(registry, first)


def _beginning(registry: Registry, history: Sequence[Route], version: int, size: int) -> Reference | Gathering:
    model, since = history[0].model, became_champion(history, version)
    limit = 2 * size
    while True:
        served = registry.traffic.window(model, since=since, version=version, oldest=limit)
        usable = [record for record in served if judgeable(record)]
        if len(usable) >= size:
            return reference_of(usable[:size], frozen=False)
        if len(served) + len(served.unreadable) < limit:
            break
        limit *= 2
    if served and not any(record.question for record in served):
        return Gathering(
            f"{len(served)} answers of {model}@{version} are on record, all without text; prompts cannot be watched"
        )
    why = f"the reference of {model}@{version} holds {len(usable)} of {size} answered records"
    return Gathering(why, tuple(usable))


def _frozen(registry: Registry, first: WindowScore) -> Reference | Gathering:
    wanted = set(first.detail["reference_ids"])
    summary = first.detail["reference"]
    held = registry.traffic.window(
        first.model,
        since=datetime.fromisoformat(summary["from"]) - JUST_BEFORE,
        until=datetime.fromisoformat(summary["to"]),
        version=first.version,
    )
    found = [record for record in held if record.id in wanted]
    if len(found) < len(wanted):
        return Gathering(
            f"the reference of {first.model}@{first.version} lost {len(wanted) - len(found)} of its {len(wanted)} "
            "records; promote a version to begin a new one"
        )
    return reference_of(found, frozen=True)
