"""Settings of one gateway: `[gateway]` in `tuneloop.toml`, or `TUNELOOP_GATEWAY_…`."""

from __future__ import annotations

import socket
from typing import ClassVar, Literal

from pydantic import Field

from tuneloop.registry.settings import Section
from tuneloop.serve.gateway.admission.prices import Prices
from tuneloop.serve.urls import http_url

_STOP_MARGIN_S = 10.0  # to leave the registry's list and close connections


class GatewaySettings(Section):
    """What a gateway listens on, what it lets through, how long it waits, and how it records."""

    section: ClassVar[str] = "gateway"

    # Names the folder of what must survive a restart. Default: host name and port.
    id: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    host: str = "127.0.0.1"
    port: int = Field(default=8100, ge=0, le=65_535)
    # How often routes, engines and keys are read; a promotion must arrive within 2 s.
    poll_s: float = Field(default=0.5, gt=0, le=1.0)

    record_text: Literal["redacted", "none"] = "redacted"  # none: no prompts, answers or corrections are kept
    record_text_chars: int = Field(default=32_000, ge=0)  # of one message or answer; longer ones are cut in the record
    record_queue: int = Field(default=10_000, ge=1)  # records that may wait in memory; more are dropped, and counted
    record_queue_bytes: int = Field(default=64_000_000, ge=0)  # of waiting text; above half of either text is left out
    feedback_queue: int = Field(default=32, ge=1)  # feedback that may wait to be redacted and stored; more is refused

    max_body_bytes: int = Field(default=1_000_000, ge=1)
    max_prompt_chars: int = Field(default=100_000, ge=1)
    max_tokens: int = Field(
        default=4_096, ge=1
    )  # a client may ask for; if it does not say, the engine's context ends it
    max_choices: int = Field(default=4, ge=1)  # answers per request: `n`, times the prompts of a completion

    # Processes that judge texts, of 150 MB each; started when a model has a guard policy.
    guard_workers: int = Field(default=2, ge=1, le=64)
    guard_queue: int = Field(default=64, ge=1)  # requests and answers that may wait for them, those at work included

    max_in_flight: int = Field(default=4_096, ge=1)  # requests at the engines at once; more wait for their turn
    max_waiting: int = Field(default=1_024, ge=0)  # and no more than this many
    queue_timeout_s: float = Field(default=10.0, gt=0)  # who would wait longer is refused at once
    reserve_tokens: int = Field(default=512, ge=1)  # counted for an answer without max_tokens, until the engine counts
    # Tokens that the engine which served the beginning of a prompt may have under way, beyond a quarter above the mean,
    # and get it again. 0: none is preferred.
    affinity_tokens: int = Field(default=4_096, ge=0)
    prices: Prices = {}  # model → USD per million tokens; keys with a budget may ask only models that have one

    # Copies for a route's shadow; what has no place here is dropped and counted.
    shadow_queue: int = Field(default=32, ge=1)  # that wait
    shadow_in_flight: int = Field(default=4, ge=1)  # at the engines
    shadow_engine_load: int = Field(default=8, ge=1)  # none to an engine with more requests of this gateway than these
    shadow_timeout_s: float = Field(default=120.0, gt=0)  # from the request's arrival on; then a copy is cancelled

    otlp_endpoint: str = Field(
        default="", pattern=r"^(https?://\S+)?$"
    )  # where spans go, such as http://collector:4318
    trace_share: float = Field(default=1.0, ge=0, le=1)  # of the requests that come without a traceparent

    body_timeout_s: float = Field(default=30.0, gt=0)  # a client must have sent its whole request by then
    connect_timeout_s: float = Field(default=2.0, gt=0)  # to an engine
    first_byte_timeout_s: float = Field(default=120.0, gt=0)  # to an engine's first event, or its whole answer
    idle_timeout_s: float = Field(default=30.0, gt=0)  # between two events, and for a client that does not read
    retry_share: float = Field(default=0.1, ge=0, le=1)  # at most this share of requests is tried a second time
    drain_s: float = Field(default=30.0, ge=0)  # after SIGTERM: for streams to end, then again for records to be stored

    @property
    def effective_id(self) -> str:
        """The id this gateway goes by; stable over restarts."""
        return self.id or f"{socket.gethostname()}-{self.port}"

    @property
    def stop_timeout_s(self) -> float:
        """Streams end, records are stored with their text, then without; each has `drain_s`."""
        return 3 * self.drain_s + _STOP_MARGIN_S

    @property
    def url(self) -> str:
        """Where it listens."""
        return http_url(self.host, self.port)
