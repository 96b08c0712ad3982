"""What a trial is: the revisions in a row, up to the newest, in which a version has a share beside one champion.

A rollout judges over them, and the monitor cuts its windows from them. Another champion begins another trial: what the
version did beside the one before says nothing of this comparison, nor does what it did while it was champion itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from tuneloop.registry.nouns import Route


def trial_revisions(back: Iterable[Route], version: int) -> list[Route]:
    """The revisions of a version's running trial, the newest first; empty where none runs.

    Args:
        back: the model's revisions, the newest first, as `Routes.back` reads them: no further than the trial goes.
        version: the challenger.

    Raises:
        Unreadable: a revision of the trial cannot be read; what went before it does not matter.
    """
    champion: int | None = None

    def goes_on(route: Route) -> bool:
        nonlocal champion
        champion = route.champion if champion is None else champion
        return route.champion == champion != version and route.split.get(version, 0) > 0

    return list(takewhile(goes_on, back))
