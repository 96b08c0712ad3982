"""The settings of every installed package, found by entry point."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any


def sections() -> dict[str, Any]:
    """Section name → its settings class."""
    points = sorted(entry_points(group="tuneloop.settings"), key=lambda point: point.name)
    return {section.section: section for point in points for section in point.load()}
