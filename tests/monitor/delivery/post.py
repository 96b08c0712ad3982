"""A registry with receivers, episodes to tell of, and a deliverer as a monitor has it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from monitor.delivery.servers import HttpReceiver
from tests_support import Clock, alert_episode
from tuneloop.monitor.delivery.rounds import Deliverer
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.registry import Registry
from tuneloop.registry.deliveries.outbox import Delivery
from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy
from tuneloop.registry.nouns import AlertEpisode

DEAD = "http://127.0.0.1:9/hook"  # the discard port: nobody listens
EVIDENCE: dict[str, Any] = {
    "summary": "bot@1 is asked other questions than before",
    "since": "2026-11-01T11:58:00+00:00",
    "mean_run_length": 10_000,
    "reference": {"n": 120, "from": "2026-11-01T09:00:00+00:00", "to": "2026-11-01T10:00:00+00:00"},
    "causes": [{"kind": "drift", "why": "users ask other questions", "explains": ["prompt_drift"]}],
    "changes": [{"at": "2026-11-01T11:00:00+00:00", "kind": "policy", "what": "11:00 policy.gate of bot by ada"}],
    "signals": {
        "prompt_drift": {
            "statistic": 0.2,
            "threshold": 0.1,
            "p_value": 0.001,
            "detector": "mmd",
            "n": 40,
            "window_start": "2026-11-01T11:58:00+00:00",
            "window_end": "2026-11-01T11:59:00+00:00",
            "examples": [{"request_id": "r1", "question": "Who is <!channel>? Write to ada@example.com", "weight": 1.0}]
            + [{"request_id": f"r{n}", "question": f"question {n}", "weight": 0.5} for n in range(2, 8)],
        }
    },
}


def as_they_are(texts: Sequence[str]) -> list[str]:
    """For tests that look at something else than redaction, which starts a process."""
    return list(texts)


def tell(registry: Registry, *receivers: dict[str, Any]) -> None:
    """These hear of episodes from now on."""
    policy = ReceiversPolicy.model_validate({"receivers": list(receivers)})
    registry.policies.set(EVERY_MODEL, policy, by="ada", reason="test")


def open_episode(registry: Registry, **changes: Any) -> AlertEpisode:
    """An episode opens now, as a ticket."""
    fields: dict[str, Any] = {"severity": "ticket", "evidence": EVIDENCE} | changes
    return registry.episodes.open(alert_episode(registry.clock(), **fields))


def worsen(registry: Registry, episode: AlertEpisode) -> AlertEpisode:
    worse = episode.model_copy(update={"severity": "page", "updated_at": registry.clock()})
    registry.episodes.update(episode, worse, by="monitor", action="episode.window")
    return worse


def acknowledge(registry: Registry, episode: AlertEpisode) -> AlertEpisode:
    taken = episode.model_copy(update={"state": "acknowledged", "updated_at": registry.clock()})
    registry.episodes.update(episode, taken, by="ada", action="episode.ack")
    return taken


def end(registry: Registry, episode: AlertEpisode) -> AlertEpisode:
    now = registry.clock()
    over = episode.model_copy(update={"state": "resolved", "resolved_at": now, "updated_at": now})
    registry.episodes.update(episode, over, by="monitor", action="episode.resolve")
    return over


@contextmanager
def deliverer(registry: Registry, metrics: Metrics | None = None, **changes: Any) -> Iterator[Deliverer]:
    """As a fresh monitor has it; its chance always falls the same."""
    settings = MonitorSettings(delivery_timeout_s=5.0).model_copy(update=changes)
    made = Deliverer(registry, settings, metrics or Metrics(), rng=random.Random(3), redact=as_they_are)
    try:
        yield made
    finally:
        made.close()


def rounds(registry: Registry, clock: Clock, n: int = 1, every_s: float = 2.0, **changes: Any) -> None:
    """Some rounds of one monitor, to their end."""
    with deliverer(registry, **changes) as made:
        for _ in range(n):
            made.round(to_the_end=True)
            clock.advance(every_s)


def chat(hook: HttpReceiver | str, name: str = "chat", **changes: Any) -> dict[str, Any]:
    """A receiver of chat messages, as a policy names it."""
    url = hook if isinstance(hook, str) else hook.url
    return {"kind": "slack", "name": name, "url": url, "examples": 0} | changes


def titles(hook: HttpReceiver) -> list[str]:
    """What a chat was told, in order."""
    return [json.loads(told.body)["text"] for told in hook.told]


def row_of(episode: AlertEpisode, at: datetime) -> Delivery:
    """A delivery that tells Alertmanager that an episode is worse."""
    return Delivery(
        id="dl",
        episode_id=episode.id,
        receiver="am",
        transition="worse",
        sequence=1,
        created_at=at,
        state="waiting",
        attempts=0,
        first_at=None,
        next_at=at,
        ended_at=None,
        error="",
    )
