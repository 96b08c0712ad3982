"""Following what was trained: once a version that a request asked for serves, its episode shows before and after.

It is looked at in each pass until it is decided, and written down on the episode; every look makes the same of the same
windows, so a monitor that is killed writes it in the next pass, once. An episode that is over stays over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256

from tuneloop.monitor.aftermath import OF_VERSION, SHOWN, STAND_INS, Compared, compared, verdict_of, written
from tuneloop.monitor.clearing import LATEST
from tuneloop.monitor.reference import ANCHOR, became_champion, score_id
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

    def __init__(self, registry: Registry, clear_after: int) -> None:
        self._registry = registry
        self._clear_after = clear_after
        self._decided: set[str] = set()

    def follow(self, history: Sequence[Route]) -> None:
        """Judge what serves, or has served, because an episode asked for it; `history` the newest first."""
        answered: set[str] = set()
        for request in self._registry.retraining.all(history[0].model):
            shipped = request.state == RetrainingState.SHIPPED and request.result_version is not None
            if not shipped or request.episode_id is None or request.episode_id in answered:
                continue
            answered.add(request.episode_id)  # the newest of an episode's, should there be more
            if request.id in self._decided:
                continue
            try:
                episode = self._registry.episodes.get(request.episode_id)
            except (NotFound, Unreadable) as error:
                log.error("what %s helped cannot be told: %s", request.id, error)
                self._decided.add(request.id)
                continue
            if self._written(episode, request, history) != PENDING:
                self._decided.add(request.id)

    def _written(self, episode: AlertEpisode, request: RetrainingRequest, history: Sequence[Route]) -> str:
        """Its verdict, once that is on the episode."""
        known = part_of(episode.evidence, "aftermath")
        if known.get("request") == request.id and known.get("verdict") != PENDING:
            return str(known["verdict"])
        version = request.result_version
        assert version is not None
        if (since := became_champion(history, version)) is None:
            return PENDING  # it was given everything, but is not champion yet
        scores = self._registry.episodes.scores
        anchors = scores(episode.model, version=version, signal=ANCHOR, since=since)
        judged = sum(score.verdict != UNJUDGED for score in anchors)
        closed = history[0].champion != version or judged >= LATEST * self._clear_after
        alarms = self._alarms(episode)
        among = max(1, sum(signal not in SHOWN for signal in alarms))
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
        among: int,
    ) -> Compared | None:
        seed = int(sha256(f"{request.id}\0{signal}".encode()).hexdigest()[:16], 16)
        in_order = sorted(after, key=lambda score: int(score.detail["window"]))
        return compared(signal, alarm, in_order, self._clear_after, seed, closed=closed, among=among)

    def _alarms(self, episode: AlertEpisode) -> dict[str, WindowScore]:
        """The window that alarmed, by signal; where no signal of the version did, what others made of that window."""
        ids = {
            str(finding.get("window")): s for s, finding in findings_of(episode).items() if s in (*OF_VERSION, *SHOWN)
        }
        found = {ids[score.id]: score for score in self._registry.episodes.scores_of(list(ids))}
        if found and not found.keys() & set(OF_VERSION):
            window = int(next(iter(found.values())).detail["window"])
            stand_ins = [score_id(episode.model, episode.version, signal, window) for signal in STAND_INS]
            found |= {score.signal: score for score in self._registry.episodes.scores_of(stand_ins)}
        return found


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
        if after["verdict"] == "did not help":  # of the others it is not known, or not yet
            found.append(request)
    return found
