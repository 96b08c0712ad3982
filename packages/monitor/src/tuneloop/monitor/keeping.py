"""The episodes of a model as one monitor keeps them: alarms open them or join them, further windows tell more of their
causes, the policy acts on them, and they end when they have gone quiet or their version was replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from tuneloop.monitor import alerts
from tuneloop.monitor.attacks import is_attack
from tuneloop.monitor.causes import by_attack, explained, gather
from tuneloop.monitor.clearing import (
    LATEST,
    LONGER,
    MOST_TEXTS,
    Look,
    is_quiet,
    is_silent,
    is_unspoken,
    longer_look,
    newest,
    since_alarm,
    spread,
)
from tuneloop.monitor.embeddings import embeddings_of
from tuneloop.monitor.filing import BY, pursue
from tuneloop.monitor.following import Follower
from tuneloop.monitor.outliving import caused_by_none, gone_on, outlives, signals_of, since_when, version_of
from tuneloop.monitor.raised import seen_since
from tuneloop.monitor.reference import ANCHOR
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import (
    CORRECTION_BLEU,
    DETECTORS,
    GUARDED,
    INJECTIONS,
    OF_SERVING,
    PARITY,
    PERPLEXITIES,
    QUALITIES,
    SERVED_MODEL_CHANGE,
    THROUGHPUT,
    THUMBS_DOWN,
    windowed,
)
from tuneloop.monitor.standards import Standard, compared
from tuneloop.monitor.windows import records_of
from tuneloop.registry import Registry
from tuneloop.registry.episodes import noted, resolved
from tuneloop.registry.evidence import findings_of, summary_of
from tuneloop.registry.nouns import AlertEpisode, Route, WindowScore, version_name

log = logging.getLogger("tuneloop.monitor")
_RECENT = 50  # more scores of a stream read back than may have to be quiet: some windows cannot be judged


class Keeper:
    """Keeps the episodes of signals that are judged window by window."""

    def __init__(self, registry: Registry, settings: MonitorSettings, *, watches_canaries: bool) -> None:
        self._registry = registry
        self._settings = settings
        self._watches_canaries = watches_canaries
        self._signals = windowed(settings)
        self._follower = Follower(registry, settings)
        self._looked: dict[
            str, tuple[str, ...]
        ] = {}  # open episode → the newest window, and its signals, when it stayed

    def take(self, scores: Sequence[WindowScore]) -> None:
        """The alarms of a window open episodes or join open ones, unless one that is over has dealt with that window.

        Each episode is written once, with all of them: who is told of one first is told its likeliest cause. That of an
        attack is written first, since it may be the cause of the others.
        """
        alarms = [score for score in scores if score.verdict == "drift"]
        if not alarms:
            return
        model, now = alarms[0].model, self._registry.clock()
        before = {episode.id: episode for episode in self._registry.episodes.all(model, open_only=True).whole()}
        after = self._taken(alarms, before, now)
        changed = [episode for episode in after.values() if episode != before.get(episode.id)]
        for episode in sorted(changed, key=lambda episode: not is_attack(episode)):
            said = self._explained(episode, now)  # each window may tell more of the cause
            if episode.id in before:
                self._registry.episodes.update(before[episode.id], said, by=BY, action="episode.window")
            else:
                opened = self._registry.episodes.open(said)
                log.warning("episode %s opened (%s): %s", opened.id, opened.severity, summary_of(opened))
        for attack in (score for score in alarms if score.signal == INJECTIONS):
            self._explain_by(attack, now)

    def _taken(
        self, alarms: Sequence[WindowScore], before: Mapping[str, AlertEpisode], now: datetime
    ) -> dict[str, AlertEpisode]:
        """The open episodes with these alarms, those that they open first."""
        pages, after = self._settings.paging(alarms[0].model), dict(before)
        for score in alarms:
            episode = alerts.taker(after.values(), score, self._settings.group_s)
            if episode is not None:
                after[episode.id] = alerts.joined(episode, score, now, pages)
            elif self._is_news(score):
                opened = alerts.opened(score, now, pages)
                after = {opened.id: opened} | after
        return after

    def _is_news(self, score: WindowScore) -> bool:
        past = self._registry.episodes.all(score.model, version=score.version)
        for row in past.unreadable:
            log.error("left out of what %s has been through: %s", version_name(score.model, score.version), row)
        return alerts.is_news(score, [e for e in past if alerts.takes(e, score, 0)])

    def _explain_by(self, attack: WindowScore, now: datetime) -> None:
        """An attack is told with what was raised since it began, by earlier windows too."""
        for other in self._open_episodes(attack.model):
            if not by_attack(other) and seen_since(other, attack.window_start, list(findings_of(other))):
                changed = self._explained(other, attack.at)
                if by_attack(changed):
                    changed = changed.model_copy(update={"updated_at": now})
                    self._registry.episodes.update(other, changed, by=BY, action="episode.window")

    def _explained(self, episode: AlertEpisode, now: datetime) -> AlertEpisode:
        return explained(episode, gather(self._registry, episode, self._settings.changes_s, now))

    def end_quiet(self, last: WindowScore, standard: Standard) -> None:
        """End those whose signals have raised nothing for long enough; `last` is the last window's anchor.

        Each pass comes here, and a text test takes seconds: an episode that stayed open is looked at again after the
        next window, or once another signal has joined it.
        """
        model, version = last.model, last.version
        for episode in self._open_episodes(model):
            if episode.signal in OF_SERVING and self._ended_by_itself(episode):
                continue
            seen = (last.id, *findings_of(episode))
            if self._looked.get(episode.id) == seen:
                continue
            clear_after = self._settings.clear_after
            most = (LATEST * clear_after + _RECENT) * self._settings.cut_into
            recent = {
                signal: self._registry.episodes.scores(
                    model, version=version, signal=signal, since=since_when(episode), limit=most
                )
                for signal in signals_of(episode) or (episode.signal,)
                if signal in self._signals  # another setting may have ended the watch over one
            }
            if not recent:
                self._end(episode, "none of its signals is watched any more")
                continue
            enough = clear_after, clear_after * self._settings.window
            loud = [signal for signal, scores in recent.items() if not is_quiet(scores, *enough)]
            # Users stop correcting when the cause is gone: that holds up no all-clear that another signal gives.
            silent = [signal for signal in loud if is_silent(recent[signal], *enough)]
            unspoken = all(is_unspoken(recent[signal], *enough) for signal in silent)
            if loud == silent and (len(silent) < len(recent) or unspoken):
                # What an attack asks is over with it, and an episode open for longer would take in what comes next.
                look = None if is_attack(episode) else self._look_longer(recent.get(ANCHOR, ()), standard)
                if look is None or look.over:
                    note = look.why if look else f"{clear_after} windows in a row without an alarm"
                    note += "".join(f"; too little {_needs(signal)} since to judge {signal} by" for signal in silent)
                    self._end(episode, note)
                else:
                    self._linger(episode, since_alarm(recent[ANCHOR])[0], look)
                    self._looked[episode.id] = seen
            else:
                self._looked[episode.id] = seen

    def _ended_by_itself(self, episode: AlertEpisode) -> bool:
        """Whether the watch that raised what is of serving is on: `canary_episodes` ends it then."""
        if episode.signal == SERVED_MODEL_CHANGE:
            return self._watches_canaries
        return episode.model in self._settings.reference_answers

    def _look_longer(self, questions: Sequence[WindowScore], standard: Standard) -> Look | None:
        """What the windows of questions since the last alarm say together; None where they raised none."""
        if not questions:
            return None
        quiet, clear_after = since_alarm(questions), self._settings.clear_after
        records = clear_after * self._settings.window
        looked_at = newest(quiet, LONGER * clear_after, LONGER * records)
        if not looked_at:
            return Look(False, "")
        pool = spread(records_of(self._registry, looked_at))
        size = min(self._settings.reference * LONGER * clear_after, MOST_TEXTS)
        against = compared(standard, pool, self._settings, size).records
        return longer_look(quiet, clear_after, against, pool, embeddings_of(self._settings.embeddings), records=records)

    def _linger(self, episode: AlertEpisode, first: WindowScore, look: Look) -> None:
        """Say once in a row of quiet windows why they are no all-clear."""
        if look.why and episode.evidence.get("lingers") != first.id:
            changed = noted(episode, f"not over: {look.why}", self._registry.clock(), lingers=first.id)
            self._registry.episodes.update(episode, changed, by=BY, action="episode.linger")

    def _end(self, episode: AlertEpisode, note: str) -> None:
        over = resolved(episode, note, self._registry.clock())
        over = over.model_copy(update={"evidence": over.evidence | {"cleared": True}})  # and not by a person
        self._registry.episodes.update(episode, over, by=BY, action="episode.resolve")
        self._looked.pop(episode.id, None)
        log.warning("episode %s resolved: %s", episode.id, note)

    def end_replaced(self, history: Sequence[Route]) -> None:
        """End those of versions that the champion has replaced, but for what no version causes, and say what became of
        what they asked for; `CanaryWatch` ends a served model that changed. `history` the newest first."""
        route = history[0]
        for episode in self._open_episodes(route.model):
            if version_of(episode) != route.champion and episode.signal != SERVED_MODEL_CHANGE:
                replaced = version_of(episode)
                before, after = version_name(route.model, replaced), version_name(route.model, route.champion)
                note = f"{after} took over from {before} with revision {route.revision} ({route.by}: {route.reason})"
                if still := caused_by_none(episode):
                    note = f"goes on for {', '.join(still)}, which no version causes: {note}"
                    now = self._registry.clock()
                    on = noted(gone_on(episode, route.champion, now), note, now)
                    self._registry.episodes.update(episode, on, by=BY, action="episode.outlive")
                    log.warning("episode %s %s", episode.id, note)
                    continue
                over = resolved(episode, note, self._registry.clock())
                over = over.model_copy(
                    update={"evidence": over.evidence | {"champion": {"before": before, "after": after}}}
                )
                self._registry.episodes.update(episode, over, by=BY, action="episode.resolve")
                log.warning("episode %s resolved: %s", episode.id, note)
        self._follower.follow(history)

    def pursue(self, model: str, *, stopped: str = "") -> None:
        """Do for each open one what the policy says; `stopped` tells why no window is judged any more."""
        for episode in self._open_episodes(model):
            if not outlives(episode):
                pursue(self._registry, episode, self._settings, stopped=stopped)

    def _open_episodes(self, model: str) -> list[AlertEpisode]:
        """Those this monitor answers for; others may have opened some of other signals."""
        return [e for e in self._registry.episodes.all(model, open_only=True).whole() if e.signal in DETECTORS]

    def heard(self, model: str) -> AlertEpisode | None:
        """The open episode that questions and a perplexity have raised already."""
        for episode in self._open_episodes(model):
            raised = signals_of(episode)
            if ANCHOR in raised and any(signal in raised for signal in PERPLEXITIES):
                return episode
        return None


def _needs(signal: str) -> str:
    if signal == PARITY:
        return "asked of any group of people"
    if signal in (*GUARDED, *THROUGHPUT):
        return "on record"
    return "text" if signal in QUALITIES and signal not in (THUMBS_DOWN, CORRECTION_BLEU) else "feedback"
