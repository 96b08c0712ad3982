"""The states of a retraining request and the only steps between them; how requests are named. Pure but for chance."""

from __future__ import annotations

import secrets
from hashlib import sha256

from tuneloop.registry.nouns import RetrainingState

S = RetrainingState
NEXT_STATES: dict[RetrainingState, frozenset[RetrainingState]] = {
    S.PROPOSED: frozenset({S.APPROVED, S.REJECTED, S.CANCELLED, S.EXPIRED}),
    S.APPROVED: frozenset({S.QUEUED, S.REJECTED, S.CANCELLED, S.EXPIRED}),
    S.QUEUED: frozenset({S.RUNNING, S.CANCELLED}),
    # queued: put back, or held until the day is over; proposed: above a budget, for a person to decide.
    S.RUNNING: frozenset({S.RUNNING, S.QUEUED, S.PROPOSED, S.GATED, S.REJECTED, S.FAILED, S.CANCELLED}),
    S.GATED: frozenset({S.SHIPPED, S.REJECTED, S.CANCELLED}),
    S.SHIPPED: frozenset(),
    S.REJECTED: frozenset(),
    S.FAILED: frozenset({S.APPROVED}),  # tried again because a person says so
    S.CANCELLED: frozenset(),
    S.EXPIRED: frozenset(),
}
ENDED = frozenset({S.SHIPPED, S.REJECTED, S.FAILED, S.CANCELLED, S.EXPIRED})  # nothing more happens by itself
RESULTS = frozenset({S.GATED, S.SHIPPED, S.REJECTED, S.FAILED})  # what `finish` may say of a request
UNDECIDED = (S.PROPOSED, S.APPROVED)
MAX_ATTEMPTS = 3
LONGEST_LEASE_S = 3_600.0


def idempotency_key(*parts: object) -> str:
    """Hash of (model, base version, episode, data-window digest, recipe digest): twice filed is the same request."""
    return sha256("\0".join(map(str, parts)).encode()).hexdigest()


def new_request_id() -> str:
    """A fresh id, `rt_…`."""
    return f"rt_{secrets.token_hex(6)}"
