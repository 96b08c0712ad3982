"""How engines write the answers of each endpoint: what passes a stream on, where the usage stands, and the name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tuneloop.serve.gateway.body import Endpoint
from tuneloop.serve.gateway.responses import relay as responses
from tuneloop.serve.gateway.sse import Relay, Usage, name_member, usage_of


class Answers(NamedTuple):
    """Of one endpoint."""

    relay: type[Relay]
    usage_of: Callable[[bytes], Usage | None]  # of a whole answer; ValueError: it is none
    renamed: Callable[[bytes, str, str], bytes]  # a whole answer, the engine's name of its model, the client's
    is_text: bool = True  # which a record may keep


def _renamed(whole: bytes, name: str, asked: str) -> bytes:
    return whole.replace(name_member(name), name_member(asked), 1)


_CHOICES = Answers(Relay, usage_of, _renamed)
ANSWERS: dict[Endpoint, Answers] = {
    "chat": _CHOICES,
    "completion": _CHOICES,
    "response": Answers(responses.ResponseRelay, responses.usage_of, responses.renamed),
    "embedding": Answers(Relay, usage_of, _renamed, is_text=False),
}
