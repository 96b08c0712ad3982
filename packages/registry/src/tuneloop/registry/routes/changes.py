"""What differs between two revisions of a route, and for how many keys; pure."""

from __future__ import annotations

from tuneloop.registry.nouns import FULL_SHARE_BP, Noun, Route


class Difference(Noun):
    """One thing that is otherwise; None: it was not there, or is not."""

    what: str
    before: str | None
    after: str | None


class RouteDiff(Noun):
    """Two revisions held against each other."""

    before: Route
    after: Route
    differences: tuple[Difference, ...]
    moved_bp: float  # of the keys without a version of their own: those that get another version


def differences(before: Route, after: Route) -> RouteDiff:
    """What is otherwise in `after`, share by share, and how many keys that moves."""
    pairs: list[tuple[str, str | None, str | None]] = [
        (f"version {version}", _bp(before.split.get(version)), _bp(after.split.get(version)))
        for version in sorted({*before.split, *after.split})
    ]
    pairs.append(("champion", str(before.champion), str(after.champion)))
    pairs.append(("held out", _bp(before.holdout_bp), _bp(after.holdout_bp)))
    stood, stands = (route.shadow.text if route.shadow else None for route in (before, after))
    pairs.append(("shadow", stood, stands))
    for key in sorted({*before.overrides, *after.overrides}):
        old, new = (route.overrides.get(key) for route in (before, after))
        pairs.append((f"key {key}", None if old is None else str(old), None if new is None else str(new)))
    found = tuple(Difference(what=what, before=old, after=new) for what, old, new in pairs if old != new)
    return RouteDiff(before=before, after=after, differences=found, moved_bp=moved_bp(before, after))


def moved_bp(before: Route, after: Route) -> float:
    """Basis points of the keys that another version answers under `after`; keys with a version of their own apart.

    Who is held out is drawn independently of the place in the split, and a smaller holdout holds none that a larger
    does not: so some are held out by both, some by the larger alone, and the others by neither.
    """
    few, many = sorted((before, after), key=lambda route: route.holdout_bp)
    both, one = few.holdout_bp, many.holdout_bp - few.holdout_bp
    neither = FULL_SHARE_BP - many.holdout_bp
    old, new, others = _places(before), _places(after), _places(few)
    by_both = both if before.champion != after.champion else 0
    by_one = one * sum(version != many.champion for version in others)
    by_none = neither * sum(was != now for was, now in zip(old, new, strict=True))
    return by_both + (by_one + by_none) / FULL_SHARE_BP


def _places(route: Route) -> list[int]:
    """The version of each place in the split."""
    owners = {
        place: arm.version
        for arm, spans in zip(route.arms, route.spans, strict=True)
        for first, end in spans
        for place in range(first, end)
    }
    return [owners[place] for place in range(FULL_SHARE_BP)]


def _bp(share: int | None) -> str | None:
    return None if share is None else str(share)
