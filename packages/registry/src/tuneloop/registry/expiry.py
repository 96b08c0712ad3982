"""How long a key or an approval holds."""

from __future__ import annotations

from datetime import datetime, timedelta

from tuneloop.registry.errors import InvalidInput

_LONGEST_S = 36_525 * 86_400.0  # a century; beyond it, give none


def expires_at(now: datetime, ttl_s: float | None, what: str) -> datetime | None:
    """When something made now ends; None, for a `ttl_s` of None, is never.

    Raises:
        InvalidInput: it would end before it could be used, or after all of us.
    """
    if ttl_s is None:
        return None
    if ttl_s <= 0:
        days = f"{ttl_s / 86_400:g} days"
        raise InvalidInput(f"{what} that expires after {days} can never be used; give it a time above 0")
    if not ttl_s <= _LONGEST_S:  # NaN is not, either
        raise InvalidInput(
            f"{ttl_s / 86_400:g} days are no time to expire after; give up to {_LONGEST_S / 86_400:.0f}, or none "
            f"for {what} that never expires"
        )
    return now + timedelta(seconds=ttl_s)
