"""Why no window of a champion is judged for want of text: one of three reasons, for a metric, and in words, for people.

Texts may be recorded by nobody, which somebody chose; they may be deleted by their age before a window or a reference
is full; and a reference may have lost what every window is held against.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Literal

from tuneloop.monitor.reference import lost_reference
from tuneloop.monitor.textless import is_textless, without_text
from tuneloop.registry import Registry
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.nouns import Route
from tuneloop.registry.retention_policy import current_retention
from tuneloop.registry.traffic import ANSWERED

Reason = Literal["not_recorded", "deleted", "reference_lost"]


def why_textless(registry: Registry, model: str, version: int) -> Reason:
    """Of a champion whose newest answers are without text: by their age, or from the beginning on."""
    until = _deleted_until(registry, model)
    if until is None:
        return "not_recorded"
    newest = registry.traffic.window(model, until=registry.clock(), version=version, newest=1)
    return "deleted" if newest and newest[0].at <= until else "not_recorded"


def why_unfilled(
    registry: Registry, model: str, version: int, since: datetime, taken: AbstractSet[str], *, lost: bool
) -> Reason | None:
    """Of a champion whose next window, or reference, is not full, where that is for want of text.

    Args:
        registry, model, version: whose. since: what came later is in no window yet but for those `taken`; the text of
            the rest has gone by its age where it fills more slowly than text is deleted.
        lost: whether its reference has lost some of its records, or their text.
    """
    if lost:
        return "reference_lost"
    until = _deleted_until(registry, model)
    if until is None:
        return None
    newest = registry.traffic.window(model, since=since, until=until, version=version, newest=1)
    gone = (r for r in newest if r.status == ANSWERED and not r.question and r.id not in taken)
    return "deleted" if any(gone) else None


def in_words(registry: Registry, route: Route) -> str:
    """Why no window of a model's champion is judged, as far as what is on record tells; empty: it is."""
    if is_textless(registry, route.model, route.champion):
        return without_text(route.model, route.champion)
    return lost_reference(registry, route.model, route.champion)


def _deleted_until(registry: Registry, model: str) -> datetime | None:
    try:
        return current_retention(registry.database).of(model).texts_until(registry.clock())
    except Unreadable:  # nothing is deleted by it
        return None
