"""What a champion's windows are held against: its own reference, or, while that is being gathered, the one of the
champion before it.

A new champion may be asked other things than its predecessor (it was trained for them), but it must not refuse more,
be disliked more or break more: those signals are judged from its first window on, so that a bad version that somebody
promoted is seen before its badness becomes what is normal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from tuneloop.monitor.comparison import Finds
from tuneloop.monitor.guarded import COUNTED, LOOKS, is_found
from tuneloop.monitor.reference import (
    JUST_BEFORE,
    Gathering,
    Reference,
    find_reference,
    held_reference,
    of_like_times,
    still_held,
)
from tuneloop.monitor.scorer import Scorer
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import GUARDED, INJECTIONS, PERPLEXITY
from tuneloop.monitor.where import of_hits
from tuneloop.monitor.windows import Window
from tuneloop.registry import Registry
from tuneloop.registry.guard_policy import injections_looked_for, looked_alike
from tuneloop.registry.nouns import RequestRecord, Route, WindowScore, version_name

_EARLIER = 5  # champions looked back at for a reference; each costs a pass some reading
_MOST_ASKED = 2_000  # requests of either side read for where attacks came from
_MOST_COUNTED = 1_000  # times of references whose finds are remembered
_DAY = timedelta(days=1)
_WIDER = timedelta(minutes=15)  # at first, then twice as much each time
_RECENT = 50  # scores read back for what an earlier monitor has read of a reference

Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class Standard:
    """A reference, and why it is not the champion's own; empty: it is."""

    reference: Reference
    lent: str = ""

    def held_to(self, window: Window) -> Standard:
        """The same after a window was judged: what that was held to stands for good."""
        if self.lent or self.reference.frozen:
            return self
        return replace(self, reference=replace(self.reference, frozen=True, window=window.index))

    def noted(self) -> dict[str, object]:
        """What the first judgement of a window says of it, so that the next process finds it."""
        if self.lent:
            return {"lent": self.reference.version}
        if self.reference.frozen:
            return {"reference_window": self.reference.window}
        return {"reference_ids": list(self.reference.ids)}


def compared(standard: Standard, records: Sequence[RequestRecord], settings: MonitorSettings, size: int) -> Reference:
    """Those `size` of a standard's records that these are compared with."""
    if not settings.season_days or not records:
        return standard.reference
    return of_like_times(standard.reference, records, size)


def _spans(reference: Reference, since: datetime, window: Window) -> Iterator[list[Span]]:
    """The time of a reference from `since` on. Where it was chosen from a season's, the window's own time of day on the
    days that it was chosen from; then, unless `since` cuts some of it off, wider and wider on both sides, at last the
    whole of these days."""
    whole = (reference.of or reference).records
    first, last = max(whole[0].at, since), whole[-1].at
    if reference.of is None:
        yield [(first, last)]
        return
    lasts = min(window.end - window.start, _DAY - JUST_BEFORE)

    def days_away(at: datetime) -> int:
        """By how many whole days the window lies nearest to it."""
        days = (at - window.start) // _DAY
        behind = at - window.start - days * _DAY
        return days if behind - lasts <= _DAY - behind else days + 1

    starts = [window.start + _DAY * away for away in sorted({days_away(record.at) for record in reference.records})]
    most, wider = (_DAY - JUST_BEFORE - lasts) / 2, timedelta(0)
    while True:
        spans = ((max(start - wider, first), min(start + lasts + wider, last)) for start in starts)
        yield [(start, end) for start, end in spans if start <= end]
        if wider == most or since > whole[0].at:  # what was looked for only lately is no other time of day's
            return
        wider = min(2 * wider or _WIDER, most)


class Standards:
    """The references of every champion; frozen ones are read once, and lose what was deleted with its users."""

    def __init__(self, registry: Registry, settings: MonitorSettings, scorer: Scorer) -> None:
        self._registry = registry
        self._settings = settings
        self._scorer = scorer
        self._known: dict[tuple[str, int], Reference] = {}
        self._without: dict[tuple[str, int], int] = {}  # with the route's revision then
        self._found: dict[tuple[str, str, datetime, datetime], tuple[int, int]] = {}

    def drop_deleted(self) -> None:
        """Hold no record any more that was deleted with its user; a reference with too few left is not held at all."""
        for key, known in list(self._known.items()):
            left = still_held(self._registry, *key, known)
            if isinstance(left, Gathering):
                del self._known[key]
            else:
                self._known[key] = left

    def of(self, history: Sequence[Route]) -> Standard | Gathering:
        """What the champion's next window is held against; `history` the newest first."""
        own = self._reference(history, history[0].champion)
        if isinstance(own, Reference):
            return Standard(own)
        if own.lost:  # it is not being gathered: what another version was asked would stand for it for ever
            return own
        return self.lent(history, own.why) or own

    def of_judged(self, history: Sequence[Route], anchor: WindowScore) -> Standard | None:
        """What a window of the champion was held against, if that is known still."""
        if "lent" in anchor.detail:
            return self.lent(history, "its own was being gathered")
        own = self._reference(history, history[0].champion)
        return Standard(own) if isinstance(own, Reference) else None

    def lent(self, history: Sequence[Route], why: str) -> Standard | None:
        """The frozen reference of the champion before, or of the last one that has one."""
        earlier = [version for version in dict.fromkeys(r.champion for r in history) if version != history[0].champion]
        for version in earlier[:_EARLIER]:
            found = self._held(history[0], version)
            if found is not None:
                return Standard(replace(found, version=version), why)
        return None

    def guarded(self, model: str, reference: Reference, window: Window, signals: Collection[str]) -> dict[str, Finds]:
        """What guards found on either side, from when on they looked, of those of these signals that they tell; what
        nobody looks for is not rarer. Of a season's reference the window's own time of day counts, on days like its
        own, and as much before and after it as it takes for as many requests as the window is held against."""
        found: dict[str, Finds] = {}
        for signal in GUARDED:
            if signal not in signals:
                continue
            since = self._looked(signal, model, reference, window)
            if since is None:
                continue
            _, had = self._counted(signal, model, reference, since[0], window)
            found[signal] = Finds(had, self._caught(signal, model, since[1], window.end))
        return found

    def _counted(
        self, signal: str, model: str, reference: Reference, since: datetime, window: Window
    ) -> tuple[list[Span], tuple[int, int]]:
        """The times of a reference that a window is held against, what guards found then, and of how many."""
        for spans in _spans(reference, since, window):
            had = of = 0
            for start, end in spans:
                key = (signal, model, start, end)
                if key not in self._found:  # a busy model is asked a million times while its reference is gathered
                    if len(self._found) >= _MOST_COUNTED:  # a season's are of one window each
                        self._found.clear()
                    self._found[key] = self._caught(signal, model, start, end)
                had, of = had + self._found[key][0], of + self._found[key][1]
            if of >= len(reference.records):
                break
        return spans, (had, of)

    def _caught(self, signal: str, model: str, since: datetime, until: datetime) -> tuple[int, int]:
        guards, actions = COUNTED[signal]
        return self._registry.traffic.caught(model, guards, actions=actions, since=since, until=until)

    def _looked(self, signal: str, model: str, of: Reference, window: Window) -> tuple[datetime, datetime] | None:
        """From when on guards looked in the reference's time and in the window's."""
        database = self._registry.database
        records = (of.of or of).records
        reference = records[0].at, records[-1].at
        if signal == INJECTIONS:
            looked = partial(injections_looked_for, database, model)
            had, have = (looked(since=start, until=end) for start, end in (reference, (window.start, window.end)))
        else:
            alike = looked_alike(database, model, LOOKS[signal], since=reference[0], until=window.end)
            had = have = None
            if alike is not None and alike <= reference[1]:
                had, have = alike, window.start
        return None if had is None or have is None else (had, have)

    def where_found(self, signal: str, model: str, reference: Reference, window: Window) -> list[dict[str, Any]]:
        """The parts of what was asked while a window filled in which guards found more of it, and more than in what was
        asked of the reference; what they stopped, and is in no window, is among both."""
        asked = self._asked(model, [(window.start, window.end)])
        since = self._looked(signal, model, reference, window)
        spans = [] if since is None else self._counted(signal, model, reference, since[0], window)[0]
        earlier = self._asked(model, spans)
        had = [(record, float(is_found(signal, record))) for record in earlier]
        return of_hits(asked, [is_found(signal, record) for record in asked], had)

    def _asked(self, model: str, spans: Sequence[Span]) -> list[RequestRecord]:
        """What was asked in these times, whatever became of it; of each the newest, `_MOST_ASKED` of all at most."""
        most = max(_MOST_ASKED // max(len(spans), 1), 1)
        traffic = self._registry.traffic
        return [
            record
            for start, end in spans
            for record in traffic.window(model, since=start - JUST_BEFORE, until=end, newest=most)
        ]

    def _held(self, route: Route, version: int) -> Reference | None:
        """The reference that an earlier champion was held to. One that had none will have none until the route changes:
        no window of it is judged before it is champion again."""
        key = (route.model, version)
        if key not in self._known and self._without.get(key) != route.revision:
            found = held_reference(self._registry, *key)
            if found is None:
                self._without[key] = route.revision
                return None
            self._recall_nats(*key, found)  # it may be champion again
            self._known[key] = found
        return self._known.get(key)

    def _reference(self, history: Sequence[Route], version: int) -> Reference | Gathering:
        key = (history[0].model, version)
        if key not in self._known:
            settings = self._settings
            found = find_reference(self._registry, history, version, settings.reference, settings.season_days)
            if isinstance(found, Gathering):
                return found
            self._recall_nats(*key, found)
            if not found.frozen:
                return found
            self._known[key] = found
        return self._known[key]

    def _recall_nats(self, model: str, version: int, reference: Reference) -> None:
        """What an earlier monitor scored of the reference need not be scored again, but for what users corrected."""
        corrected = self._registry.traffic.corrections_for(reference.ids)
        for score in self._registry.episodes.scores(model, version=version, signal=PERPLEXITY, limit=_RECENT):
            if "reference_nats" in score.detail and score.detail["reference"]["digest"] == reference.digest:
                nats = {i: value for i, value in score.detail["reference_nats"].items() if i not in corrected}
                self._scorer.remember(version_name(model, version), nats)
