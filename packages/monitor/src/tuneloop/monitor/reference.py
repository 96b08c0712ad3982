"""The reference of a champion: the first N answered records it served after it first became champion, or those of its
first days where days have their course (`season`), frozen once complete.

A new champion, trained for the traffic it now gets, is held against its own beginnings, never against its
predecessor's. Once a window has been judged the reference is what that first judgement wrote down, whatever arrives
late or is set otherwise since. That first judgement names every record; each later one names that judgement. While
there is no reference yet, windows may be held against one of an earlier champion: such judgements name neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from itertools import groupby, islice
from typing import Any

from tuneloop.registry import Registry
from tuneloop.registry.errors import NotFound
from tuneloop.registry.nouns import RequestRecord, Route, WindowScore
from tuneloop.registry.traffic import ANSWERED

ANCHOR = "prompt_drift"  # scored first for every window: its scores are the list of windows
FEWEST_HELD = 20  # records that a reference has to have left once users were deleted, and half of what it had
AN_HOUR = 50  # records of each hour that a season's reference may hold
_SATURDAY = 5
_OTHER_DAY_H = 6.0  # a Sunday's noon is as far from a Monday's noon as from its own evening
JUST_BEFORE = timedelta(milliseconds=1)  # `Traffic.window` leaves its `since` out; this brings the first record back in


@dataclass(frozen=True)
class Reference:
    """What windows are compared with; `records` in order of time and id."""

    records: tuple[RequestRecord, ...]
    digest: str
    frozen: bool  # a window was held against it; before that a late record may still change it
    window: int | None = None  # the index of that first one
    version: int | None = None  # whose it is, where it is another's
    of: Reference | None = None  # the whole one that these were chosen from
    since: datetime | None = None  # from when it was gathered; None: it is another's
    deleted: int = 0  # records of it that went with their users after it was frozen

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of its records."""
        return tuple(record.id for record in self.records)

    def summary(self) -> dict[str, object]:
        """What every window score says about the reference it was held against."""
        whole = (self.of or self).records
        return {
            "digest": self.digest,
            "n": len(self.records),
            "from": whole[0].at.isoformat(),
            "to": whole[-1].at.isoformat(),
        } | {name: said for name in ("version", "deleted") if (said := getattr(self, name))}


@dataclass(frozen=True)
class Gathering:
    """A reference that is not complete yet, or cannot be."""

    why: str
    records: tuple[RequestRecord, ...] = ()  # those that are sure to be in it, but for one that arrives late
    early: bool = False  # nothing was looked for: its time is not over
    lost: bool = False  # it was complete, and some of it is on record no more


def reference_of(records: Sequence[RequestRecord], *, frozen: bool) -> Reference:
    """A reference of these records."""
    ordered = tuple(sorted(records, key=lambda record: (record.at, record.id)))
    return Reference(ordered, _digest([record.id for record in ordered]), frozen)


def _digest(ids: Sequence[str]) -> str:
    return sha256("\n".join(ids).encode()).hexdigest()


def judgeable(record: RequestRecord) -> bool:
    """Answered, and with the question on record: refusals and cut-off answers say nothing about what is normal."""
    return record.status == ANSWERED and bool(record.question)


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


def find_reference(
    registry: Registry, history: Sequence[Route], version: int, size: int, season_days: int = 0
) -> Reference | Gathering:
    """The champion's reference, or what there is of it and why it is no more."""
    model = history[0].model
    try:
        first = _first_held(registry, model, version)
    except NotFound:
        gather = partial(_season, days=season_days) if season_days else _beginning
        found = gather(registry, history, version, size)
    else:
        found = _frozen(registry, first)
    return found if isinstance(found, Gathering) else replace(found, since=became_champion(history, version))


def held_reference(registry: Registry, model: str, version: int) -> Reference | None:
    """What a version's windows were held against of its own, if one was and all its records have their text still."""
    try:
        found = _frozen(registry, _first_held(registry, model, version))
    except NotFound:
        return None
    return found if isinstance(found, Reference) else None


def lost_reference(registry: Registry, model: str, version: int) -> str:
    """What a version's reference has lost, in words; empty: nothing, or it has none yet."""
    try:
        found = _frozen(registry, _first_held(registry, model, version))
    except NotFound:
        return ""
    return found.why if isinstance(found, Gathering) else ""


def _first_held(registry: Registry, model: str, version: int) -> WindowScore:
    """The first judgement of a window held against the version's own reference.

    Raises:
        NotFound: there is none yet.
    """
    newest = registry.episodes.scores(model, version=version, signal=ANCHOR, limit=1)
    if not newest or "lent" in newest[0].detail:
        raise NotFound(f"no window of {model}@{version} was held against a reference of its own yet")
    first = newest[0].detail.get("reference_window", 0)  # earlier releases: always the first
    return (
        newest[0]
        if "reference_ids" in newest[0].detail
        else registry.episodes.score(score_id(model, version, ANCHOR, first))
    )


def _season(registry: Registry, history: Sequence[Route], version: int, size: int, days: int) -> Reference | Gathering:
    """Of each hour of the first days the first so many, so that a busy hour takes no other's place."""
    model, since = history[0].model, became_champion(history, version)
    assert since is not None
    until, now = since + timedelta(days=days), registry.clock()
    if now < until:
        return Gathering(f"the reference of {model}@{version} is gathered until {until:%Y-%m-%d %H:%M}Z", early=True)
    found: list[RequestRecord] = []
    few = registry.traffic.window(model, since=since, until=now, version=version, oldest=size, asked=True)
    if len(few) + len(few.unreadable) < size:  # one look, not one for each hour since: it may stay so for long
        by_hour = groupby(few, lambda record: -((since - record.at) // timedelta(hours=1)))
        found += [record for _, hour in by_hour for record in islice(hour, AN_HOUR)]
        return _too_few(model, version, found, size)
    for start, end in _hours(since, now):
        if start >= until and len(found) >= size:
            return reference_of(found, frozen=False)
        found += registry.traffic.window(model, since=start, until=end, version=version, oldest=AN_HOUR, asked=True)
    return _too_few(model, version, found, size)


def _too_few(model: str, version: int, found: Sequence[RequestRecord], size: int) -> Gathering:
    why = f"the reference of {model}@{version} holds {len(found)} of {size} answered records"
    return Gathering(why, tuple(found))


def _hours(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    while since < until:
        yield since, min(since + timedelta(hours=1), until)
        since += timedelta(hours=1)


def of_like_times(reference: Reference, window: Sequence[RequestRecord], size: int) -> Reference:
    """`size` records of a reference at the times of day, on the kind of days (weekend or not), of a window's records.

    Each record of the window takes its nearest in turn, whatever is in them: where what is normal depends on these
    times alone, chosen ones and window are exchangeable while nothing drifts, as tests want them.
    """
    import numpy as np  # noqa: PLC0415 (`tuneloop alerts` needs none)

    def phases(records: Sequence[RequestRecord]) -> tuple[Any, Any]:
        hours = [record.at.hour + record.at.minute / 60 for record in records]
        return np.array(hours), np.array([record.at.weekday() >= _SATURDAY for record in records])

    (hours, weekend), (wanted, at_weekend) = phases(reference.records), phases(window)
    apart = np.abs(hours[None, :] - wanted[:, None])
    apart = np.minimum(apart, 24 - apart) + _OTHER_DAY_H * (weekend[None, :] != at_weekend[:, None])
    chosen: list[int] = []
    for turn in range(min(size, len(reference.records))):
        nearest = int(apart[turn % len(window)].argmin())
        apart[:, nearest] = np.inf
        chosen.append(nearest)
    records = tuple(reference.records[index] for index in sorted(chosen))
    return replace(reference, records=records, of=reference)


def _beginning(registry: Registry, history: Sequence[Route], version: int, size: int) -> Reference | Gathering:
    model, since = history[0].model, became_champion(history, version)
    limit, now = 2 * size, registry.clock()
    while True:
        found = registry.traffic.window(model, since=since, until=now, version=version, oldest=limit, asked=True)
        if len(found) >= size:
            return reference_of(found[:size], frozen=False)
        if len(found) + len(found.unreadable) < limit:
            return _too_few(model, version, found, size)
        limit *= 2  # so many cannot be read


def _frozen(registry: Registry, first: WindowScore) -> Reference | Gathering:
    wanted = first.detail["reference_ids"]
    held = registry.traffic.held(wanted)  # by name: in its time there may be far more than it holds
    found = [record for record in held if record.question]
    deleted = registry.traffic.deleted_of(wanted) if len(held) < len(wanted) else ()
    if len(found) + len(deleted) < len(wanted):
        blank = f", {len(held) - len(found)} of them only their text" if len(found) < len(held) else ""
        return Gathering(
            f"the reference of {first.model}@{first.version} lost {len(wanted) - len(found)} of its {len(wanted)} "
            f"records{blank}; promote a version to begin a new one",
            lost=True,
        )
    left = replace(reference_of(found, frozen=True), digest=_digest(wanted), window=first.detail["window"])
    return _if_enough(replace(left, deleted=len(deleted)), first.model, first.version)


def still_held(registry: Registry, model: str, version: int, known: Reference) -> Reference | Gathering:
    """A frozen reference less what was deleted of it with its users since it was read, if enough of it is left. Its
    digest stays that of all the records that it was frozen with."""
    deleted = registry.traffic.deleted_of(known.ids)
    if not deleted:
        return known
    records = tuple(record for record in known.records if record.id not in deleted)
    left = replace(known, records=records, deleted=known.deleted + len(deleted))
    return _if_enough(left, model, version)


def _if_enough(left: Reference, model: str, version: int) -> Reference | Gathering:
    whole = len(left.records) + left.deleted
    needed = max(FEWEST_HELD, (whole + 1) // 2)
    if not left.deleted or len(left.records) >= needed:
        return left
    return Gathering(
        f"of the {whole} records of the reference of {model}@{version} {left.deleted} were deleted with their users, "
        f"and it takes {needed}; promote a version to begin a new one",
        lost=True,
    )
