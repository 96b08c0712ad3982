"""Personal data out of a text before it is stored, by Presidio's pattern recognisers.

The first call costs about 2 s and 120 MB (Presidio imports spaCy; where torch is loaded already, transformers too),
later ones about 6 ms for 240 words: a server runs this in a process of its own. Names of persons need a language model
and are not found here.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

# Entity → the least score that counts. Patterns whose false alarms outnumber their finds (licence and passport
# numbers) are left out.
_MIN_SCORE = {
    "EMAIL_ADDRESS": 0.5,
    "PHONE_NUMBER": 0.4,
    "CREDIT_CARD": 0.5,
    "IBAN_CODE": 0.5,
    "US_SSN": 0.5,
    "IP_ADDRESS": 0.6,
    "CRYPTO": 0.5,
}


@dataclass(frozen=True)
class Redacted:
    """The text with every find replaced by `<ENTITY>`, and how many of each there were."""

    text: str
    found: dict[str, int]


def redact(text: str) -> Redacted:
    """Replace e-mail addresses, telephone, card, account and social security numbers, and IP addresses."""
    spans: list[tuple[int, int, float, str]] = [
        (found.start, found.end, found.score, found.entity_type)
        for recognizer in _recognizers()
        for found in recognizer.analyze(text=text, entities=recognizer.supported_entities, nlp_artifacts=None) or ()
        if found.score >= _MIN_SCORE[found.entity_type]
    ]
    kept: list[tuple[int, int, str]] = []
    for start, end, _, entity in sorted(spans, key=lambda span: (-span[2], span[0] - span[1])):
        if all(end <= other_start or start >= other_end for other_start, other_end, _ in kept):
            kept.append((start, end, entity))
    for start, end, entity in sorted(kept, reverse=True):
        text = f"{text[:start]}<{entity}>{text[end:]}"
    return Redacted(text, dict(Counter(entity for _, _, entity in kept)))


@cache
def _recognizers() -> tuple[Any, ...]:
    with _as_if_not_installed("torch", "transformers"):
        import tldextract  # noqa: PLC0415 (with Presidio: seconds, and only for who redacts)
        from presidio_analyzer import predefined_recognizers as known  # noqa: PLC0415

    class OfflineEmailRecognizer(known.EmailRecognizer):  # type: ignore[misc]  # Presidio is untyped
        """Presidio's own asks the network for the list of public suffixes; this one has it from the package."""

        suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

        def validate_result(self, pattern_text: str) -> bool:
            return bool(self.suffixes(pattern_text).top_domain_under_public_suffix)

    return (
        OfflineEmailRecognizer(),
        known.PhoneRecognizer(),
        known.CreditCardRecognizer(),
        known.IbanRecognizer(),
        known.UsSsnRecognizer(),
        known.IpRecognizer(),
        known.CryptoRecognizer(),
    )


@contextmanager
def _as_if_not_installed(*names: str) -> Iterator[None]:
    """Presidio imports these where they are, for recognisers by language models; without them it takes a third."""
    left_out = [name for name in names if name not in sys.modules]
    for name in left_out:
        sys.modules[name] = None  # type: ignore[assignment]  # makes an import raise ImportError
    try:
        yield
    finally:
        for name in left_out:
            del sys.modules[name]
