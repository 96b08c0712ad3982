"""What an episode's evidence says, read safely: whoever writes to the registry may open an episode, and one that says
nothing of itself must not keep the monitor from the others of its model.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tuneloop.registry.nouns import AlertEpisode


def since_of(episode: AlertEpisode) -> datetime:
    """When the problem began as far as windows tell; else when somebody saw it."""
    said = episode.evidence.get("since")
    try:
        at = datetime.fromisoformat(str(said))
    except ValueError:
        return episode.opened_at
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def findings_of(episode: AlertEpisode) -> dict[str, dict[str, Any]]:
    """What each signal has raised, by signal."""
    found = episode.evidence.get("signals")
    return found if isinstance(found, dict) else {}


def summary_of(episode: AlertEpisode) -> str:
    """One line of what is wrong; where it has none, its signal."""
    return str(episode.evidence.get("summary") or episode.signal)
