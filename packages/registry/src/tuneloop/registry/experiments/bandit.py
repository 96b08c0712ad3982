"""Thompson sampling with a floor: each arm's share is how likely it is the best one; pure, randomness is given.

Thompson (1933); a normal posterior for each arm's metric, which by the central limit theorem is what hundreds of units
leave of any prior. The floor keeps every arm measured, so that a wrong early guess is found out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuneloop.registry.nouns import FULL_SHARE_BP

DRAWS = 20_000


def best_chances(
    means: Sequence[float], errors: Sequence[float], *, lower_is_better: bool, rng: np.random.Generator
) -> list[float]:
    """How likely each arm is the best; 1 together."""
    drawn = rng.normal(means, errors, size=(DRAWS, len(means)))
    best = drawn.argmin(1) if lower_is_better else drawn.argmax(1)
    return [float(share) for share in np.bincount(best, minlength=len(means)) / DRAWS]


def shares_bp(chances: Sequence[float], floor_bp: int) -> list[int]:
    """The arms' shares: the floor for each, and the rest by how likely each is the best; 10,000 together."""
    free = FULL_SHARE_BP - floor_bp * len(chances)
    whole = [floor_bp + int(free * chance) for chance in chances]
    whole[max(range(len(chances)), key=lambda arm: chances[arm])] += FULL_SHARE_BP - sum(whole)
    return whole
