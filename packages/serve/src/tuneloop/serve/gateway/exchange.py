"""One request and its answer, from arrival to record."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from tuneloop.registry.nouns import utc_now
from tuneloop.registry.routes import assignment
from tuneloop.serve.gateway.body import Endpoint
from tuneloop.serve.gateway.routing import Plan
from tuneloop.serve.gateway.snapshot import Target
from tuneloop.serve.gateway.sse import Usage

if TYPE_CHECKING:
    from tuneloop.serve.gateway.admission.limits import Taken
    from tuneloop.serve.gateway.mask import Mask
    from tuneloop.serve.gateway.responses.mask import ResponseMask
    from tuneloop.serve.gateway.tracing import Traced

KeySource = Literal["header", "user", "api_key", "request"]
_RANDOM_BYTES = 8
_random: list[str] = []


def new_request_id() -> str:
    """`req_…`: the second in hex, so that an index of a million takes the next at its end, and 64 random bits."""
    if not _random:  # many at a time: asking the system lets go of the interpreter, which costs more than the bits
        drawn = secrets.token_hex(_RANDOM_BYTES * 256)
        _random.extend(drawn[at : at + 2 * _RANDOM_BYTES] for at in range(0, len(drawn), 2 * _RANDOM_BYTES))
    return f"req_{int(time.time()):08x}{_random.pop()}"


class Exchange(msgspec.Struct):
    """What is known about a request so far; becomes its record when it has ended."""

    endpoint: Endpoint
    id: str = msgspec.field(default_factory=new_request_id)
    at: datetime = msgspec.field(default_factory=utc_now)
    started: float = msgspec.field(default_factory=time.perf_counter)
    api_key: str | None = None
    unit: str = ""
    unit_source: KeySource = "request"
    client_id: bytes = b""  # what the client calls it
    asked: str = ""
    stream: bool = False
    trace: str = ""  # the W3C traceparent for the engine
    traced: Traced | None = None  # None: no spans are made of it
    plan: Plan | None = None
    target: Target | None = None
    messages: tuple[tuple[str, str], ...] = ()
    answer: list[bytes] = []  # the engine's events, or its one JSON body
    usage: Usage | None = None
    tokens: int = 0  # about what it takes, prompt and answers; 0 where there is one engine and nobody asks
    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float = 0.0
    status: int = 200
    error: str | None = None
    committed: bool = False  # the response's status has been sent
    delivered: bool = False  # the client has been sent all of a stream: leaving now is no loss to it
    left: bool = False  # the client went away first
    overdue: bool = False  # a whole answer that no longer was waited for
    guards: dict[str, str] = {}  # guard → verdict
    mask: Callable[[int], Mask | ResponseMask] | None = (
        None  # makes what hides parts of the answer; takes how many bytes it may keep
    )
    events: int = 0  # of a stream, that the engine sent the client
    numbered: int = 0  # of a response's stream, that the client was sent
    taken: tuple[Taken, ...] = ()  # what it has taken of the limits of its key and its owner
    turn_began: float | None = None  # None: it has no turn
    shadow_of: str | None = None  # id of the request that this is a copy of: nobody waits for it
    limit_headers: list[tuple[bytes, bytes]] | None = None

    def elapsed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return (time.perf_counter() - self.started) * 1e3

    def failed(self, status: int, error: str) -> None:
        """Note how it ended."""
        self.status, self.error = status, error

    def forget_text(self) -> None:
        """Let go of what was said."""
        self.messages, self.answer = (), []

    @property
    def key_hash(self) -> str:
        """What the record keeps of the sticky key."""
        return assignment.key_hash(self.unit)

    @property
    def text_bytes(self) -> int:
        """About how much memory its text takes."""
        return sum(len(text) for _, text in self.messages) + sum(map(len, self.answer))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers that say who answered."""
        found = [(b"x-request-id", self.id.encode()), *(self.limit_headers or ())]
        if self.target is not None and self.plan is not None:
            found.append((b"x-tuneloop-version", self.target.name.encode()))
            found.append((b"x-tuneloop-revision", str(self.plan.route.revision).encode()))
        return found
