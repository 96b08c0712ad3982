"""How many tokens a request may take, before anybody has counted them; pure."""

from __future__ import annotations

from tuneloop.serve.gateway.body import Ask

BYTES_PER_TOKEN = 4  # of a request's JSON: English prose has about four, code fewer; the engine's count settles it


def prompt_tokens(ask: Ask) -> int:
    """About what the prompt takes."""
    return len(ask.members.text) // BYTES_PER_TOKEN + 1


def answer_tokens(ask: Ask, unless_said: int) -> int:
    """The most its answers may take; `unless_said` for each where the client leaves that to the engine's context."""
    if ask.endpoint == "embedding":  # no token is written
        return 0
    return (ask.longest or unless_said) * ask.choices


def tokens_of(ask: Ask, unless_said: int) -> int:
    """About what the request takes, prompt and answers."""
    return prompt_tokens(ask) + answer_tokens(ask, unless_said)
