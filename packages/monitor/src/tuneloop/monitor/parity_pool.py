"""Which windows parity takes together, and what a person has accepted of it.

Refusals of a group are held against nobody's past, so a gap that stands would be told for ever. Whoever resolves its
episode accepts it: what was seen by then is what the windows judged since, and they alone, are held against.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.monitor.alerts import ended_by_person
from tuneloop.monitor.reference import Reference, score_id
from tuneloop.monitor.signals import PARITY
from tuneloop.registry import Registry
from tuneloop.registry.errors import NotFound
from tuneloop.registry.nouns import AlertEpisode, WindowScore, version_name

log = logging.getLogger("tuneloop.monitor")


@dataclass(frozen=True)
class Pool:
    """Judgements whose answers are counted with a window's."""

    earlier: Sequence[WindowScore] = ()  # those before it that are taken together with it
    accepted: Sequence[WindowScore] = ()  # what it is held against: the last ones of an episode that a person resolved


def pool_of(registry: Registry, model: str, version: int, index: int, reference: Reference, most: int) -> Pool:
    """What is taken together with the `index`th window, `most` windows with it.

    What was held against another reference is left out: after a promotion it may be this very reference.
    """
    if most < 1:
        return Pool()
    episode = accepted_gap(registry, model, version)
    newest = registry.episodes.scores(model, version=version, signal=PARITY, limit=most)
    earlier = [
        score
        for score in newest
        if 0 < index - int(score.detail["window"]) < most
        and score.detail["reference"]["digest"] == reference.digest
        and (episode is None or episode.resolved_at is None or score.at > episode.resolved_at)
    ]
    return Pool(earlier, _seen_in(registry, episode, most) if episode else ())


def accepted_gap(registry: Registry, model: str, version: int) -> AlertEpisode | None:
    """The last episode of parity that a person resolved."""
    found = registry.episodes.all(model, version=version, signal=PARITY)
    for row in found.unreadable:
        log.error("left out of what %s has been through: %s", version_name(model, version), row)
    return next(filter(ended_by_person, found), None)


def _seen_in(registry: Registry, episode: AlertEpisode, most: int) -> list[WindowScore]:
    """The last windows that raised it, with those taken together with them, as far as they are held still."""
    found = []
    try:
        last = int(registry.episodes.score(episode.windows[-1]).detail["window"])
    except NotFound:
        return []
    for index in range(max(last - most + 1, 0), last + 1):
        try:
            found.append(registry.episodes.score(score_id(episode.model, episode.version, PARITY, index)))
        except NotFound:
            continue
    return found
