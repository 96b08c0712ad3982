"""Up to which rank adapters on a base are served: asked of live engines, else of the settings, else the engine's own.

The settings of an engine are another package's, so of `[engine]` only this one value is looked at.
"""

from __future__ import annotations

from collections.abc import Callable

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.nouns import EngineState
from tuneloop.registry.settings import Section
from tuneloop.registry.versions.adapters import highest_rank
from tuneloop.train.tuning.served import RankLimit

DEFAULT_RANK = 16  # of `[engine] max_lora_rank`


def rank_limit(registry: Registry | None, base_digest: Callable[[], str | None]) -> RankLimit:
    """The highest rank that is served, and by whose word.

    Args:
        registry: whose live engines are asked; None: there is no state yet.
        base_digest: of the base; called only where an engine lives. None: it is not on this machine.

    Raises:
        InvalidInput: the settings name no rank.
    """
    engines, away = _engines(registry)
    if engines and (digest := base_digest()) is not None and (rank := highest_rank(engines, digest)) is not None:
        return RankLimit(rank, "the highest --max-lora-rank of the live engines with this base")
    if (given := Section.given("engine", "max_lora_rank")) is None:
        return RankLimit(DEFAULT_RANK, f"the engine's default --max-lora-rank{away}")
    value, origin = given
    try:
        return RankLimit(int(value), f"the engine's max_lora_rank, from {origin}{away}")
    except (TypeError, ValueError):
        raise InvalidInput(f"[engine] max_lora_rank, from {origin}, is {value!r} and no number; correct it") from None


def _engines(registry: Registry | None) -> tuple[list[EngineState], str]:
    """Live engines that serve adapters, and why there may be others."""
    try:
        return [one for one in registry.fleet.engines() if one.max_loras] if registry is not None else [], ""
    except Unavailable as error:
        return [], f" (live engines could not be asked: {error})"
