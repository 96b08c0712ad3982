"""What becomes of a row of the outbox now, and when it is tried again. Pure: time and chance are arguments."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal

from tuneloop.registry.deliveries.outbox import Delivery, despite_id
from tuneloop.registry.deliveries.silences import Silence, silenced, told_despite
from tuneloop.registry.nouns import AlertEpisode

FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 900.0
Fate = Literal["send", "hold", "drop"]


def wait_s(attempts: int, rng: random.Random) -> float:
    """How long after a failed attempt: twice as long each time, up to 15 minutes, less up to half of it by chance."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempts - 1, 20)) * rng.uniform(0.5, 1.0))


def heads(waiting: Iterable[Delivery], now: datetime) -> Iterator[Delivery]:
    """What is due: of each episode the first that waits, once its time has come.

    A time further off than any wait was set by a clock that has gone back since; that row is due.
    """
    first: dict[str, Delivery] = {}
    for row in waiting:
        if row.episode_id not in first or row.sequence < first[row.episode_id].sequence:
            first[row.episode_id] = row
    for row in first.values():
        if row.next_at <= now or row.next_at > now + timedelta(seconds=2 * LONGEST_WAIT_S):
            yield row


def is_despite(row: Delivery, causes: Iterable[str]) -> bool:
    """Whether a delivery tells that one of these causes joined under a silence."""
    return row.transition == "worse" and row.id in {despite_id(row.episode_id, row.receiver, cause) for cause in causes}


def fate(
    row: Delivery, episode: AlertEpisode, silences: Sequence[Silence], told: Collection[str], now: datetime
) -> Fate:
    """Whether a delivery goes out now.

    While a silence covers its episode it waits, unless it tells of what joined by a cause that the silence is not for;
    to whom nothing was told before, the opening does. One of the whole model, or of all its signals, is for every
    cause, whenever it was asked for. What ended under a silence is never told to whom it was not told
    before, but for what would have been told despite it: a receiver that was away meanwhile still hears of that.
    """
    causes = uncovered(episode, silences, now)
    first = bool(causes) and row.transition == "opened" and episode.id not in told
    loud = first or is_despite(row, causes)
    if silenced(episode, silences, now) is not None:
        return "send" if loud else "hold"
    over = episode.resolved_at if episode.state == "resolved" else None
    unheard = over is not None and silenced(episode, silences, over) is not None and episode.id not in told
    return "drop" if unheard and not loud else "send"


def uncovered(episode: AlertEpisode, silences: Sequence[Silence], now: datetime) -> frozenset[str]:
    """The causes that joined an episode under a silence which is not for them, as it stands or as it ended; none while
    its whole model is silenced, or each of its signals."""
    if silenced(episode, [silence for silence in silences if silence.episode_id is None], now) is not None:
        return frozenset()
    return told_despite(episode, silences, now if episode.resolved_at is None else min(now, episode.resolved_at))
