"""Which version answers which key: a pure function of (route, key), so every replica agrees without talking.

`bucket = BLAKE2b-64(salt ‖ 0 ‖ model ‖ 0 ‖ key) mod 10,000`, and each of the places is an arm's. A challenger that is
raised only takes places, of those whose share falls, and lowering it is the exact inverse (`arranging`). Costs about
2 µs.

A route may hold a share of the keys out: they get the champion whatever the split says. Their places come from a salt
of their own, so who is held out tells nothing of who would get which arm, and from the key's hash, so that a record,
which keeps no more, tells too. Whose requests a shadow is sent copies of is drawn likewise, by a third salt.
"""

from __future__ import annotations

from hashlib import blake2b, sha256

from tuneloop.registry.nouns import FULL_SHARE_BP, Route


def bucket(salt: str, model: str, key: str) -> int:
    """The key's place in [0, 10,000); the same in any language that has BLAKE2b."""
    digest = blake2b(f"{salt}\0{model}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % FULL_SHARE_BP


def key_hash(key: str) -> str:
    """The first 128 bits of the SHA-256 of a sticky key, in hex: how records and overrides keep it."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def overridden(route: Route, key: str) -> int | None:
    """The version this key was given by name, whatever the split says; None for all but a few."""
    return route.overrides.get(key_hash(key)) if route.overrides else None


def held_out(route: Route, hashed: str) -> bool:
    """Whether a key, by its `key_hash`, is kept out of the split of this route revision; the same for a record's."""
    return route.holdout_bp > 0 and bucket(f"{route.salt}/holdout", route.model, hashed) < route.holdout_bp


def shadowed(route: Route, hashed: str) -> bool:
    """Whether the shadow of this route revision, if it has one, is sent copies of what a key asks; by `key_hash`.

    A larger share adds keys and lets go of none.
    """
    shadow = route.shadow
    return shadow is not None and bucket(f"{route.salt}/shadow", route.model, hashed) < shadow.share_bp


def assign(route: Route, key: str) -> int:
    """The version that this route revision gives this key: by the split, or the champion to one that is held out."""
    if route.holdout_bp > 0 and held_out(route, key_hash(key)):
        return route.champion
    place = bucket(route.salt, route.model, key)
    upper = 0
    for arm in route.arms:
        upper += arm.weight_bp
        if arm.places is None:
            if place < upper and arm.weight_bp:
                return arm.version
        elif any(first <= place < end for first, end in arm.places):
            return arm.version
    raise AssertionError(f"weights of {route.model} revision {route.revision} do not cover bucket {place}")
