"""Following what was trained: once a version that a request asked for serves, its episode shows before and after.

It is looked at in each pass until it is decided, and written down on the episode; every look makes the same of the same
windows, so a monitor that is killed writes it in the next pass, once. An episode that is over stays over. A version
that is taken back for a while is judged by its own windows of before and after; what is undecided then goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256

from tuneloop.monitor.aftermath import FOLLOWED, Compared, Role, compared, roles_of, verdict_of, written
from tuneloop.monitor.clearing import LATEST, newest
from tuneloop.monitor.reference import ANCHOR, became_champion, champion_since, score_id
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.registry import Registry
from tuneloop.registry.episodes import noted
from tuneloop.registry.errors import NotFound, Unreadable
from tuneloop.registry.evidence import aftermath_lines, findings_of, part_of
from tuneloop.registry.nouns import AlertEpisode, RetrainingRequest, RetrainingState, Route, WindowScore, version_name

BY = "monitor"
PENDING, UNJUDGED = "not enough data yet", "not enough data"
log = logging.getLogger("tuneloop.monitor")


class Follower:
    """Follows the retrainings of one monitor's models; what is decided is not read again."""

    def __init__(self, registry: Registry, settings: MonitorSettings) -> None:
        self._registry = registry
        self._clear_after = settings.clear_after
        self._records = settings.clear_after * settings.window
        self._decided: set[str] = set()  # no more is known before its version serves again
        self._told: set[str] = set()  # and these whatever comes

    def follow(self, history: Sequence[Route]) -> None:
        """Judge what serves, or has served, because an episode asked for it; `history` the newest first."""
        answered: set[str] = set()
        for request in self._registry.retraining.all(history[0].model):
            shipped = request.state == RetrainingState.SHIPPED and request.result_version is not None
            if not shipped or request.episode_id is None or request.episode_id in answered:
                continue
            answered.add(request.episode_id)  # the newest of an episode's, should there be more
            serves = history[0].champion == request.result_version
            if request.id in (self._told if serves else self._decided):
                continue
            try:
                episode = self._registry.episodes.get(request.episode_id)
            except (NotFound, Unreadable) as error:
                log.error("what %s helped cannot be told: %s", request.id, error)
                self._decided.add(request.id)
                self._told.add(request.id)
                continue
            verdict = self._written(episode, request, history)
            if verdict != PENDING:
                self._decided.add(request.id)
            if verdict != PENDING and (serves or verdict != UNJUDGED):
                self._told.add(request.id)

    def _written(self, episode: AlertEpisode, request: RetrainingRequest, history: Sequence[Route]) -> str:
        """Its verdict, once that is on the episode."""
        known = part_of(episode.evidence, "aftermath")
        told = known.get("verdict") if known.get("request") == request.id else PENDING
        version = request.result_version
        assert version is not None
        if told != PENDING and (told != UNJUDGED or history[0].champion != version):
            return str(told)
        if (since := became_champion(history, version)) is None:
            return PENDING  # it was given everything, but is not champion yet
        scores = self._registry.episodes.scores
        closed = self._is_closed(history, version)
        roles = roles_of(findings_of(episode).keys())
        alarms = self._alarms(episode, roles)
        among = max(1, sum(roles[signal] != "shown" for signal in alarms))
        found = {
            signal: one
            for signal, alarm in alarms.items()
            if (
                one := self._compared(
                    signal,
                    alarm,
                    request,
                    scores(episode.model, version=version, signal=signal, since=since),
                    closed=closed,
                    role=roles[signal],
                    among=among,
                )
            )
        }
        verdict = verdict_of(found, closed=closed or not found)
        names = version_name(episode.model, episode.version), version_name(episode.model, version)
        after = {"request": request.id, "before": names[0], "after": names[1], "verdict": verdict} | {
            "signals": written(found)
        }
        if after == known:
            return verdict
        changed = episode.model_copy(update={"evidence": episode.evidence | {"aftermath": after}})
        if verdict != PENDING:
            said = "; ".join(aftermath_lines(changed))
            changed = noted(changed, said, self._registry.clock())
            log.warning("episode %s: %s", episode.id, said)
        else:
            changed = changed.model_copy(update={"updated_at": self._registry.clock()})
        self._registry.episodes.update(episode, changed, by=BY, action="episode.aftermath")
        return verdict

    def _compared(
        self,
        signal: str,
        alarm: WindowScore,
        request: RetrainingRequest,
        after: Sequence[WindowScore],
        *,
        closed: bool,
        role: Role,
        among: int,
    ) -> Compared | None:
        seed = int(sha256(f"{request.id}\0{signal}".encode()).hexdigest()[:16], 16)
        in_order = sorted(after, key=lambda score: int(score.detail["window"]))
        return compared(
            signal, alarm, in_order, self._clear_after, seed, self._records, closed=closed, role=role, among=among
        )

    def _is_closed(self, history: Sequence[Route], version: int) -> bool:
        """Whether no more is waited for: it has had its windows and their records, or a newer version took over, or
        another serves in its place for as many as it would have had."""
        serving, model = history[0].champion, history[0].model
        if serving > version:
            return True
        since = became_champion(history, version)
        windows = [*self._registry.episodes.scores(model, version=version, signal=ANCHOR, since=since)]
        if serving != version:
            away = champion_since(history)
            windows += self._registry.episodes.scores(model, version=serving, signal=ANCHOR, since=away)
        judged = [score for score in windows if score.verdict != UNJUDGED]
        return bool(newest(judged, LATEST * self._clear_after, LATEST * self._records))

    def _alarms(self, episode: AlertEpisode, roles: Mapping[str, Role]) -> dict[str, WindowScore]:
        """The window that alarmed, by signal; and what was made of that window by those that did not."""
        findings = findings_of(episode)
        ids = {str(findings[signal].get("window")): signal for signal in FOLLOWED if signal in findings}
        found = {ids[score.id]: score for score in self._registry.episodes.scores_of(list(ids))}
        if not found:
            return {}
        own = found.get(episode.signal) or min(found.values(), key=lambda score: int(score.detail["window"]))
        window = int(own.detail["window"])
        others = [signal for signal in roles if signal not in findings]
        of_window = [score_id(episode.model, episode.version, signal, window) for signal in others]
        return found | {score.signal: score for score in self._registry.episodes.scores_of(of_window)}


def in_vain(
    registry: Registry, requests: Sequence[RetrainingRequest], episode: AlertEpisode
) -> list[RetrainingRequest]:
    """What shipped for the same signals as this episode's and did not help, since the last that did."""
    found = []
    for request in sorted(requests, key=lambda request: request.created_at, reverse=True):
        if request.state != RetrainingState.SHIPPED or request.episode_id in (None, episode.id):
            continue
        try:
            tried = registry.episodes.get(str(request.episode_id))
        except (NotFound, Unreadable):
            continue
        if not findings_of(tried).keys() & findings_of(episode).keys():
            continue
        after = part_of(tried.evidence, "aftermath")
        if after.get("request") != request.id or after.get("verdict") == "helped":
            break
        if after["verdict"] == "did not help":  # of the others it is not known, or not shown, or not yet
            found.append(request)
    return found
