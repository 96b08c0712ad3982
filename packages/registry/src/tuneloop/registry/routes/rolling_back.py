"""Taking the last change of who serves back: to whom, told from the revisions and from what the audit log says of each.

It loads nothing that the route still names, and reads no more revisions than it takes to tell who was champion before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tuneloop.registry.errors import Refused, Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Route, Shadow, version_name
from tuneloop.registry.routes.arranging import arrange
from tuneloop.registry.routes.promotion import Change, Follow, as_seen, put

_ROLLBACK = "route.rollback"
_ENTRIES_EACH = 4  # of the audit log, to begin with
_FEW = 2  # revisions, which as a rule tell who was champion before; then twice as many, and so on


def rollback(
    registry: Registry,
    model: str,
    change: Change,
    *,
    to_revision: int | None = None,
    expected_revision: int | None = None,
    noted: Mapping[str, Any] | None = None,
    follow: Follow | None = None,
) -> Route:
    """Take the last change of who serves back: a canary loses its share, or the champion before this one returns.

    A second rollback goes one champion further back, never forward to the one just left. Only what the route no longer
    names is loaded. With `to_revision` the arms of that revision return as they stood, the champion and the shadow
    included.

    Raises:
        NotFound: there is no route, or no such revision.
        Refused: there is nothing to go back to, or what would get a share back is not approved (and not forced).
        Conflict, Unavailable: like `set_route`.
    """
    registry.route(model)  # raises what to do when there is none
    now = as_seen(registry, model, expected_revision)
    assert now is not None
    shadow: tuple[()] | tuple[Shadow] | None = None
    if to_revision is not None:
        there = registry.routes.at(model, to_revision)
        arms, shadow = there.arms, (there.shadow,) if there.shadow else ()
    elif any(arm.weight_bp > 0 for arm in now.arms[:-1]):
        arms = arrange(now, {arm.version: 0 for arm in now.arms[:-1]} | {now.champion: FULL_SHARE_BP})
    else:
        former = _former_champion(registry, model)
        if former is None:
            raise Refused(
                f"nothing else served {model} before {version_name(model, now.champion)}: nothing to go back to; "
                f"`tuneloop route history {model}` shows every split, `tuneloop promote` makes another the champion"
            )
        arms = arrange(now, {now.champion: 0, former: FULL_SHARE_BP})
    return put(
        registry, model, now, arms, change, action=_ROLLBACK, noted=noted, follow=follow, shadow=shadow, back=True
    )


def _former_champion(registry: Registry, model: str) -> int | None:
    """Who served before the present champion, from no more revisions than that takes; None: nobody else did."""
    back, seen, read = registry.routes.back(model), list[Route](), 0
    try:
        while True:
            read = max(_FEW, 2 * read)
            damage = _extend(seen, back, read)
            whole = damage is None and len(seen) < read
            before = champions_before(seen, _rollbacks(registry, model, seen), whole=whole)
            if before or whole:
                return before[-1] if before else None
            if damage is not None:
                raise damage
    except Unreadable as error:
        raise Unreadable(
            f"who served {model} before cannot be told for certain: {error}; say where to go back to: "
            f"`tuneloop rollback {model} --to REVISION`, of those `tuneloop route history {model}` shows"
        ) from None


def _extend(seen: list[Route], back: Iterator[Route], size: int) -> Unreadable | None:
    """Read further back until there are so many revisions, if there are; and what hindered it."""
    try:
        while len(seen) < size and (route := next(back, None)) is not None:
            seen.append(route)
    except Unreadable as error:
        return error
    return None


def _rollbacks(registry: Registry, model: str, seen: Sequence[Route]) -> set[int]:
    """Which of the newest revisions a rollback wrote: the log has each in turn, among what else was done to a model."""
    limit = _ENTRIES_EACH * len(seen)
    while True:
        entries = registry.audit.entries(model, limit=limit).whole()
        written = {entry.detail["revision"]: entry.action for entry in entries if "revision" in entry.detail}
        if len(entries) < limit or min(written, default=seen[-1].revision + 1) <= seen[-1].revision:
            return {revision for revision, action in written.items() if action == _ROLLBACK}
        limit *= _ENTRIES_EACH


def champions_before(newest: Sequence[Route], rollbacks: Collection[int], *, whole: bool) -> list[int]:
    """The champions before the present one, the latest last, as far as these revisions tell. What a rollback has left
    is not among them.

    Args:
        newest: the newest revisions, the newest first.
        rollbacks: which of them a rollback wrote.
        whole: whether these are all revisions there are.
    """
    line: list[int] = []
    for route in reversed(newest):
        if line and route.champion == line[-1]:
            continue
        if route.revision in rollbacks and route.champion in line:
            while line[-1] != route.champion:
                line.pop()
        elif (
            route.revision in rollbacks and not whole
        ):  # it may have left everybody seen here: who is below is not known
            line = [route.champion]
        else:
            line.append(route.champion)
    return line[:-1]
