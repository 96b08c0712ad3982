"""The control plane as an ASGI app: the routers, what every request passes first, and whether it can answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from tuneloop.registry.api import (
    alerts,
    credentials,
    experiments,
    guards,
    health,
    openapi,
    records,
    registering,
    retention,
    retraining,
    routing,
    versions,
)
from tuneloop.registry.api.entry import PREFIX, Entry
from tuneloop.registry.api.fields import Forbidden
from tuneloop.registry.api.health import Readiness
from tuneloop.registry.api.problems import answer_problems, problem
from tuneloop.registry.facade import Registry
from tuneloop.registry.settings import ApiSettings

# Each may hold two of the pool's 15 connections (a write that checks an approval): with more, all could wait for all.
THREADS = 12
MODULES = (versions, registering, routing, experiments, retraining, alerts, guards, retention, records, credentials)
ROUTERS: tuple[tuple[str, APIRouter], ...] = (
    *((PREFIX, module.router) for module in MODULES),
    ("", health.router),
)


def routed() -> FastAPI:
    """The app's operations and their document, with nothing behind them yet."""
    app = _bare()
    app.openapi = _document  # type: ignore[method-assign]
    app.state.parameters = openapi.parameters(_document())
    return app


def _bare() -> FastAPI:
    app = FastAPI(
        lifespan=_lifespan,
        openapi_url="/openapi.json",
        docs_url=None,  # they load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    for prefix, router in ROUTERS:
        app.include_router(router, prefix=prefix)
    return app


@cache
def _document() -> dict[str, Any]:
    """The OpenAPI document: made once, which takes half a second, since it is the same whatever registry is behind."""
    return openapi.document(_bare(), ROUTERS)


def make_app(registry: Registry, settings: ApiSettings, *, monotonic: Callable[[], float] = time.monotonic) -> FastAPI:
    """The app around an open registry."""
    app = routed()
    app.state.registry = registry
    app.state.readiness = Readiness(registry.database, monotonic)
    answer_problems(app)
    app.add_exception_handler(Forbidden, _forbidden)
    app.add_exception_handler(routing.Busy, _busy)
    app.add_middleware(Entry, registry=registry, settings=settings, monotonic=monotonic)
    return app


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


def _forbidden(_request: Request, error: Exception) -> JSONResponse:
    return problem("forbidden", str(error))


def _busy(_request: Request, error: Exception) -> JSONResponse:
    return problem("rate-limited", str(error), {"Retry-After": "5"})
