"""Episodes that outlive the version that they were opened for: what no version causes goes on when another takes over.
Pure.

Somebody who attacks a model attacks whatever serves it, and an engine that is slow is slow with any version: a
promotion ends neither, and another page about it would tell nobody anything new. Such an episode keeps its version and
what it has found, and says which version it goes on under, and for which signals. It takes in no others: what they
raise is the new version's own.
"""

from __future__ import annotations

from datetime import datetime

from tuneloop.monitor.signals import INJECTIONS, SPEED
from tuneloop.registry.evidence import findings_of, listed_of, part_of
from tuneloop.registry.nouns import AlertEpisode

_GOES_ON = "goes_on"


def caused_by_none(episode: AlertEpisode) -> tuple[str, ...]:
    """Its signals that no version causes: attacks, and lateness whose likeliest cause is an engine."""
    causes = listed_of(episode.evidence, "causes", "kind", "explains")

    def is_of_an_engine(signal: str) -> bool:
        likeliest = next((str(cause["kind"]) for cause in causes if signal in cause["explains"]), "")
        return signal in SPEED and likeliest == "engine"

    watched = signals_of(episode)
    return tuple(signal for signal in watched if signal == INJECTIONS or is_of_an_engine(signal))


def gone_on(episode: AlertEpisode, version: int, at: datetime) -> AlertEpisode:
    """The episode under a version that has taken over, for what no version causes."""
    goes_on = {"version": version, "since": at.isoformat(), "signals": list(caused_by_none(episode))}
    return episode.model_copy(update={"evidence": episode.evidence | {_GOES_ON: goes_on}})


def outlives(episode: AlertEpisode) -> bool:
    """Whether it goes on, or went on at last, under another version than it was opened for."""
    return bool(part_of(episode.evidence, _GOES_ON))


def version_of(episode: AlertEpisode) -> int:
    """The version whose windows tell how it goes on."""
    version = part_of(episode.evidence, _GOES_ON).get("version")
    return version if isinstance(version, int) else episode.version


def since_when(episode: AlertEpisode) -> datetime | None:
    """From when on that version's windows tell: it may have served before. None: all of them do."""
    since = part_of(episode.evidence, _GOES_ON).get("since")
    return datetime.fromisoformat(since) if isinstance(since, str) else None


def signals_of(episode: AlertEpisode) -> tuple[str, ...]:
    """The signals by which it goes on, and ends."""
    found = tuple(findings_of(episode))
    goes_on = part_of(episode.evidence, _GOES_ON)
    named = goes_on.get("signals")
    return tuple(signal for signal in found if signal in named) if isinstance(named, list) else found
