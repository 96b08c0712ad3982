"""How many series a gateway keeps: names come and go for as long as it runs, and its memory must not grow with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

MOST_GONE = 64  # engines, keys, owners: whoever is on call sees them, and ever new names fill no memory
MOST_VERSIONS_GONE = 16  # that no route names: each has series for every engine that had it
MOST_OWNERS = 200  # with series of their own; the others' are summed up
MOST_KEYS = 200  # the same, of those that a limit refused
OTHER = "(other)"

T = TypeVar("T")


def kept(known: Iterable[T], live: Iterable[T], most_gone: int = MOST_GONE) -> dict[T, None]:
    """Of those that are gone the `most_gone` that left last, then those that live: what is `known` next time."""
    living = dict.fromkeys(live)
    gone = [one for one in known if one not in living]
    return dict.fromkeys(gone[max(len(gone) - most_gone, 0) :]) | living
