"""Those on call, who know only what they are told: pages, and each morning the retrainings that wait for them.

They do what the likeliest cause on the page asks for. Where it is the wrong one, what they do does not help, and the
event goes on: naming the cause is worth something here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from quarter_parts.traffic import MODEL
from tuneloop.registry import Registry
from tuneloop.registry.episodes import noted
from tuneloop.registry.nouns import Arm, RetrainingRequest, RetrainingState

WAKES_S, TRAINS_S = 3_600.0, 20 * 3_600.0  # a page is read within the hour; a run and its gate take a working day
MORNING = 9  # o'clock, when tickets and what waits for approval are looked at
WHO = "ada"


@dataclass(frozen=True)
class Told:
    """A delivery as it came."""

    at: datetime
    page: dict[str, Any]

    @property
    def cause(self) -> str:
        """The kind of the likeliest."""
        return str((self.page["causes"] or ["none: "])[0]).split(":")[0]


@dataclass
class People:
    """What they have been told and mean to do."""

    registry: Registry
    ends: Callable[[str], list[str]]  # ends what is going on of a kind; what that was, in words
    ship: Callable[[RetrainingRequest], int]  # trains it; the version
    say: Callable[[datetime, str], None]
    told: list[Told] = field(default_factory=list)
    _done: dict[str, str] = field(default_factory=dict)  # episode → the cause something was done about
    _due: list[tuple[datetime, Callable[[datetime], None]]] = field(default_factory=list)

    def hear(self, told: Told) -> None:
        """Somebody was told something."""
        self.told.append(told)
        if told.page["transition"] in {"opened", "worse"}:
            paged = told.page["severity"] == "page"
            at = told.at + timedelta(seconds=WAKES_S) if paged else _next_morning(told.at)
            self._due.append((at, lambda now: self._answer(told, now)))

    def act(self, now: datetime) -> None:
        """Do what is due by now."""
        if now.hour == MORNING:
            self._look_again(now)
            for request in self.registry.retraining.all(MODEL, open_only=True):
                if request.state is RetrainingState.PROPOSED:
                    self._approve(request, now)
        due = [what for at, what in self._due if at <= now]
        self._due = [(at, what) for at, what in self._due if at > now]
        for what in due:
            what(now)

    def _answer(self, told: Told, now: datetime) -> None:
        episode = self.registry.episodes.get(told.page["episode"])
        if episode.state != "open":
            return
        note = f"acknowledged by {WHO}"
        changed = noted(episode, note, now).model_copy(update={"state": "acknowledged"})
        self.registry.episodes.update(episode, changed, by=WHO, action="episode.ack")
        self._do_about(episode.id, told.cause, now)

    def _look_again(self, now: datetime) -> None:
        """Each morning at what is open still: further windows may have told more of its cause."""
        for episode in self.registry.episodes.all(MODEL, open_only=True):
            cause = str(episode.evidence["causes"][0]["kind"])
            if episode.state == "acknowledged" and self._done.get(episode.id) != cause:
                self._do_about(episode.id, cause, now)

    def _do_about(self, episode_id: str, cause: str, now: datetime) -> None:
        self._done[episode_id] = cause
        done = self._roll_back() if cause == "deploy" else self.ends(cause)
        said = "; ".join(done) or "nothing to do by hand"
        self.say(now, f"{WHO} has read {episode_id}, cause {cause}: {said}.")

    def _roll_back(self) -> list[str]:
        newest, *older = self.registry.routes.history(MODEL)
        before = next((route for route in older if route.champion != newest.champion), None)
        if before is None:
            return []
        self.promote(before.champion, f"back from {MODEL}@{newest.champion}: it was deployed just before the page")
        return [f"rolled back from version {newest.champion} to version {before.champion}"]

    def promote(self, version: int, reason: str, by: str = WHO) -> None:
        """Give a version all of the traffic."""
        history = self.registry.routes.history(MODEL)
        others = sorted({arm.version for arm in history[0].arms} - {version}) if history else []
        arms = [*(Arm(version=other, weight_bp=0) for other in others), Arm(version=version, weight_bp=10_000)]
        self.registry.routes.write(MODEL, arms, by=by, reason=reason, expected_revision=len(history))

    def _approve(self, request: RetrainingRequest, now: datetime) -> None:
        self.registry.retraining.approve(request.id, by=WHO, reason="looked at its episode")
        self.say(now, f"{WHO} approves retraining {request.id}, on {request.rows} corrections.")
        self._due.append((now + timedelta(seconds=TRAINS_S), self._ship))

    def _ship(self, now: datetime) -> None:
        queue = self.registry.retraining
        request = queue.claim("worker", lease_s=60)
        if request is None:
            return
        version = self.ship(request)
        outcome = f"{MODEL}@{version} passed its gate"
        gated = queue.finish(request, RetrainingState.GATED, by="worker", outcome=outcome, result_version=version)
        queue.finish(gated, RetrainingState.SHIPPED, by="worker", outcome=f"{MODEL}@{version} serves")
        self.promote(version, f"retrained by {request.id}", by="worker")
        self.say(now, f"Retraining {request.id} is done: {outcome}, and takes over.")


def _next_morning(at: datetime) -> datetime:
    morning = at.replace(hour=MORNING, minute=0, second=0, microsecond=0)
    return morning if morning > at else morning + timedelta(days=1)
