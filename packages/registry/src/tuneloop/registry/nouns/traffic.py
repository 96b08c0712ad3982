"""Requests, and what users thought of the answers."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field, FiniteFloat

from tuneloop.registry.nouns.base import Noun


class Message(Noun):
    """One turn of a conversation; a plain completion's prompt has the role `prompt`, what is embedded `user`."""

    role: str
    content: str


class RequestLine(Noun):
    """What the gateway did with one request, without anybody's words."""

    id: str
    at: AwareDatetime
    model: str
    revision: int | None
    assigned_version: int | None
    served_version: int | None
    engine: str | None
    key_hash: str  # hash of the sticky key
    key_source: Literal["header", "user", "api_key", "request"]
    api_key: str | None  # id of the key, never the key
    endpoint: Literal["chat", "completion", "response", "embedding"]
    stream: bool
    status: int  # HTTP status; 499 when the client left first
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue_ms: FiniteFloat | None = None  # arrival → sent to the engine
    ttft_ms: FiniteFloat | None = None  # arrival → first event or body byte
    total_ms: FiniteFloat
    guards: dict[str, str] = {}  # guard → verdict


class RequestRecord(RequestLine):
    """What the gateway did with one request. Text is redacted before it is stored, or left out, by policy."""

    messages: tuple[Message, ...] = ()
    answer: str | None = None
    shadow_of: str | None = None  # id of the request that this was a copy of; nobody was given its answer
    client_id: str | None = None  # hash of the id that the client gave it, and of its key (`client_ids`)

    @property
    def question(self) -> str:
        """The last thing the user said, which is what prompt drift looks at; empty when text is not stored."""
        return next((m.content for m in reversed(self.messages) if m.role in {"user", "prompt"}), "")


class Feedback(Noun):
    """What a user thought of one answer, and how it should have read."""

    id: str
    request_id: str  # or, while its client's own id is all that is known, the hash of that (`client_ids`)
    at: AwareDatetime
    score: float | None = Field(default=None, ge=0.0, le=1.0)
    thumb: Literal["up", "down"] | None = None
    label: str | None = Field(default=None, max_length=200)
    comment: str | None = Field(default=None, max_length=10_000)
    correction: str | None = Field(default=None, max_length=100_000)
    api_key: str | None = None  # id of the key that sent it; counts only for requests that this key made
