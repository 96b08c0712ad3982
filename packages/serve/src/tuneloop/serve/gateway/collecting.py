"""Python's garbage collector in processes that live long: what they have loaded is never looked through again.

A full collection stops everything for as long as there are objects to look at: 180 ms where Presidio is loaded.
"""

from __future__ import annotations

import gc

# Requests make few cycles. To look at 10,000 new objects, which have long left the cache, stopped the loop for 3 to
# 9 ms once a second. Older ones are looked at rarely: it is for them that Python's own (700, 10, 10) cost more.
_THRESHOLDS = (1_000, 500, 20)


def settle() -> None:
    """Collect once, then leave out of every later collection what is there now: call it when all is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
