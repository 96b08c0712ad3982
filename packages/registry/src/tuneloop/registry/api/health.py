"""Whether the control plane runs and can answer; asked without a token, by whatever starts and watches it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from tuneloop.registry.api.answers import Ready
from tuneloop.registry.database import Database
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.tables import tokens

READY_FOR_S = 1.0
router = APIRouter(tags=["health"])


class Readiness:
    """Whether the database answers, at this schema; looked at once in `READY_FOR_S`, however often somebody asks."""

    def __init__(self, database: Database, monotonic: Callable[[], float]) -> None:
        self._db = database
        self._clock = monotonic
        self._lock = threading.Lock()
        self._looked_at_s: float | None = None
        self._ready = False

    def now(self) -> bool:
        """True when the last look found it answering."""
        with self._lock:
            if self._looked_at_s is None or self._clock() - self._looked_at_s >= READY_FOR_S:
                self._ready, self._looked_at_s = self._look(), self._clock()
            return self._ready

    def _look(self) -> bool:
        try:
            with self._db.reading() as connection:
                connection.execute(sa.select(tokens.c.name).limit(1))
        except Unavailable:
            return False
        return True


@router.get("/healthz")
async def healthz() -> Ready:
    """Whether the process runs."""
    return Ready(ready=True)


@router.get("/readyz", response_model=Ready, responses={503: {"model": Ready, "description": "Not now."}})
def readyz(request: Request) -> JSONResponse:
    """Whether the database answers."""
    readiness: Readiness = request.app.state.readiness
    ready = readiness.now()
    return JSONResponse(Ready(ready=ready).model_dump(), 200 if ready else 503)
