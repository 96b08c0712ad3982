"""Rounds of the outbox: what is due is tried, receiver by receiver, each in a thread of its own.

A row is claimed before it is sent, by moving on the time it is due next: killed in between, it is due again when that
lease runs out, under the same key. An episode's rows go out in order; a receiver that fails is left alone for a
while, and holds up no other.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from tuneloop.monitor.delivery.deciding import LONGEST_WAIT_S, fate, heads, is_despite, uncovered, wait_s
from tuneloop.monitor.delivery.page import Page, Redact, page_of
from tuneloop.monitor.delivery.sending import AnyReceiver, NotTaken, PartlyTaken, Sending
from tuneloop.monitor.delivery.untold import untold
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.registry import Registry
from tuneloop.registry.deliveries.outbox import Delivery
from tuneloop.registry.deliveries.receivers import Alertmanager
from tuneloop.registry.deliveries.silences import APART, Silence, silenced, told_despite
from tuneloop.registry.errors import NotFound, TuneloopError, Unreadable
from tuneloop.registry.nouns import AlertEpisode

log = logging.getLogger("tuneloop.monitor.delivery")
LEASE_S = 120.0  # past what one attempt may take
UNREAD_S = 60.0  # until an episode that could not be read is tried again, by this monitor or by one that can
RENEW_S = 300.0  # between repetitions for Alertmanager, which takes an alert as over after four that stay out
_RECEIVERS = 16  # at once
# As page: that its episode got worse was told with it. Away: the receiver did not take it, and is to be left alone.
Became = Literal["ended", "ended as page", "waits", "away"]


@dataclass
class _Standing:
    """What a round remembers of a receiver; lost with the process, which costs an attempt."""

    failures: int = 0
    away_until: datetime | None = None
    renewed_at: datetime | None = None
    task: Future[None] | None = field(default=None, repr=False)


class Deliverer:
    """Delivers for one monitor; several may run on one database."""

    def __init__(
        self,
        registry: Registry,
        settings: MonitorSettings,
        metrics: Metrics,
        *,
        rng: random.Random,
        redact: Redact,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._rng = rng
        self._redact = redact
        self._stopping = stopping
        self._sending = Sending(settings.delivery_timeout_s, timedelta(seconds=4 * RENEW_S), registry.clock)
        self._standing: dict[str, _Standing] = {}
        self._pool = ThreadPoolExecutor(_RECEIVERS, thread_name_prefix="delivery")

    def run(self, wait: Callable[[float], object]) -> None:
        """Round after round until `stopping`; nothing that goes wrong ends it."""
        while not self._stopping():
            try:
                self.round()
            except TuneloopError as error:
                log.warning("nothing delivered, trying again in %.0f s: %s", self._settings.delivery_every_s, error)
            except Exception:  # people must be told, whatever this was
                log.exception("nothing delivered, trying again in %.0f s", self._settings.delivery_every_s)
            wait(self._settings.delivery_every_s)

    def round(self, *, to_the_end: bool = False) -> None:
        """Have every receiver tried that is not being tried still; `to_the_end` waits for all of them.

        Raises:
            Unavailable: the database does not answer.
        """
        policy = self._registry.outbox.receivers()
        if policy is None:  # it was damaged, and that is logged: who is told is not known
            self._metrics.receivers({}, 0)
            self._metrics.untold(untold(self._registry, ()))
            return
        waiting = self._registry.outbox.waiting()
        self._registry.database.tell(waiting.unreadable)
        names = {receiver.name for receiver in policy.receivers}
        for row in waiting:
            if row.receiver not in names:
                self._registry.outbox.end(row.id, "dropped", self._registry.clock(), "there is no such receiver now")
        for receiver in policy.receivers:
            standing = self._standing.setdefault(receiver.name, _Standing())
            if standing.task is None or standing.task.done():
                mine = [row for row in waiting if row.receiver == receiver.name]
                standing.task = self._pool.submit(self._serve, receiver, standing, mine)
        if to_the_end:
            for standing in self._standing.values():
                if standing.task is not None:
                    standing.task.result()
        backlogs = self._registry.outbox.backlogs(sorted(names), self._registry.clock())
        self._metrics.receivers(backlogs, len(names))
        self._metrics.untold(untold(self._registry, names))

    def close(self) -> None:
        """Wait for attempts under way, which end within their timeout."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _serve(self, receiver: AnyReceiver, standing: _Standing, waiting: Sequence[Delivery]) -> None:
        try:
            self._try(receiver, standing, waiting)
        except TuneloopError as error:
            log.warning("%s: this round is cut short: %s", receiver.name, error)
        except Exception:  # one receiver's surprise must not stop the others
            log.exception("%s: this round is cut short", receiver.name)

    def _try(self, receiver: AnyReceiver, standing: _Standing, waiting: Sequence[Delivery]) -> None:
        now = self._registry.clock()
        if standing.away_until is not None and now < standing.away_until <= now + timedelta(seconds=LONGEST_WAIT_S):
            return
        left = [row for row in waiting if not self._overtaken(receiver, row, waiting)]
        silences = self._registry.silences.all()
        told = self._registry.outbox.told(receiver.name)
        loud = [row for row in left if is_despite(row, APART)]
        left = [row for row in left if not self._passed_over(row, loud, silences)]
        while due := list(heads(left, now)):
            for row in due:
                became = "away" if self._stopping() else self._deliver(receiver, standing, row, silences, told)
                if became == "away":
                    return
                left = [one for one in left if one is not row and not _done_with(one, row, became)]
        if isinstance(receiver, Alertmanager):
            self._renew(receiver, standing, silences)

    def _deliver(
        self,
        receiver: AnyReceiver,
        standing: _Standing,
        row: Delivery,
        silences: Sequence[Silence],
        told: set[str],
    ) -> Became:
        """What becomes of one row."""
        outbox, now = self._registry.outbox, self._registry.clock()
        try:
            episode = self._registry.episodes.get(row.episode_id)
        except (NotFound, Unreadable) as error:
            return self._unread(receiver, row, error)
        what = fate(row, episode, silences, told, now)
        if what == "drop":
            outbox.end(row.id, "dropped", now, "the episode ended under a silence")
            return "ended"
        if what == "hold" or not outbox.claim(row, now, LEASE_S):
            return "waits"
        try:
            self._sending.send(receiver, self._page(receiver, row, episode, silences))
        except NotTaken as error:
            return self._failed(receiver, standing, row, error)
        except Exception as error:  # an odd secret or page is a failure like any other: it is counted and given up
            log.exception("%s: %s could not be sent", receiver.name, row.id)
            return self._failed(receiver, standing, row, NotTaken(f"a defect of the monitor: {type(error).__name__}"))
        paged = row.transition == "opened" and episode.severity == "page" and not isinstance(receiver, Alertmanager)
        as_page = paged and outbox.told_as_page(row, now, self._registry.clock())
        if row.transition == "opened":
            outbox.told_with_opening(row, uncovered(episode, silences, now), self._registry.clock())
        outbox.end(row.id, "sent", self._registry.clock())
        told.add(row.episode_id)
        standing.failures, standing.away_until = 0, None
        log.info("%s has %s of %s (%s)", receiver.name, row.transition, row.episode_id, row.id)
        return "ended as page" if as_page else "ended"

    def _failed(self, receiver: AnyReceiver, standing: _Standing, row: Delivery, error: NotTaken) -> Became:
        if isinstance(error, PartlyTaken):  # the receiver is there
            standing.failures, standing.away_until = 0, None
            self._put_off(receiver, row, error)
            return "waits"
        standing.failures += 1
        if self._put_off(receiver, row, error):
            away = max(min(error.retry_s, LONGEST_WAIT_S), wait_s(standing.failures, self._rng))
            standing.away_until = self._registry.clock() + timedelta(seconds=away)
        return "away"

    def _put_off(self, receiver: AnyReceiver, row: Delivery, error: NotTaken) -> bool:
        """Have it tried again later, unless that was done for long enough."""
        now, attempts = self._registry.clock(), row.attempts + 1
        if now - (row.first_at or now) >= timedelta(seconds=self._settings.delivery_give_up_s):
            self._registry.outbox.end(row.id, "given up", now, str(error))
            self._sending.forget(row.id)
            log.error("%s: %s given up after %d attempts: %s", receiver.name, row.id, attempts, error)
            return False
        asked = min(error.retry_s, LONGEST_WAIT_S)
        until = now + timedelta(seconds=max(asked, wait_s(attempts, self._rng)))
        self._registry.outbox.postpone(row.id, until, str(error))
        log.warning("%s did not take %s, attempt %d: %s", receiver.name, row.id, attempts, error)
        return True

    def _unread(self, receiver: AnyReceiver, row: Delivery, error: NotFound | Unreadable) -> Became:
        """An episode that cannot be read waits until it can, however long that is, and counts as failing meanwhile."""
        outbox, now = self._registry.outbox, self._registry.clock()
        if isinstance(error, NotFound):
            outbox.end(row.id, "dropped", now, "its episode is gone")
            return "ended"
        if outbox.claim(row, now, UNREAD_S):
            outbox.postpone(row.id, now + timedelta(seconds=UNREAD_S), str(error))
            log.error("%s: %s is not told: %s", receiver.name, row.id, error)
        return "waits"

    def _overtaken(self, receiver: AnyReceiver, row: Delivery, waiting: Sequence[Delivery]) -> bool:
        """End a mail that waits for some of its addresses only, where a later one of its episode is to go to all of
        them: that tells these as much, and who has the first is not to wait for them."""
        later = any(one.episode_id == row.episode_id and one.sequence > row.sequence for one in waiting)
        if not later or not self._sending.some_have(row.id):
            return False
        self._registry.outbox.end(row.id, "sent", self._registry.clock(), row.error)
        self._sending.forget(row.id)
        log.warning("%s: the next mail of %s tells those that %s did not reach", receiver.name, row.episode_id, row.id)
        return True

    def _passed_over(self, row: Delivery, loud: Sequence[Delivery], silences: Sequence[Silence]) -> bool:
        """End what a silence holds back where something later of its episode goes out despite that: a page tells the
        episode as it stands, and nothing goes out behind what came later."""
        later = [one for one in loud if one.episode_id == row.episode_id and one.sequence > row.sequence]
        if row.transition == "opened" or not later:
            return False
        try:
            episode = self._registry.episodes.get(row.episode_id)
        except (NotFound, Unreadable):  # what becomes of it is decided where its turn comes
            return False
        now = self._registry.clock()
        causes = uncovered(episode, silences, now)
        if is_despite(row, causes) or not any(is_despite(one, causes) for one in later):
            return False
        self._registry.outbox.end(row.id, "dropped", now, "it was told with what came despite a silence")
        return True

    def _renew(self, receiver: Alertmanager, standing: _Standing, silences: Sequence[Silence]) -> None:
        now = self._registry.clock()
        if standing.renewed_at is not None and now < standing.renewed_at + timedelta(seconds=RENEW_S):
            return
        told = self._registry.outbox.told(receiver.name)
        # Those that ended lately too: another monitor may have repeated one as it ended.
        lately = now - timedelta(seconds=2 * RENEW_S)
        pages = [
            self._page(receiver, _repetition(episode, receiver.name, now), episode, silences)
            for episode in self._registry.episodes.all()
            if episode.id in told
            and (episode.resolved_at is None or episode.resolved_at > lately)
            and (silenced(episode, silences, now) is None or told_despite(episode, silences, now))
        ]
        standing.renewed_at = now
        if pages:
            try:
                self._sending.renew(receiver, pages)
            except NotTaken as error:
                standing.renewed_at = None
                standing.failures += 1
                standing.away_until = now + timedelta(seconds=wait_s(standing.failures, self._rng))
                log.warning("%s: %d open alerts not repeated: %s", receiver.name, len(pages), error)

    def _page(self, receiver: AnyReceiver, row: Delivery, episode: AlertEpisode, silences: Sequence[Silence]) -> Page:
        base, silence = self._settings.runbook_base, silenced(episode, silences, self._registry.clock())
        return page_of(
            row, episode, examples=receiver.examples, redact=self._redact, runbook_base=base, silence=silence
        )


def _done_with(one: Delivery, row: Delivery, became: Became) -> bool:
    """Whether another row is left out of this round after what became of one: what waits holds up the rest of its
    episode, as they go out in order."""
    told = became == "ended as page" and one.transition == "worse"
    return one.episode_id == row.episode_id and (became == "waits" or told)


def _repetition(episode: AlertEpisode, receiver: str, now: datetime) -> Delivery:
    """What nobody has to take: it is in no outbox."""
    return Delivery(
        id="",
        episode_id=episode.id,
        receiver=receiver,
        transition="opened",
        sequence=0,
        created_at=now,
        state="sent",
        attempts=0,
        first_at=None,
        next_at=now,
        ended_at=None,
        error="",
    )
