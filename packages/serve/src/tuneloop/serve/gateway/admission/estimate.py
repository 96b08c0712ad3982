"""How many tokens a request may take, before anybody has counted them; pure."""

from __future__ import annotations

import msgspec

from tuneloop.serve.gateway.body import Ask

BYTES_PER_TOKEN = 4  # of a request's JSON: English prose has about four, code fewer; the engine's count settles it
_COUNT = msgspec.json.Decoder(int | None)


def prompt_tokens(ask: Ask) -> int:
    """About what the prompt takes."""
    return len(ask.members.text) // BYTES_PER_TOKEN + 1


def answer_tokens(ask: Ask, unless_said: int) -> int:
    """The most its answers may take; `unless_said` for each where the client leaves that to the engine's context."""
    if ask.endpoint == "embedding":  # no token is written
        return 0
    if ask.endpoint == "response":
        return _count(ask, "max_output_tokens") or unless_said
    # Which of the two an engine goes by differs between its endpoints.
    most = max(_count(ask, "max_completion_tokens") or 0, _count(ask, "max_tokens") or 0) or unless_said
    prompts = len(ask.messages) if ask.messages and ask.messages[0][0] == "prompt" else 1
    return most * (_count(ask, "n") or 1) * prompts


def _count(ask: Ask, name: str) -> int | None:
    raw = ask.members.values.get(name)
    return None if raw is None else _COUNT.decode(raw)  # it has been read before: it is one
