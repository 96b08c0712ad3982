"""What became of each event, held against what was promised; nothing here knows what should come out but the plan."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime, timedelta

from quarter_parts.people import Told
from quarter_parts.plan import Event
from quarter_parts.traffic import MODEL
from quarter_parts.world import Quarter
from tuneloop.monitor.reference import ANCHOR
from tuneloop.registry.nouns import AlertEpisode

_ECHO = timedelta(days=2)  # a window may still hold an event that is over


@dataclass(frozen=True)
class Row:
    """One event and what was done about it."""

    event: Event
    episodes: tuple[AlertEpisode, ...]  # of it, the first first
    answers: int | None  # of the champion from when it was due until it was found; None: it was not
    named: str  # the likeliest cause on the first page
    opened: int  # deliveries that told of an episode of it
    pages: int  # how often somebody was got up
    requests: tuple[str, ...]
    held: str  # why no retraining was asked for, as the episode says

    @property
    def faults(self) -> list[str]:
        """What was promised and not kept."""
        if self.answers is None:
            return ["not found"]
        return [
            said
            for said, wrong in (
                (
                    f"found after {self.answers} answers, {self.event.bound} were promised",
                    self.answers > self.event.bound,
                ),
                (f"named {self.named}, not {self.event.kind}", self.named != self.event.kind),
                (f"told {self.opened} times", self.opened != 1),
                (f"paged {self.pages} times", self.pages > 1),
                ("no retraining was asked for", self.event.kind == "drift" and not self.requests),
                ("retraining was asked for", self.event.kind != "drift" and bool(self.requests)),
                (f"retraining was asked for {len(self.requests)} times", len(self.requests) > 1),
            )
            if wrong
        ]


@dataclass(frozen=True)
class Findings:
    """The quarter in figures."""

    rows: tuple[Row, ...]
    false: tuple[AlertEpisode, ...]  # episodes of no event
    budget: int  # false alarms that the setting allows in so many answers
    answers: int
    windows: int

    @property
    def faults(self) -> list[str]:
        """Everything that was promised and not kept."""
        found = [f"{row.event.name}: {fault}" for row in self.rows for fault in row.faults]
        if len(self.false) > self.budget:
            found.append(f"{len(self.false)} false alarms, {self.budget} are allowed")
        return found


def findings(quarter: Quarter) -> Findings:
    """Every episode given to the event it is of, or to none."""
    of: dict[str, list[AlertEpisode]] = {event.name: [] for event in quarter.plan.events}
    false = []
    episodes = sorted(quarter.registry.episodes.all(MODEL), key=lambda episode: episode.opened_at)
    for episode in episodes:
        going_on = [e for e in quarter.plan.events if e.at <= episode.opened_at <= over_at(quarter, e) + _ECHO]
        if not going_on:
            false.append(episode)
            continue
        # Two at once: the one that the page names if it names one, else the newer.
        named = [event for event in going_on if event.kind == _named(quarter, [episode])]
        of[max(named or going_on, key=lambda event: event.at).name].append(episode)
    answers = len(quarter.answered)
    scores = quarter.registry.episodes.scores(MODEL, signal=ANCHOR)
    return Findings(
        rows=tuple(_row(quarter, event, of[event.name]) for event in quarter.plan.events),
        false=tuple(false),
        budget=max(1, answers // quarter.plan.settings.mean_run_length),
        answers=answers,
        windows=len(scores),
    )


def over_at(quarter: Quarter, event: Event) -> datetime:
    """When an event was over: ended by somebody or by itself, or no longer news to the version that serves."""
    ends = [quarter.plan.end]
    if event.name in quarter.ended:
        ends.append(quarter.ended[event.name])
    if event.days is not None:
        ends.append(event.at + timedelta(days=event.days))
    if event.kind == "drift":
        routes = quarter.registry.routes.history(MODEL)
        ends += [route.at for route in routes if event.topic in quarter.knows[route.champion]]
    return min(ends)


def _row(quarter: Quarter, event: Event, episodes: list[AlertEpisode]) -> Row:
    told = _told(quarter, episodes)
    ids = {episode.id for episode in episodes}
    requests = [r for r in quarter.registry.retraining.all(MODEL) if r.episode_id in ids]
    answers = None
    if episodes:
        due, found = (bisect_right(quarter.answered, at) for at in (event.due_from, episodes[0].opened_at))
        answers = max(0, found - due)
    held = [line for episode in episodes for line in episode.done if "no retraining" in line]
    return Row(
        event=event,
        episodes=tuple(episodes),
        answers=answers,
        named=_named(quarter, episodes),
        opened=sum(one.page["transition"] == "opened" for one in told),
        pages=sum(_is_page(one) for one in told),
        requests=tuple(f"{r.id} ({r.state})" for r in requests),
        held=held[-1].partition("no retraining yet: ")[2] if held else "",
    )


def _told(quarter: Quarter, episodes: list[AlertEpisode]) -> list[Told]:
    ids = {episode.id for episode in episodes}
    return [one for one in quarter.people.told if one.page["episode"] in ids]


def _is_page(told: Told) -> bool:
    return told.page["transition"] in {"opened", "worse"} and told.page["severity"] == "page"


def _named(quarter: Quarter, episodes: list[AlertEpisode]) -> str:
    return next((one.cause for one in _told(quarter, episodes[:1])), "nothing")
