"""The signature of a webhook: HMAC-SHA256 over the time and the body, in one header.

`Tuneloop-Signature: t=1790000000,v1=<hex>` signs the bytes `1790000000.<body>`. Whoever receives it computes the
same, compares in constant time, and refuses a time more than `REPLAY_WINDOW_S` off: what was overheard is worth
nothing after that, and inside the window `Tuneloop-Delivery` tells a repetition.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import datetime

HEADER = "Tuneloop-Signature"
DELIVERY_HEADER = "Tuneloop-Delivery"
REPLAY_WINDOW_S = 300
_FORM = re.compile(r"t=(\d{1,12}),v1=([0-9a-f]{64})")


def sign(secret: str, body: bytes, at: datetime) -> str:
    """The header's value."""
    seconds = int(at.timestamp())
    return f"t={seconds},v1={_digest(secret, seconds, body)}"


def is_signed(secret: str, body: bytes, header: str, now: datetime) -> bool:
    """Whether the body was signed with that secret, just now."""
    found = _FORM.fullmatch(header)
    if found is None:
        return False
    seconds, given = int(found[1]), found[2]
    fresh = abs(now.timestamp() - seconds) <= REPLAY_WINDOW_S
    return hmac.compare_digest(given, _digest(secret, seconds, body)) and fresh


def _digest(secret: str, seconds: int, body: bytes) -> str:
    return hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
