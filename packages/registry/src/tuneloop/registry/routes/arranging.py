"""The arms of the next revision of a route, in order, and which places of the split each of them owns; pure.

As few keys change their version as the shares allow: an arm whose share stays keeps its places, one that grows takes
only what others give up, and gives the last it took back first, so that lowering it is the inverse of raising it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import FULL_SHARE_BP, Arm, Route, Span, in_order


def arrange(before: Route | None, split: Mapping[int, int]) -> tuple[Arm, ...]:
    """The arms in order: challengers as they stood, new ones after them, the champion last.

    The champion stays while it has a share, so raising a canary never moves a key back; without one the heaviest
    follows.

    Raises:
        InvalidInput: a version or a weight is out of range, or there are no arms.
    """
    if not split:
        raise InvalidInput("a route needs at least one VERSION=WEIGHT")
    for version, weight_bp in split.items():
        if version < 1:
            raise InvalidInput(f"version {version} does not exist; versions are numbered from 1")
        if not 0 <= weight_bp <= FULL_SHARE_BP:
            raise InvalidInput(
                f"weight {weight_bp} of version {version} is not between 0 and {FULL_SHARE_BP} basis points"
            )
    if total := sum(split.values()) - FULL_SHARE_BP:
        raise InvalidInput(
            f"weights sum to {total + FULL_SHARE_BP}, not {FULL_SHARE_BP} basis points; add {-total} to one version"
        )
    standing = [arm.version for arm in before.arms] if before else []
    champion = (
        before.champion if before and split.get(before.champion, 0) > 0 else max(split, key=lambda v: (split[v], v))
    )
    order = [v for v in standing if v in split and v != champion] + [
        v for v in split if v not in standing and v != champion
    ]
    arms = tuple(Arm(version=v, weight_bp=split[v]) for v in (*order, champion))
    return _placed(before, arms) if before else arms


def _placed(before: Route, arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """The arms with their places, which go unsaid where they follow from the order."""
    stood = {arm.version: _listed(spans) for arm, spans in zip(before.arms, before.spans, strict=True)}
    champion = arms[-1].version
    stood[before.champion].sort(reverse=True)  # the stable arm has no order of taking: it gives its lowest up first
    kept, free = dict[int, list[int]](), list[int]()
    for arm in arms:
        had = stood.pop(arm.version, [])
        kept[arm.version] = had[: arm.weight_bp]
        free += had[arm.weight_bp :]
    free = sorted(free + [place for places in stood.values() for place in places])
    for arm in arms:
        places = kept[arm.version]
        missing = arm.weight_bp - len(places)
        kept[arm.version], free = places + free[:missing], free[missing:]
    for version in {champion, before.champion} & kept.keys():
        kept[version].sort()
    spans = tuple(_spans(kept[arm.version]) for arm in arms)
    if spans == in_order(arms):
        return tuple(arms)
    return tuple(
        arm.model_copy(update={"places": owned if arm.weight_bp else None})
        for arm, owned in zip(arms, spans, strict=True)
    )


def _listed(spans: Iterable[Span]) -> list[int]:
    """All places, in the order in which they were taken."""
    return [place for first, end in spans for place in range(first, end)]


def _spans(places: Sequence[int]) -> tuple[Span, ...]:
    """The runs among them, in their order."""
    found = list[Span]()
    for place in places:
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return tuple(found)
