"""Corrections that no retraining may be asked for on: how many, and why each is none that counts. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from tuneloop.registry.corrections import LeftOut


def _nothing(_after: datetime | None) -> LeftOut:
    return LeftOut()


@dataclass(frozen=True)
class Uncounted:
    """What of an episode's corrections does not count, and whether it may yet."""

    left_out: Callable[[datetime | None], LeftOut] = _nothing  # given until when earlier ones were learned from
    spoilt: str = ""  # what went on until corrections counted again
    judged_first: bool = False  # whether one counts only once a window that came after it is judged
    stopped: str = ""  # why no window is judged any more; empty: they are


def told(found: LeftOut, *, version: str, tried: str, spoilt: str, spoilt_until: datetime | None) -> list[str]:
    """Why those that were left out do not count, each with how many.

    Args:
        found: how many, by why. version: `model@version`, whose windows are judged. tried: the request that learned
            from those that are used. spoilt, spoilt_until: what went on until when.
    """
    until = "" if spoilt_until is None else f" by {spoilt_until:%Y-%m-%d %H:%M:%S}Z, until when {spoilt}"
    model = version.partition("@")[0]
    kinds = (
        (found.unjudged, f"came after the newest judged window of {version}"),
        (found.used, f"{tried} has learned from"),
        (found.spoilt, f"are of what was asked{until}"),
        (found.without_text, f"have no text on record any more (`tuneloop retention {model}`)"),
    )
    return [f"{count} {why}" for count, why in kinds if count]
