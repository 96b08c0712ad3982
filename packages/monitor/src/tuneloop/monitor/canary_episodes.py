"""The episodes of a stream that ends by other readings than traffic does: what engines serve, read by texts and by
questions that stay the same. One episode of a version at a time, with nothing else in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from tuneloop.monitor import alerts
from tuneloop.monitor.canary_stream import CanaryStream
from tuneloop.monitor.causes import explained, gather
from tuneloop.monitor.clearing import is_quiet
from tuneloop.monitor.filing import BY
from tuneloop.registry.episodes import resolved
from tuneloop.registry.errors import NotFound
from tuneloop.registry.evidence import summary_of
from tuneloop.registry.nouns import AlertEpisode, WindowScore

log = logging.getLogger("tuneloop.monitor")
_RECENT = 50  # checks read back to see whether the stream has gone quiet


class StreamEpisodes:
    """Opens, joins and ends the episodes of one stream's signal."""

    def __init__(self, stream: CanaryStream) -> None:
        self._stream = stream
        self._registry, self._settings = stream.registry, stream.settings

    def raised(self, score: WindowScore) -> None:
        """A check raised an alarm: open an episode, or tell the open one of another engine."""
        now, pages = self._registry.clock(), self._settings.paging(score.model)
        mine = self._stream.episodes(score.model, score.version)
        episode = next((e for e in mine if e.state != "resolved"), None)
        if episode is None:
            if alerts.is_news(score, mine):
                opened = self._registry.episodes.open(self._explained(alerts.opened(score, now, pages), now))
                log.warning("episode %s opened (%s): %s", opened.id, opened.severity, summary_of(opened))
            return
        changed = alerts.joined(episode, score, now, pages)
        if changed != episode:  # each check may tell of another engine
            self._registry.episodes.update(episode, self._explained(changed, now), by=BY, action="episode.window")

    def take_up(self, newest: WindowScore | None) -> None:
        """Act on the last check's alarm, in case a monitor was stopped before it did; has effect once."""
        if newest is not None and newest.verdict == "drift":
            self.raised(newest)

    def _explained(self, episode: AlertEpisode, now: datetime) -> AlertEpisode:
        return explained(episode, gather(self._registry, episode, self._settings.changes_s, now))

    def end_quiet(self, model: str, version: int) -> None:
        """Ends what is over; not what was seen before the newest baseline, which may hold what moved: people end that.

        A baseline is frozen while an episode is open only when what is read is another than before.
        """
        clear_after, scores = self._settings.clear_after, self._stream.scores(model, version, _RECENT)
        try:
            frozen_at = self._stream.baseline_of(scores[-1]).at
        except NotFound:
            return
        for episode in self.open(model):
            mine = episode.version == version and episode.opened_at > frozen_at
            if mine and is_quiet(scores, clear_after):
                self.end(episode, f"{clear_after} checks in a row read what was read at first")

    def end(self, episode: AlertEpisode, note: str) -> None:
        """It is over, and not by a person: what serves is no new baseline."""
        over = resolved(episode, note, self._registry.clock())
        over = over.model_copy(update={"evidence": over.evidence | {"cleared": True}})
        self._registry.episodes.update(episode, over, by=BY, action="episode.resolve")
        log.warning("episode %s resolved: %s", episode.id, note)

    def open(self, model: str) -> Sequence[AlertEpisode]:
        """Those of a model that are not over."""
        return self._registry.episodes.all(model, signal=self._stream.signal, open_only=True).whole()
