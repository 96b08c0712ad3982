"""What a client asks for, read from its JSON once and checked against this gateway's limits; pure.

Only the members that the gateway decides by are decoded; the rest passes to the engine untouched, which checks it.
What is refused here is what would hurt others: parameters that can exhaust or steer an engine, content that makes it
fetch addresses, and texts no guard could read (token ids).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from tuneloop.serve.gateway import embeddings
from tuneloop.serve.gateway.errors import ApiError, bad_request
from tuneloop.serve.gateway.responses import items
from tuneloop.serve.gateway.responses.items import BETWEEN_PARTS, chars_in
from tuneloop.serve.gateway.splice import DuplicateKey, Members, members

Endpoint = Literal["chat", "completion", "response", "embedding"]
PATHS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/responses": "response",
    "/v1/embeddings": "embedding",
}
PATH_OF = {endpoint: path for path, endpoint in PATHS.items()}
MEMBER: dict[Endpoint, str] = {  # what a client writes most of
    "chat": "messages",
    "completion": "prompt",
    "response": "input",
    "embedding": "input",
}

REFUSED = {
    "prompt_logprobs": "it can exhaust an engine's memory on long prompts",
    "prompt_embeds": "embeddings are no text, which is what this gateway checks and records",
    "kv_transfer_params": "it steers the engine's cache",
    "ec_transfer_params": "it steers the engine's cache",
    "vllm_xargs": "it steers engine extensions",
    "logits_processors": "it names code to run in the engine",
    "chat_template": "a version is served with the template it was trained with",
    "media_io_kwargs": "this gateway takes text only",
    "mm_processor_kwargs": "this gateway takes text only",
    "use_beam_search": "it multiplies the cost of a request",
    "priority": "the order of requests is the operator's",
    "request_id": "request ids are given by the gateway; read the x-request-id header",
}
_REFUSED: dict[Endpoint, dict[str, str]] = {
    "chat": REFUSED,
    "completion": REFUSED,
    "response": REFUSED | items.REFUSED,
    "embedding": REFUSED | embeddings.REFUSED,
}
_SWITCHES = frozenset({"use_beam_search", "store", "background", "enable_response_messages"})  # which `false` turns off
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "prompt"})
_TEXT_PARTS = {"text", "refusal"}


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class _Message(msgspec.Struct):
    role: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    content: str | list[_Part] | None = None
    tool_calls: Any = None


class _Said(msgspec.Struct, kw_only=True):
    """The members this gateway decides by, whatever the endpoint."""

    model: str
    user: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None


class _SaidChat(_Said):
    messages: list[_Message]
    echo: bool | None = None


class _SaidCompletion(_Said):
    prompt: str | list[str]
    echo: bool | None = None


class _SaidResponse(_Said):
    input: str | list[items.Item] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[items.Tool] | None = None


class _SaidEmbedding(_Said):
    input: str | list[str] | None = None
    encoding_format: str | None = None


_SAID: dict[Endpoint, type[_Said]] = {
    "chat": _SaidChat,
    "completion": _SaidCompletion,
    "response": _SaidResponse,
    "embedding": _SaidEmbedding,
}
_AT_ONCE = {endpoint: msgspec.json.Decoder(kind) for endpoint, kind in _SAID.items()}
_EACH = {
    endpoint: {name: msgspec.json.Decoder(kind) for name, kind in get_type_hints(said).items()}
    for endpoint, said in _SAID.items()
}


class _OneByOne:
    """The same members, where one of them is wrong: each is decoded when it is asked for, so that it is named."""

    def __init__(self, found: Members, endpoint: Endpoint) -> None:
        self._found = found
        self._each = _EACH[endpoint]

    def __getattr__(self, name: str) -> Any:
        raw = self._found.values.get(name)
        if raw is None:
            return None
        try:
            return self._each[name].decode(raw)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$")
            raise bad_request(f"{name}{path.rstrip('`')}: {what[:1].lower()}{what[1:]}", param=name) from None
        except RecursionError:
            raise bad_request(f"{name}: nested too deeply", param=name) from None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    prompt_chars: int
    tokens: int
    choices: int


class Ask(msgspec.Struct, frozen=True):
    """One request, as far as the gateway understands it."""

    endpoint: Endpoint
    members: Members
    asked: str  # the model, as the client wrote it: `support-bot` or `support-bot@7`
    stream: bool
    wants_usage: bool  # the client asked for the usage event of a stream
    user: str | None
    messages: tuple[tuple[str, str], ...]  # (role, text)
    longest: int | None  # tokens of one answer that the client named; None: it is left to the engine's context
    choices: int  # answers

    def for_engine(self, name: str, request_id: str) -> bytes:
        """The body for an engine that knows the model as `name`; a stream always reports its usage.

        A response takes its id from the body, where others take theirs from a header, and is kept by no engine.
        """
        changes = {"model": msgspec.json.encode(name)}
        if self.endpoint == "response":
            changes |= {"request_id": msgspec.json.encode(f"resp_{request_id}"), "store": b"false"}
            if "background" in self.members.values:  # null or false; an engine may take null for neither
                changes["background"] = b"false"
        elif self.stream and not self.wants_usage:
            changes["stream_options"] = b'{"include_usage":true}'
        return self.members.replaced(changes)


def read(body: bytes, endpoint: Endpoint, limits: Limits) -> Ask:
    """Read a request's body.

    Raises:
        ApiError: 400, naming the member and what is wrong with it.
    """
    found = _members(body)
    said = _said(found, endpoint)
    asked = said.model
    if asked is None:
        raise bad_request("model: missing; name a registered model", param="model", code="missing_required_parameter")
    refused = _REFUSED[endpoint]
    if not found.values.keys().isdisjoint(refused):
        for name, why in refused.items():
            if name in found.values and not _is_off(name, bytes(found.values[name])):
                raise bad_request(f"{name} is not allowed here: {why}", param=name, code="unsupported_parameter")
    messages = _messages(found, said, endpoint)
    longest, choices = _check_lengths(said, endpoint, messages, limits)
    stream = bool(said.stream) and endpoint != "embedding"
    options = said.stream_options or {}
    return Ask(
        endpoint=endpoint,
        members=found,
        asked=asked,
        stream=stream,
        wants_usage=options.get("include_usage") is True,
        user=said.user,
        messages=messages,
        longest=longest,
        choices=choices,
    )


def changed(ask: Ask, endpoint: Endpoint, changes: Mapping[str, bytes]) -> Ask:
    """The request with other values (key → JSON) of members it has, which are of the same shape."""
    found = members(ask.members.replaced(changes))
    return msgspec.structs.replace(ask, members=found, messages=_messages(found, _said(found, endpoint), endpoint))


def _said(found: Members, endpoint: Endpoint) -> Any:
    """What the members say: a `_Said` of the endpoint, or what behaves like one."""
    try:
        return _AT_ONCE[endpoint].decode(found.text)
    except (msgspec.ValidationError, RecursionError):
        return _OneByOne(found, endpoint)


def _messages(found: Members, said: Any, endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    if endpoint == "chat":
        if said.echo:  # an engine takes its logprobs for the prompt's, and none for 0 of them
            raise _refused_echo("echo")
        return _chat(said.messages)
    if endpoint == "response":
        items.check_tools(said.tools)
        return items.turns(said.input, said.instructions)
    if endpoint == "embedding":
        return embeddings.turns(said.input, said.encoding_format)
    return _completion(found, said)


def _members(body: bytes) -> Members:
    try:
        return members(body)
    except DuplicateKey as error:
        raise bad_request(f"the key {str(error)!r} stands twice in the request", code="invalid_json") from None
    except msgspec.ValidationError:
        raise bad_request("the request's body must be a JSON object", code="invalid_json") from None
    except RecursionError:
        raise bad_request("the request's JSON is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise bad_request(f"the request's body is not valid JSON: {error}", code="invalid_json") from None


def _is_off(name: str, value: bytes) -> bool:
    """Whether an engine takes that value for none; where it expects a number, `false` is 0, and 0 is on."""
    return value == b"null" or (value == b"false" and name in _SWITCHES)


def _refused_echo(what: str) -> ApiError:
    why = REFUSED["prompt_logprobs"]
    return bad_request(f"{what} is not allowed here: {why}", param="echo", code="unsupported_parameter")


def _chat(messages: list[_Message] | None) -> tuple[tuple[str, str], ...]:
    if not messages:
        raise bad_request(
            "messages: at least one message is needed", param="messages", code="missing_required_parameter"
        )
    return tuple([(message.role, _text(index, message)) for index, message in enumerate(messages)])


def _text(index: int, message: _Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    for part in message.content:
        if part.type not in _TEXT_PARTS:
            raise bad_request(
                f"messages[{index}].content: parts of type {part.type!r} are not allowed; this gateway takes text only",
                param="messages",
            )
    return BETWEEN_PARTS.join(part.text or part.refusal or "" for part in message.content)


def _completion(found: Members, said: Any) -> tuple[tuple[str, str], ...]:
    raw = found.values.get("prompt")
    if raw is None or bytes(raw) == b"null":
        raise bad_request("prompt: missing; give a text", param="prompt", code="missing_required_parameter")
    prompt = said.prompt
    if not prompt:
        raise bad_request("prompt: empty; give a text", param="prompt")
    if said.echo and bytes(found.values.get("logprobs", b"null")) != b"null":
        raise _refused_echo("echo with logprobs")
    return tuple(("prompt", text) for text in ([prompt] if isinstance(prompt, str) else prompt))


def _check_lengths(
    said: Any, endpoint: Endpoint, messages: tuple[tuple[str, str], ...], limits: Limits
) -> tuple[int | None, int]:
    """The tokens of one answer that the client named, and how many answers it asks for."""
    chars = sum([len(text) for _, text in messages])
    if endpoint == "chat":
        chars += sum([chars_in(message.tool_calls) for message in said.messages if message.tool_calls])
    elif endpoint == "response":
        chars += items.unrecorded_chars(said.input)
    param = MEMBER[endpoint]
    if chars > limits.prompt_chars:
        raise bad_request(
            f"{param}: {chars} characters are more than the {limits.prompt_chars} allowed; shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )
    for name, tokens in (("max_tokens", said.max_tokens), ("max_completion_tokens", said.max_completion_tokens)):
        if tokens is not None and not 1 <= tokens <= limits.tokens:
            raise bad_request(f"{name}: {tokens} is not between 1 and {limits.tokens}", param=name)
    if endpoint == "response" and (most := said.max_output_tokens) is not None and not 1 <= most <= limits.tokens:
        raise bad_request(f"max_output_tokens: {most} is not between 1 and {limits.tokens}", param="max_output_tokens")
    n = 1 if said.n is None else said.n
    choices = n * (len(messages) if endpoint == "completion" else 1)
    if n < 1 or choices > limits.choices:
        raise bad_request(f"n: {choices} answers in one request are not between 1 and {limits.choices}", param="n")
    if endpoint == "response":
        return said.max_output_tokens, 1
    # Which of the two an engine goes by differs between its endpoints.
    longest = max(said.max_completion_tokens or 0, said.max_tokens or 0)
    return longest or None, choices


def too_large(limit: int) -> ApiError:
    """413: the body is longer than `limit` bytes."""
    return ApiError(413, f"the request's body is larger than {limit} bytes; shorten it", code="request_too_large")
