"""Holding a claimed request's lease: a thread renews it, and a lost lease stops the run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from tuneloop.registry.errors import Conflict, Unavailable
from tuneloop.registry.nouns import RetrainingRequest
from tuneloop.registry.retraining.queue import RetrainingQueue
from tuneloop.train.stopping import StopFlag

_RENEWALS_PER_LEASE = 3


@contextmanager
def held_lease(queue: RetrainingQueue, request: RetrainingRequest, lease_s: float, stop: StopFlag) -> Iterator[None]:
    """Renew the lease while the block runs; `stop` is set with the reason when it is lost.

    A database that does not answer is tried again until the lease has run out; then another worker may hold it, and the
    reason is the outage, which is no fault of the request.
    """
    ended = threading.Event()

    def renew() -> None:
        held_until = monotonic() + lease_s
        while not ended.wait(lease_s / _RENEWALS_PER_LEASE):
            asked = monotonic()
            try:
                queue.renew(request, lease_s)
                held_until = asked + lease_s
            except Conflict as lost:
                stop.stop(lost)
                return
            except Unavailable as away:
                if monotonic() > held_until:
                    stop.stop(
                        Unavailable(f"retraining {request.id}: the lease ran out while it could not be renewed: {away}")
                    )
                    return

    thread = threading.Thread(target=renew, name=f"lease-{request.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
