"""Everything but completions: models, feedback, health, metrics. FastAPI, because none of it is hot."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from tuneloop.registry.client_ids import client_id, waiting_for
from tuneloop.registry.errors import InvalidInput, NotFound, Unavailable
from tuneloop.registry.nouns import ApiKey, Feedback, Route, utc_now
from tuneloop.serve.gateway.body import PATHS
from tuneloop.serve.gateway.document import document
from tuneloop.serve.gateway.errors import CLIENT_CLOSED_REQUEST, ApiError, bad_request, error_body
from tuneloop.serve.gateway.http import ClientLeft, Scope, check_scope, read_body
from tuneloop.serve.gateway.records import Recorder
from tuneloop.serve.gateway.routing import unknown_model
from tuneloop.serve.gateway.settings import GatewaySettings

_REQUEST_ID = re.compile(r"(?:chatcmpl-|cmpl-|resp_|embd-)?(req_[0-9a-f]{24})(?:-[0-9]+)?")


class FeedbackBody(BaseModel):
    """What a client may say about one answer; at least one of it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str | None = None  # the x-request-id header, or the `id` of the answer
    # Or: what the client sent with the request as x-client-request-id, else as x-request-id.
    client_request_id: str | None = Field(default=None, min_length=1, max_length=65_536)
    score: float | None = Field(default=None, ge=0.0, le=1.0)
    thumb: Literal["up", "down"] | None = None
    label: str | None = Field(default=None, max_length=200)
    comment: str | None = Field(default=None, max_length=10_000)
    correction: str | None = Field(default=None, max_length=100_000)

    def noun(self, api_key: str) -> Feedback:
        """As it is stored; `api_key` is the id of the key it came with.

        Raises:
            ApiError: the request id is none, or nothing is said.
        """
        request_id = self._names(api_key)
        given = self.model_dump(exclude={"request_id", "client_request_id"}, exclude_none=True)
        said = {name: value for name, value in given.items() if not isinstance(value, str) or _is_seen(value)}
        if not said:
            raise bad_request("say something: score, thumb, label, comment or correction")
        return Feedback(id=f"fb_{secrets.token_hex(12)}", request_id=request_id, at=utc_now(), api_key=api_key, **said)

    def _names(self, api_key: str) -> str:
        """The request, as feedback names it."""
        if (self.request_id is None) == (self.client_request_id is None):
            message = (
                "name the request: request_id (the answer's id, or its x-request-id header), or client_request_id "
                "(what you sent with it as x-client-request-id or x-request-id), and not both"
            )
            raise bad_request(message, param="request_id")
        if self.client_request_id is not None:
            return waiting_for([client_id(api_key, self.client_request_id)])[0]
        match = _REQUEST_ID.fullmatch(self.request_id or "")
        if match is None:
            message = (
                "request_id: not a request id; send the answer's id, or its x-request-id header; an id of your own is "
                "client_request_id"
            )
            raise bad_request(message, param="request_id")
        return match[1]


def _is_seen(text: str) -> bool:
    """Whether it holds more than blanks and characters that nobody sees."""
    return any(letter.isprintable() and not letter.isspace() for letter in text)


@dataclass(frozen=True)
class Services:
    """What the endpoints stand on."""

    settings: GatewaySettings
    recorder: Recorder
    authenticate: Callable[[Scope], ApiKey]  # raises ApiError
    count: Callable[[ApiKey], Awaitable[None]]  # takes a request of a key's limits; raises ApiError
    routes: Callable[[], dict[str, Route]]
    not_ready: Callable[[], str]  # why the gateway cannot serve; empty when it can
    last_known: Callable[[], Mapping[str, str]]  # part of the registry → why it is served as it was known last
    unsaved: Callable[[], str]  # why a restart would not find the view in force; empty when it would
    metrics: Callable[[], bytes]

    def allowed(self, request: Request) -> dict[str, Route]:
        """The routes the request's key may use."""
        key = self.authenticate(request.scope)
        check_scope(key, "models")
        return {model: route for model, route in self.routes().items() if not key.models or model in key.models}


def build(services: Services) -> FastAPI:
    """The application."""
    app = FastAPI(title="tuneloop gateway", docs_url=None, redoc_url=None, openapi_url=None)
    _add_models(app, services)
    _add_feedback(app, services)
    _add_health(app, services)
    _add_document(app)
    _add_errors(app)
    return app


def _add_models(app: FastAPI, services: Services) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, object]:
        return {"object": "list", "data": [_model(route) for route in services.allowed(request).values()]}

    @app.get("/v1/models/{model}")
    async def model(request: Request, model: str) -> dict[str, object]:
        route = services.allowed(request).get(model)
        if route is None:
            raise unknown_model(f"the model {model[:100]!r} does not exist; GET /v1/models lists what there is")
        return _model(route)


def _add_feedback(app: FastAPI, services: Services) -> None:
    limit, timeout_s = services.settings.max_body_bytes, services.settings.body_timeout_s
    places = asyncio.Semaphore(services.settings.feedback_queue)  # it is redacted before records: not without end

    @app.post("/v1/feedback", status_code=201)
    async def feedback(request: Request) -> dict[str, str | None]:
        key = services.authenticate(request.scope)
        check_scope(key, "feedback")
        body = await read_body(request.scope, request.receive, limit=limit, timeout_s=timeout_s)
        try:
            said = FeedbackBody.model_validate_json(body)
            noun = said.noun(key.id)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise bad_request(f"{name or 'body'}: {first['msg']}", param=name or None) from None
        await services.count(key)
        if places.locked():
            message = "too much feedback waits to be stored; send it again in a second"
            raise ApiError(503, message, code="overloaded", retry_after_s=1)
        try:
            async with places:
                await asyncio.to_thread(services.recorder.add_feedback, noun)
        except InvalidInput as error:
            raise bad_request(str(error)) from None
        except NotFound as error:
            raise ApiError(404, str(error), code="request_deleted") from None
        except Unavailable as error:
            raise ApiError(503, f"{error}; send it again", code="not_stored", retry_after_s=5) from None
        named = noun.request_id if said.client_request_id is None else None
        told = {"request_id": named, "client_request_id": said.client_request_id}
        return {"id": noun.id, **told, "object": "feedback"}


def _add_health(app: FastAPI, services: Services) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        reason = services.not_ready()
        last_known = {} if reason else dict(services.last_known())
        told = {"ready": not reason, "reason": reason, "last_known": last_known, "unsaved": services.unsaved()}
        return JSONResponse(told, status_code=503 if reason else 200)

    @app.get("/metrics")
    def exposition() -> Response:  # on a thread: of a large fleet it is megabytes, for which no stream is to wait
        return Response(services.metrics(), media_type=CONTENT_TYPE_LATEST)


def _add_document(app: FastAPI) -> None:
    told = document(FeedbackBody)

    @app.get("/openapi.json")
    async def openapi() -> dict[str, object]:
        return told


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        headers = {name.decode(): value.decode() for name, value in error.headers}
        return Response(error.body, error.status, headers, "application/json")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == 404:
            served = [*PATHS, *(route.path for route in app.routes if isinstance(route, APIRoute))]
            message += f"; this gateway serves {', '.join(served)}"
        body = error_body(error.status_code, message, code=None)
        return Response(body, error.status_code, dict(error.headers or {}), "application/json")

    @app.exception_handler(Exception)
    async def defect(_request: Request, _error: Exception) -> Response:  # the server logs it with its traceback
        body = error_body(500, "internal error; the gateway's log has the cause", code="internal_error")
        return Response(body, 500, media_type="application/json")

    @app.exception_handler(ClientLeft)
    async def client_left(_request: Request, _error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)  # nobody reads it


def _model(route: Route) -> dict[str, object]:
    return {"id": route.model, "object": "model", "created": int(route.at.timestamp()), "owned_by": "tuneloop"}
