"""What becomes of a row of the outbox now, and when it is tried again. Pure: time and chance are arguments."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal

from tuneloop.registry.deliveries.outbox import Delivery
from tuneloop.registry.deliveries.silences import Silence, silenced
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


def fate(episode: AlertEpisode, silences: Sequence[Silence], told: Collection[str], now: datetime) -> Fate:
    """Whether a delivery goes out now.

    While a silence covers its episode it waits. What ended under a silence is never told to whom it was not told
    before.
    """
    if silenced(episode, silences, now) is not None:
        return "hold"
    over = episode.resolved_at if episode.state == "resolved" else None
    unheard = over is not None and silenced(episode, silences, over) is not None and episode.id not in told
    return "drop" if unheard else "send"
