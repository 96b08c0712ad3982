"""Keys, tokens and passwords in a text: formats of known issuers, and assignments whose value looks random."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_LEAST_ENTROPY = 3.3  # bits a character; words and identifiers lie below, random keys above


@dataclass(frozen=True)
class Found:
    """One secret and where it stands."""

    kind: str
    start: int
    end: int


_PEM = (
    r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:\s{0,4}[A-Za-z-]{3,30}: [^\n]{1,200}){0,4}"  # Proc-Type and DEK-Info of an encrypted one
    r"(?:[^-]{1,8000}-----END [A-Z ]{5,40}-----|[A-Za-z0-9+/=\s\\]{1,8000}\Z)?"  # or to where a text was cut
)
# A format that an issuer publishes is enough; for the others (`checked`) the value must look random as well.
# A text that holds none of the literals, in lower case, is not searched.
_KNOWN: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("private-key", ("-----begin",), re.compile(_PEM)),
    ("aws-key", ("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    (
        "github-token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255})\b"),
    ),
    ("gitlab-token", ("glpat-",), re.compile(r"\bglpat-[A-Za-z0-9_-]{20,64}\b")),
    ("slack-token", ("xox",), re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,200}")),
    ("google-key", ("aiza",), re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b")),
    ("stripe-key", ("k_live_", "k_test_"), re.compile(r"\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,128}\b")),
    ("npm-token", ("npm_",), re.compile(r"\bnpm_[A-Za-z0-9]{36}\b")),
    ("pypi-token", ("pypi-age",), re.compile(r"\bpypi-AgE[A-Za-z0-9_-]{50,300}")),
    ("hugging-face-token", ("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,64}\b")),
    ("sendgrid-key", ("sg.",), re.compile(r"\bSG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}\b")),
    ("telegram-token", (":aa",), re.compile(r"\b[0-9]{8,10}:AA[A-Za-z0-9_-]{33}\b")),
    (
        "json-web-token",
        ("eyj",),
        re.compile(r"\beyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}"),
    ),
    (
        "url-password",
        ("://",),
        re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,64}:([^\s:/@]{3,128})@[\w.-]{1,255}"),
    ),
)
_CHECKED: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("model-key", ("sk-",), re.compile(r"\b(sk-[A-Za-z0-9_-]{20,200})")),
    ("gateway-key", ("tl-",), re.compile(r"\b(tl-[A-Za-z0-9_-]{20,64})\b")),
    ("bearer-token", ("bearer",), re.compile(r"(?i)\bbearer\s{1,3}([A-Za-z0-9._~+/-]{20,500})")),
    (
        "assigned-secret",
        ("key", "token", "secret", "passw", "pwd"),
        re.compile(
            r"(?i)(?:api|access|secret|auth|private|encryption|client)?[_-]?(?:key|token|secret|passw(?:or)?d|pwd)"
            r"[\"']?\s{0,3}(?:=|:|is|:=|=>)\s{0,3}[\"']?([A-Za-z0-9_\-+/=.!@#$%^&*]{12,256})"
        ),
    ),
)


def find(text: str) -> list[Found]:
    """The secrets in a text, from left to right, none inside another."""
    found: list[Found] = []
    for one in sorted(_candidates(text), key=lambda one: (one.start, -one.end)):
        if not found or one.start >= found[-1].end:
            found.append(one)
    return found


def entropy(value: str) -> float:
    """Shannon entropy in bits a character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def _candidates(text: str) -> Iterator[Found]:
    lowered = text.lower()
    for patterns, known in ((_KNOWN, True), (_CHECKED, False)):
        for kind, literals, pattern in patterns:
            if any(literal in lowered for literal in literals):
                for match in pattern.finditer(text):
                    group = 1 if pattern.groups else 0
                    if known or _random(match[group]):
                        yield Found(kind, match.start(group), match.end(group))


def _random(value: str) -> bool:
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return mixed and entropy(value) >= _LEAST_ENTROPY
