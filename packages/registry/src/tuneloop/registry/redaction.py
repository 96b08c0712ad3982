"""Personal data out of a text before it is stored, by Presidio's pattern recognisers.

The first call costs about 2 s and 120 MB (Presidio imports spaCy; where torch is loaded already, transformers too),
later ones about 6 ms for 240 words: a server runs this in a process of its own. Names of persons need a language model
and are not found here.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from tuneloop.registry import lookalikes
from tuneloop.registry.lookalikes import is_within

_PHONE = "PHONE_NUMBER"
# Whose numbers are found without a country's code; Presidio's own list has two (UK, FE) that libphonenumber has not.
_PHONE_REGIONS = ("US", "GB", "DE", "FR", "IL", "IN", "CA", "BR")
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


@dataclass(frozen=True)
class Personal:
    """One find: what it is, where it stands, and how sure Presidio is (0–1)."""

    entity: str
    start: int
    end: int
    score: float


def find(text: str, entities: Collection[str] = tuple(_MIN_SCORE)) -> list[Personal]:
    """The personal data of those kinds in a text, from left to right; where finds overlap, the surest stands.

    What is a date, a time, a version, a coordinate or an address of a machine is no telephone number.
    """
    spans = [
        Personal(found.entity_type, found.start, found.end, found.score)
        for recognizer in _recognizers()
        if (wanted := [entity for entity in recognizer.supported_entities if entity in entities])
        for found in recognizer.analyze(text=text, entities=wanted, nlp_artifacts=None) or ()
        if found.score >= _MIN_SCORE[found.entity_type]
    ]
    if any(span.entity == _PHONE for span in spans):
        forms = lookalikes.spans(text)
        spans = [one for one in spans if one.entity != _PHONE or not is_within(one.start, one.end, forms, text)]
    kept: list[Personal] = []
    for span in sorted(spans, key=lambda span: (-span.score, span.start - span.end)):
        if all(span.end <= other.start or span.start >= other.end for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


def redact(text: str) -> Redacted:
    """Replace e-mail addresses, telephone, card, account and social security numbers, and IP addresses."""
    found = find(text)
    for one in reversed(found):
        text = f"{text[: one.start]}<{one.entity}>{text[one.end :]}"
    return Redacted(text, dict(Counter(one.entity for one in found)))


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
        known.PhoneRecognizer(supported_regions=_PHONE_REGIONS),
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
