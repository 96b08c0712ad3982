"""When attacks were on, as far as guards have caught them: while they are, nothing is asked to be trained, and what was
recorded meanwhile is never learned from.

It is over for retraining once its own signal has been quiet for as long as an episode has to be, whatever else keeps
the episode open. It reaches to the end of the window after the last that alarmed: of the one in which it ended it may
be too small a part to be seen. What no window has been judged of yet may be one, and waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tuneloop.monitor.causes import is_attack
from tuneloop.monitor.clearing import LATEST, is_quiet
from tuneloop.monitor.reference import score_id
from tuneloop.monitor.signals import INJECTIONS
from tuneloop.registry import Registry
from tuneloop.registry.evidence import findings_of, part_of, window_of
from tuneloop.registry.nouns import AlertEpisode


@dataclass(frozen=True)
class Attacks:
    """What attacks on a model mean for an episode's retraining."""

    on: AlertEpisode | None = None  # the open episode of one that is not over
    until: datetime | None = None  # the end of the last that reached into the episode's time
    looked_until: datetime | None = None  # how far was looked; None: nothing looks for them


def attacks_during(
    registry: Registry, episode: AlertEpisode, still_open: list[AlertEpisode], since: datetime, clear_after: int
) -> Attacks:
    """What guards caught since an episode began, and whether that is over."""
    model, version, scores = episode.model, episode.version, registry.episodes.scores
    raised = scores(model, version=version, signal=INJECTIONS, since=since, verdict="drift")
    alarms = [score for score in raised if score.window_end > since]
    until = None
    if alarms:
        last = max(alarms, key=lambda score: int(score.detail["window"]))
        next_id = score_id(model, version, INJECTIONS, int(last.detail["window"]) + 1)
        until = max(score.window_end for score in (last, *registry.episodes.scores_of([next_id])))

    def goes_on(attack: AlertEpisode) -> bool:
        recent = scores(model, version=attack.version, signal=INJECTIONS, limit=LATEST * clear_after)
        return not is_quiet(recent, clear_after)

    under = next((other for other in still_open if is_attack(other) and goes_on(other)), None)
    newest = scores(model, version=version, signal=INJECTIONS, limit=1)
    looked = [score.window_end for score in newest if score.verdict != "not enough data"]
    return Attacks(under, until, looked[0] if looked else None)


def seen_since(episode: AlertEpisode, until: datetime, signals: list[str]) -> bool:
    """Whether one of these signals has alarmed in a window that is wholly later."""
    findings = findings_of(episode)
    windows = [
        window_of(found)
        for signal in signals
        for found in (findings.get(signal, {}), part_of(findings.get(signal, {}), "last"))
    ]
    return any(window is not None and window[0] >= until for window in windows)
