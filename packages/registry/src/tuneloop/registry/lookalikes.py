"""What is taken for a telephone number and is none, told by its form: times and dates, addresses of machines, versions,
coordinates, UUIDs, and article numbers that are called so.

A form counts only where nobody writes a telephone number like that: a date has a month and a day that there are,
coordinates are two or are called so, of no more than 180 degrees, an article number has its check digit, and numbers in
dots are versions only behind a word that says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0?[1-9]|1[0-2])"
_YEAR = r"(?:19|20)\d\d"
_CLOCK = r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-6]\d(?:[.,]\d{1,9})?)?(?:\s?[AaPp]\.?[Mm]\b)?"
_ZONE = r"(?:\s?(?:Z\b|UTC\b|[+-](?:0\d|1[0-4]):?(?:[0-5]\d)?))?"
_DATE = rf"(?:{_YEAR}([-/.]){_MONTH}\1{_DAY}|{_DAY}([-/.]){_MONTH}\2{_YEAR}|{_MONTH}([-/]){_DAY}\3{_YEAR})"
_COMPACT = rf"{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[T_-]?(?:[01]\d|2[0-3])[0-5]\d[0-5]\d(?:[.,]?\d{{3,6}})?Z?"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_FORMS = (
    rf"{_DATE}(?:(?:T|,?\s{{1,2}}){_CLOCK}{_ZONE})?",
    rf"{_CLOCK}{_ZONE}",
    _COMPACT,
    rf"{_OCTET}(?:\.{_OCTET}){{3}}(?::\d{{1,5}}|/\d{{1,2}})?",
    r"(?<=[vV])\d{1,8}(?:\.\d{1,10}){1,6}",
    r"(?i:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})",
)
_DEGREES = r"(?:0|[1-9]\d?|1[0-7]\d)\.\d{4,15}"
_NOT_INSIDE = r"(?<![\d.+])"
_ALONE = re.compile("|".join(f"{_NOT_INSIDE}{_named}(?![\\d.]*\\d)" for _named in _FORMS[1:]))
_DATED = re.compile(f"{_NOT_INSIDE}{_FORMS[0]}(?![\\d.]*\\d)")
_CALLED = re.compile(
    r"(?i)\b(?:lat|latitude|lon|long|lng|longitude)\W{1,3}(-?" + _DEGREES + r")(?![\d.]*\d)"
    r"|(?<![\d.+])(-?" + _DEGREES + r"[,;/]\s{0,2}-?" + _DEGREES + r")(?![\d.]*\d)"
    r"|\b(?:version|release|build|revision)[:\s]{1,2}v?(\d{1,10}(?:\.\d{1,10}){1,6})(?![\d.]*\d)"
)

_ARTICLE = re.compile(r"(?i)\b(?:EAN|GTIN|ISBN|ISSN|UPC)(?:-?1[0-4])?:?\s{0,2}([\dX][\dX -]{6,18}[\dX])(?![\d-])")


def spans(text: str) -> list[tuple[int, int]]:
    """Where such forms stand in a text, in no order."""
    found = [match.span() for pattern in (_DATED, _ALONE) for match in pattern.finditer(text)]
    found += [match.span(match.lastindex or 0) for match in _CALLED.finditer(text)]
    return found + [match.span(1) for match in _ARTICLE.finditer(text) if _checks(match[1])]


def _checks(article: str) -> bool:
    """Whether the last digit is the check digit: of ISBN-10 and ISSN by 11, of EAN, GTIN, UPC and ISBN-13 by 10."""
    digits = [10 if sign in "xX" else int(sign) for sign in article if sign.isalnum()][::-1]
    if len(digits) in (8, 10) and sum(place * digit for place, digit in enumerate(digits, 1)) % 11 == 0:
        return True
    weighed = sum(digit * (1, 3)[place % 2] for place, digit in enumerate(digits))
    return len(digits) in (8, 12, 13, 14) and 10 not in digits and weighed % 10 == 0


def is_within(start: int, end: int, forms: Sequence[tuple[int, int]], text: str) -> bool:
    """Whether every digit from `start` to `end` belongs to one of these forms."""
    return all(any(first <= at < last for first, last in forms) for at in range(start, end) if text[at].isdigit())
