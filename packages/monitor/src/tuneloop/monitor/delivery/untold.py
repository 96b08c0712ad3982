"""Open episodes that no receiver has been told of, nor is to be: Prometheus tells of these.

An episode goes to whom takes it when it opens or gets worse, so that a receiver which is set later, or is for other
models, or for pages alone, does not hear of it. One that is given up is told to nobody either.
"""

from __future__ import annotations

from collections.abc import Collection

from tuneloop.registry import Registry
from tuneloop.registry.deliveries.silences import silenced
from tuneloop.registry.nouns import AlertEpisode


def untold(registry: Registry, receivers: Collection[str]) -> list[AlertEpisode]:
    """Those that are neither resolved nor silenced, and were not and will not be told to any of these receivers.

    Raises:
        Unavailable: the database does not answer.
    """
    episodes = registry.episodes.all(open_only=True)  # the monitor's pass tells of those that cannot be read
    silences, now = registry.silences.all(active_only=True), registry.clock()
    loud = [episode for episode in episodes if silenced(episode, silences, now) is None]
    reached = registry.outbox.reached([episode.id for episode in loud], receivers)
    return [episode for episode in loud if episode.id not in reached]
