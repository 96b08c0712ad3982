"""Which version answers which key: a pure function of (route, key), so every replica agrees without talking.

`bucket = BLAKE2b-64(salt ‖ 0 ‖ model ‖ 0 ‖ key) mod 10,000`. A challenger of weight w owns `[0, w)`, so raising w only
moves keys from the champion to it, and lowering it is the exact inverse. Costs about 2 µs.
"""

from __future__ import annotations

from hashlib import blake2b

from tuneloop.registry.nouns import FULL_SHARE_BP, Route


def bucket(salt: str, model: str, key: str) -> int:
    """The key's place in [0, 10,000); the same in any language that has BLAKE2b."""
    digest = blake2b(f"{salt}\0{model}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % FULL_SHARE_BP


def assign(route: Route, key: str) -> int:
    """The version that answers this key under this route revision."""
    place = bucket(route.salt, route.model, key)
    upper = 0
    for arm in route.arms:
        upper += arm.weight_bp
        if place < upper:
            return arm.version
    raise AssertionError(f"weights of {route.model} revision {route.revision} do not cover bucket {place}")
