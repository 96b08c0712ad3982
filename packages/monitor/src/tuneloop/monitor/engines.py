"""Which engines an episode may be of, and what of them may have made answers late. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from tuneloop.registry.evidence import findings_of, part_of
from tuneloop.registry.fleet import STALE_AFTER_S
from tuneloop.registry.nouns import AlertEpisode, EngineState


def of_model(engines: Iterable[EngineState], episode: AlertEpisode) -> list[EngineState]:
    """Those that hold a version of an episode's model, or are named in what it saw; and those that hold nothing yet on
    a base that others hold one on, for they should."""
    known, findings = list(engines), findings_of(episode).values()
    seen = {name for finding in findings for name in part_of(finding, "engines")}
    here = [e for e in known if e.id in seen or any(name.startswith(f"{episode.model}@") for name in e.adapters)]
    bases = {engine.base_digest for engine in here}
    return [e for e in known if e in here or (not e.adapters and e.base_digest in bases)]


def said_of(engine: EngineState, until: datetime) -> str:
    """What is not as it should be with an engine; empty: nothing."""
    if engine.at < until - timedelta(seconds=STALE_AFTER_S):
        return "has not been heard of since"
    if engine.state != "ready":
        return f"is {engine.state}" + (f": {engine.detail}" if engine.detail else "")
    return ""
