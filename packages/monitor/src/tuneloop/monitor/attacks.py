"""When attacks were on, as far as guards have caught them: while they are, nothing is asked to be trained, and what was
recorded meanwhile is never learned from.

It is over for retraining once its own signal has been quiet for as long as an episode has to be, or nobody could see it
for so long, whatever else keeps the episode open. It reaches to the end of the window after the last that alarmed: of
the one in which it ended it may be too small a part to be seen. What no window has been judged of yet may be one,
and waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tuneloop.monitor.raised import raised_still, reached_until
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import INJECTIONS
from tuneloop.registry import Registry
from tuneloop.registry.evidence import findings_of
from tuneloop.registry.nouns import AlertEpisode


@dataclass(frozen=True)
class Attacks:
    """What attacks on a model mean for an episode's retraining."""

    on: AlertEpisode | None = None  # the open episode of one that is not over
    until: datetime | None = None  # the end of the last that reached into the episode's time
    looked_until: datetime | None = None  # how far was looked; None: nothing looks for them


def is_attack(episode: AlertEpisode) -> bool:
    """Whether guards have caught more attacks than before in it."""
    return INJECTIONS in findings_of(episode)


def attacks_during(
    registry: Registry,
    episode: AlertEpisode,
    still_open: Sequence[AlertEpisode],
    since: datetime,
    settings: MonitorSettings,
) -> Attacks:
    """What guards caught since an episode began, and whether that is over."""
    model, version, scores = episode.model, episode.version, registry.episodes.scores
    until = reached_until(registry, model, version, INJECTIONS, since)
    under = raised_still(registry, still_open, INJECTIONS, settings)
    newest = scores(model, version=version, signal=INJECTIONS, limit=1)
    looked = [score.window_end for score in newest if score.verdict != "not enough data"]
    return Attacks(under, until, looked[0] if looked else None)
