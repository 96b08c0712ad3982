"""Builders of nouns for tests: valid by default, each field open to change."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tuneloop.registry import Registry
from tuneloop.registry.nouns import (
    AdapterState,
    AlertEpisode,
    EngineState,
    GatewayState,
    Message,
    RequestRecord,
    RetrainingRequest,
    RetrainingState,
    Version,
    WindowScore,
)
from tuneloop.registry.retraining.queue import new_request_id
from tuneloop.registry.versions.store import VersionDraft

_PORTS = range(10_240, 32_768)
_given = set[int]()  # of those, by this process


def free_port() -> int:
    """A port nobody listens on at this moment, of those that Linux as it comes gives to nobody who asks for any port or
    connects to one: until it is used, which may take a process seconds, no other test's socket happens to get it."""
    while True:
        port = secrets.choice(_PORTS)  # tests run side by side, so without a seed
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                if port not in _given:
                    _given.add(port)
                    return port


@contextmanager
def statements(registry: Registry) -> Iterator[list[str]]:
    """What the database is asked meanwhile."""
    asked: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        asked.append(statement)

    sa.event.listen(registry.database.engine, "before_cursor_execute", listen)
    yield asked
    sa.event.remove(registry.database.engine, "before_cursor_execute", listen)


@dataclass
class Clock:
    """A clock that stands still until it is told to move."""

    now: datetime = field(default_factory=lambda: datetime(2026, 11, 1, 12, 0, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def retraining_request(at: datetime, **changes: Any) -> RetrainingRequest:
    """A proposed request for `bot`; the same idempotency key every time unless changed."""
    fields: dict[str, Any] = {
        "id": new_request_id(),
        "idempotency_key": "k" * 64,
        "model": "bot",
        "base_version": 1,
        "episode_id": None,
        "reason": "prompt drift",
        "window_start": at,
        "window_end": at,
        "rows": 80,
        "recipe": "recipe.yaml",
        "state": RetrainingState.PROPOSED,
        "created_at": at,
        "updated_at": at,
    }
    return RetrainingRequest(**(fields | changes))


def request_record(number: int, at: datetime, **changes: Any) -> RequestRecord:
    """An answered chat request to `bot`, served by version 1."""
    fields: dict[str, Any] = {
        "id": f"req-{number}",
        "at": at,
        "model": "bot",
        "revision": 1,
        "assigned_version": 1,
        "served_version": 1,
        "engine": "e1",
        "key_hash": f"h{number}",
        "key_source": "user",
        "api_key": "key_1",
        "endpoint": "chat",
        "stream": False,
        "status": 200,
        "total_ms": 100.0 + number % 7,
        "messages": (Message(role="user", content=f"What does f{number} do?"),),
        "answer": "It does.",
    }
    return RequestRecord(**(fields | changes))


def publish_version(registry: Registry, folder: Path, **changes: Any) -> Version:
    """A version of `bot` in MLflow: a tiny but well-formed safetensors file, registered like any other."""
    folder.mkdir(parents=True, exist_ok=True)
    header = b'{"__metadata__":{"n":"%d"}}' % len(registry.versions.models())
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    fields: dict[str, Any] = {
        "model": "bot",
        "kind": "adapter",
        "base": "base",
        "base_digest": "sha256:base",
        "template_digest": "sha256:template",
        "data_digest": "sha256:data",
        "data_rows": 10,
        "recipe_digest": "sha256:recipe",
        "code_commit": "0" * 40,
        "rank": 8,
    }
    draft = VersionDraft(**(fields | changes))
    run_id = registry.versions.start_run(draft.model, name="test", params={})
    version = registry.versions.publish(draft, run_id=run_id, folder=folder)
    registry.versions.end_run(run_id, "FINISHED")
    return version


def beat_engine(registry: Registry, *names: str, **changes: Any) -> EngineState:
    """An engine's heartbeat that says it serves these versions."""
    fields: dict[str, Any] = {
        "id": "e1",
        "url": "http://127.0.0.1:1",
        "base": "base",
        "base_digest": "sha256:base",
        "template_digest": "sha256:template",
        "state": "ready",
        "adapters": dict.fromkeys(names, AdapterState.READY),
        "max_loras": 6,
        "max_lora_rank": 16,
        "at": registry.clock(),
    }
    state = EngineState(**(fields | changes))
    registry.fleet.beat_engine(state)
    return state


def beat_gateway(registry: Registry, applied: Mapping[str, int], **changes: Any) -> GatewayState:
    """A gateway's heartbeat that says which revision of each route it applies."""
    fields: dict[str, Any] = {
        "id": "g1",
        "url": "http://127.0.0.1:2",
        "applied": dict(applied),
        "in_flight": {},
        "dropped_records": 0,
        "at": registry.clock(),
    }
    state = GatewayState(**(fields | changes))
    registry.fleet.beat_gateway(state)
    return state


def window_score(at: datetime, **changes: Any) -> WindowScore:
    """A window of `bot@1` that shows prompt drift."""
    fields: dict[str, Any] = {
        "id": "w1",
        "at": at,
        "model": "bot",
        "version": 1,
        "signal": "prompt_drift",
        "window_start": at,
        "window_end": at,
        "n": 40,
        "statistic": 0.2,
        "threshold": 0.1,
        "p_value": 0.001,
        "mean_run_length": 10_000.0,
        "verdict": "drift",
    }
    return WindowScore(**(fields | changes))


# What somebody may have written as an episode's evidence, of which nothing can be understood.
ODD_EVIDENCE: list[dict[str, Any]] = [
    {"signals": None, "since": None, "summary": None, "reference": None},
    {"signals": ["latency"], "since": 7, "reference": "none"},
    {"signals": {"latency": None, "injections": "much", "served_model_change": {"engines": None}}},
    {"signals": {"latency": {"engines": [1], "window_start": None, "window_end": "soon"}, "injections": {"shares": 3}}},
    {"causes": None, "changes": None, "signals": {"latency": {"statistic": None, "words": None, "examples": 7}}},
    {"causes": [None, {"kind": "deploy"}], "changes": [{"kind": "deploy"}, "late"], "since": []},
    {"signals": {"latency": {"statistic": 1, "threshold": 2, "words": [{"word": 3}], "examples": [None, {"a": 1}]}}},
]


def alert_episode(at: datetime, **changes: Any) -> AlertEpisode:
    """An open episode of `bot@1`."""
    fields: dict[str, Any] = {
        "id": "ep1",
        "model": "bot",
        "version": 1,
        "signal": "prompt_drift",
        "detector": "mmd",
        "severity": "page",
        "state": "open",
        "opened_at": at,
        "updated_at": at,
        "windows": ("w1",),
        "evidence": {},
        "runbook": "docs/runbooks/prompt_drift.md",
    }
    return AlertEpisode(**(fields | changes))
