"""What the guards say of a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from tuneloop.registry.guard_policy import GuardAction
from tuneloop.registry.nouns import Noun

Span = tuple[int, int, str]  # from and to, in characters, and the kind of what stands there
Outcome = Literal["allow", "sample", "flag", "redact", "block"]


class Reason(Noun):
    """One finding: which guard, what it found, where, and what its policy asks for."""

    guard: Literal["injection", "hidden", "secrets", "personal", "topics", "length"]
    kind: str  # a rule's name, `classifier`, a kind of secret, a Presidio entity, a topic
    action: GuardAction
    score: float  # 0–1: how sure
    view: str = "text"  # the reading in which it was found: `text`, or a chain such as `base64>reversed`
    start: int | None = None  # where in the text, in characters; None: in another reading, or all of it
    end: int | None = None


class Verdict(Noun):
    """What is to be done with a text, and why."""

    action: Outcome
    reasons: tuple[Reason, ...]
    score: float  # 0–1: how likely the text is an attack; secrets and personal data do not raise it
    ms: float
    redacted: str | None = None  # the text with what is to be redacted replaced; None unless the action is redact


def replaced(text: str, spans: Iterable[Span]) -> str:
    """The text with each span's kind in its place; of spans that overlap (a password that is an e-mail address) the
    first one's names both."""
    parts, at = [], 0
    for start, end, kind in sorted(spans):
        if start >= at:
            parts += [text[at:start], f"<{kind.upper()}>"]
        at = max(at, end)
    return "".join([*parts, text[at:]])
