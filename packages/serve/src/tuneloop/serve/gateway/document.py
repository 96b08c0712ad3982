"""The OpenAPI document of a gateway: every path, and every status each of them can answer with.

It describes what the gateway itself reads of a request; what else OpenAI's API knows passes to the engines, which check
it. A 500 stands nowhere: it is a defect.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tuneloop.serve.gateway.body import PATHS, Endpoint
from tuneloop.serve.gateway.responses.items import ROLES as RESPONSE_ROLES

_TITLES: dict[Endpoint, str] = {
    "chat": "Answer a conversation",
    "completion": "Go on with a text",
    "response": "Answer a conversation, by OpenAI's Responses",
    "embedding": "Give the vectors of texts",
}
_ERRORS = {
    400: "the request, or what the guards found in it, is refused",
    401: "no API key, or none that may be used",
    403: "what this API key may not",
    404: "no such model, no such version in its route, or feedback on a request that was deleted with its user",
    405: "another method",
    408: "the request did not arrive in time",
    413: "the request's body is too large",
    429: "a limit of the API key or its owner",
    431: "the request's head is too large",
    502: "the engine failed",
    503: "nothing to answer with now",
    504: "the engine was silent",
}
_BY_EVERYBODY = (405, 408, 431)
_WITH_KEY = (401, 403, 503)
_WITH_BODY = (400, 413, 429)
_BY_ENGINES = (404, 502, 504)
_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_PART = {
    "type": "object",
    "properties": {"type": {"enum": ["text"]}, "text": _TEXT},
    "required": ["type", "text"],
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, {"type": "array", "items": _PART}, {"type": "null"}]},
    },
    "required": ["role", "content"],
}
_ITEM = {
    "type": "object",
    "properties": {"type": {"const": "message"}, "role": {"enum": sorted(RESPONSE_ROLES)}, "content": _TEXT},
    "required": ["role", "content"],
}
_TEXTS = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": _TEXT, "minItems": 1}]}
_LENGTH = {"type": "integer", "minimum": 1}
_MEMBERS: dict[Endpoint, dict[str, Any]] = {
    "chat": {
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
        "n": _LENGTH,
        "max_tokens": _LENGTH,
        "max_completion_tokens": _LENGTH,
        "stream": {"type": "boolean"},
    },
    "completion": {"prompt": _TEXTS, "n": _LENGTH, "max_tokens": _LENGTH, "stream": {"type": "boolean"}},
    "response": {
        "input": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": _ITEM, "minItems": 1}]},
        "instructions": _TEXT,
        "max_output_tokens": _LENGTH,
        "stream": {"type": "boolean"},
    },
    "embedding": {"input": _TEXTS, "encoding_format": {"enum": ["float", "base64"]}},
}
_NEEDED: dict[Endpoint, str] = {"chat": "messages", "completion": "prompt", "response": "input", "embedding": "input"}
_UNIT = {
    "name": "x-tuneloop-unit",
    "in": "header",
    "description": "the sticky key: the same one gets the same version while a route stands",
    "schema": {"type": "string", "maxLength": 512},
}

_OWN_ID = {
    "name": "x-client-request-id",
    "in": "header",
    "description": "the client's own id of the request, by which feedback may name it; or x-request-id",
    "schema": {"type": "string"},
}


def document(feedback: type[BaseModel]) -> dict[str, Any]:
    """The document; `feedback` is the body of that path."""
    schemas: dict[str, Any] = {"Error": _error(), "Model": _model()}
    schemas |= {_name(endpoint): _body(endpoint) for endpoint in _MEMBERS}
    schemas["Feedback"] = feedback.model_json_schema()
    models = {"object": {"const": "list"}, "data": {"type": "array", "items": _of("Model")}}
    named = {"request_id": _MAYBE_TEXT, "client_request_id": _MAYBE_TEXT}
    stored = {"id": _TEXT, **named, "object": {"const": "feedback"}}
    in_path = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    paths = {path: {"post": _asked(endpoint)} for path, endpoint in PATHS.items()}
    paths |= {
        "/v1/models": {"get": _operation("List the models of this key", _whole(models), _WITH_KEY)},
        "/v1/models/{model}": {
            "get": _operation("Tell of one model", {"schema": _of("Model")}, (*_WITH_KEY, 404))
            | {"parameters": [in_path]}
        },
        "/v1/feedback": {
            "post": _operation("Say what an answer was worth", _whole(stored), (*_WITH_KEY, *_WITH_BODY, 404), good=201)
            | _takes("Feedback")
        },
        "/healthz": {"get": _open("Whether it runs", _whole({"status": {"const": "ok"}}))},
        "/readyz": {"get": _open("Whether it can serve", _readiness(), unready=_readiness())},
        "/metrics": {"get": _open("Figures for Prometheus", {"schema": _TEXT}, kind="text/plain")},
        "/openapi.json": {"get": _open("This document", {"schema": {"type": "object"}})},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "tuneloop gateway", "version": "1"},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "tl-…"}},
        },
    }


def _asked(endpoint: Endpoint) -> dict[str, Any]:
    whole = {"schema": {"type": "object"}}
    found = _operation(_TITLES[endpoint], whole, (*_WITH_KEY, *_WITH_BODY, *_BY_ENGINES))
    if endpoint != "embedding":
        found["responses"]["200"]["content"]["text/event-stream"] = {}
    found["responses"]["4XX"] = _told("what the engine refused the request with")
    return found | {"parameters": [_UNIT, _OWN_ID]} | _takes(_name(endpoint))


def _body(endpoint: Endpoint) -> dict[str, Any]:
    needed = _NEEDED[endpoint]
    members = {"model": {"type": "string", "description": "`name`, or `name@version` for a key that may pin"}}
    return {
        "type": "object",
        "properties": members | {"user": _TEXT} | _MEMBERS[endpoint],
        "required": ["model", needed],
        "additionalProperties": True,
    }


def _operation(title: str, content: dict[str, Any], errors: tuple[int, ...], *, good: int = 200) -> dict[str, Any]:
    found = _open(title, content, good=good)
    found["responses"] |= {str(status): _told(_ERRORS[status]) for status in sorted(errors)}
    return found | {"security": [{"key": []}]}


def _open(
    title: str,
    content: dict[str, Any],
    *,
    good: int = 200,
    kind: str = "application/json",
    unready: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """An operation that asks for no key."""
    responses = {str(good): {"description": title, "content": {kind: content}}}
    responses |= {str(status): _told(_ERRORS[status]) for status in _BY_EVERYBODY}
    if unready is not None:
        responses["503"] = {"description": "not yet, or no longer, and why", "content": {kind: unready}}
    return {"summary": title, "responses": responses}


def _told(why: str) -> dict[str, Any]:
    return {"description": why, "content": {"application/json": {"schema": _of("Error")}}}


def _takes(name: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _of(name)}}}}


def _whole(properties: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "properties": properties, "required": list(properties)}}


def _readiness() -> dict[str, Any]:
    said = {"type": "object", "additionalProperties": _TEXT}
    return _whole({"ready": {"type": "boolean"}, "reason": _TEXT, "last_known": said, "unsaved": _TEXT})


def _error() -> dict[str, Any]:
    maybe = _MAYBE_TEXT
    members = {"message": {"type": "string", "minLength": 1}, "type": _TEXT, "param": maybe, "code": maybe}
    inner: dict[str, Any] = _whole(members)["schema"]
    return {"type": "object", "properties": {"error": inner}, "required": ["error"], "additionalProperties": False}


def _model() -> dict[str, Any]:
    members = {"id": _TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _TEXT}
    found: dict[str, Any] = _whole(members)["schema"]
    return found


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint.capitalize()}Request"


def _of(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
