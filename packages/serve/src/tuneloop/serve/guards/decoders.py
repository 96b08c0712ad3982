"""Decoders of what is hidden in a text or encoded: each gives the text as it reads decoded, or nothing.

`glance.py` says first what a decoder need not look at; no decoder raises, whatever the text.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import string
import urllib.parse
from collections.abc import Callable, Iterator

from tuneloop.serve.guards import glance

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{12,}(?:[ \t]*\r?\n[ \t]*[A-Za-z0-9+/_-]{4,})*={0,2}")
_BASE32 = re.compile(r"\b[A-Z2-7]{24,}={0,6}")
_HEX = re.compile(r"(?:(?:0x|\\x)?[0-9a-fA-F]{2}[\s:,]{0,2}){12,}")
_BINARY = re.compile(r"(?:[01]{8}[\s,]{0,2}){6,}")
_DECIMAL = re.compile(r"(?:\b\d{2,3}[\s,;]{1,2}){10,}\d{2,3}\b")
_TWO_CODES = re.compile(r"\d{2}[\s,;]{1,2}\d{2}")  # without which there are no eleven
_MORSE = re.compile(r"(?:[.\-·–−]{1,6}[ /|]{1,3}){10,}[.\-·–−]{0,6}")
_TWO_LETTERS = re.compile(r"[.\-·–−][ /|]{1,3}[.\-·–−]{1,6}[ /|]")  # without which there are no ten
_LONG_ENTITY = re.compile(r"&#([0-9]{8,})")  # of which `int` reads no more than some thousand digits
_ESCAPES = re.compile(r"\\u\{?([0-9a-fA-F]{4,5})\}?|\\x([0-9a-fA-F]{2})")
_TAGS = re.compile("(?<!\U0001f3f4)[\U000e0009\U000e000a\U000e000d\U000e0020-\U000e007e]{4,}")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
_BITS = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u180e]{24,}")
_SPELT = re.compile(r"(?<![^\W_])(?:[^\W_]([ .\-_*|,/~+])){3,}[^\W_](?![^\W_])|(?<![^\W_])(?:[^\W_] {1,4}){5,}[^\W_]\b")
_SPLIT = re.compile(r"[\"']\s{0,3}[+.&]{1,2}\s{0,3}[\"']")
# A mark between letters. What stands before it is looked at second: `re` leaps to the first character of a pattern.
_INNER = re.compile(r"[-.*_·•|~^](?<=[a-z].)[-.*_·•|~^]?(?=[a-z])")
_LEET = re.compile(  # an exclamation mark at the end of a word is no letter
    r"(?<![a-z0-9@$!|+])(?=[a-z]{0,30}+(?:[0-9@$|+]|!+[a-z0-9@$|+]))(?=[a-z0-9@$!|+]{0,30}[a-z])"
    r"[a-z0-9@$!|+]{1,59}[a-z0-9@$|+]"
)
_LEET_LETTERS = str.maketrans("0134578@$!|+2", "oieastbasiltz")
# Frequent words in rot13 and spelt backwards: without them decoding everything would only cost.
_IN_ROT13 = (
    *("gur", "naq", "lbh", "ner", "lbhe", "cerivbhf", "vafgehpgvbaf", "flfgrz", "vtaber", "ehyrf", "cebzcg", "erirny"),
    *("sbetrg", "cergraq", "nyy", "jvgu", "ab", "abj"),
)
_BACK_TO_FRONT = (  # none that is a word itself, as `era`: those texts would be read twice for nothing
    *("eht", "dna", "ruoy", "uoy", "morf", "htiw", "suoiverp", "snoitcurtsni", "metsys", "erongi", "selur"),
    *("tpmorp", "laever", "tegrof", "dneterp", "lla", "siht", "taht", "tahw", "wohs", "llet", "tuohtiw"),
    *("sdrowssap", "drowssap", "rewsna", "esaelp", "evah", "nialpxe", "dragersid", "egassem", "neddih", "woh"),
)
_ROT13, _BACKWARDS = (re.compile(rf"\b(?:{'|'.join(words)})\b") for words in (_IN_ROT13, _BACK_TO_FRONT))
_MORSE_CODE = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.."
)
_MORSE_MARKS = str.maketrans("·–−", ".--")
_MORSE_LETTERS = dict(zip(_MORSE_CODE.split(" "), string.ascii_lowercase, strict=True))


def _tags(text: str) -> str:
    return " ".join("".join(chr(ord(c) - 0xE0000) for c in run[0]) for run in _TAGS.finditer(text))


def _selectors(text: str) -> str:
    return " ".join(_utf8(bytes(map(_selector_byte, run[0]))) for run in _SELECTORS.finditer(text)).strip()


def _selector_byte(character: str) -> int:
    code = ord(character)
    return code - 0xFE00 if code < 0xE0000 else code - 0xE0100 + 16


def _zero_width(text: str) -> str:
    found = []
    for run in _BITS.finditer(text):
        kinds = sorted(set(run[0]))
        if len(kinds) == 2:  # which of the two is the one is not said: both are tried
            for zero in kinds:
                bits = "".join("0" if c == zero else "1" for c in run[0])
                found.append(_utf8(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8))))
    return " ".join(part for part in found if part)


def _base64(text: str) -> str:
    return _joined(_from_base64(run[0]) for run in _BASE64.finditer(text))


def _from_base64(run: str) -> str:
    digits = re.sub(r"\s+|=", "", run).replace("-", "+").replace("_", "/")
    if digits.isalpha() and digits.islower():
        return ""  # a long word
    digits = digits[: len(digits) - 1] if len(digits) % 4 == 1 else digits
    try:
        data = base64.b64decode(digits + "=" * (-len(digits) % 4))
    except (binascii.Error, ValueError):
        return ""
    return _utf16(data) if data.count(0) * 3 > len(data) else _utf8(data)


def _base32(text: str) -> str:
    def one(run: str) -> str:
        digits = run.rstrip("=")
        try:
            return _utf8(base64.b32decode(digits + "=" * (-len(digits) % 8)))
        except (binascii.Error, ValueError):
            return ""

    return _joined(one(run[0]) for run in _BASE32.finditer(text))


def _hex(text: str) -> str:
    def one(run: str) -> str:
        digits = re.sub(r"0x|\\x|[\s:,]", "", run)
        return _utf8(bytes.fromhex(digits[: len(digits) // 2 * 2]))

    return _joined(one(run[0]) for run in _HEX.finditer(text))


def _binary(text: str) -> str:
    runs = (re.sub(r"[\s,]", "", run[0]) for run in _BINARY.finditer(text))
    return _joined(_utf8(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))) for bits in runs)


def _decimal(text: str) -> str:
    if not _TWO_CODES.search(text):
        return ""
    runs = ([int(code) for code in re.findall(r"\d+", run[0])] for run in _DECIMAL.finditer(text))
    return _joined(_utf8(bytes(codes)) for codes in runs if max(codes) < 256)


def _morse(text: str) -> str:
    if not _TWO_LETTERS.search(text):
        return ""
    runs = (run[0].strip().translate(_MORSE_MARKS) for run in _MORSE.finditer(text))
    words = (re.split(r" ?[/|] ?| {2,}", run) for run in runs)
    return _joined(" ".join("".join(_MORSE_LETTERS.get(c, "") for c in w.split()) for w in run) for run in words)


def _percent(text: str) -> str:
    return urllib.parse.unquote_plus(text) if len(re.findall(r"%[0-9a-fA-F]{2}", text)) > 2 else ""


def _entities(text: str) -> str:
    if text.count("&") < 2 or ";" not in text:
        return ""
    return html.unescape(_LONG_ENTITY.sub(_cut, text))


def _cut(entity: re.Match[str]) -> str:
    """The same number without leading zeros; with eight digits it is no character's, however many more follow."""
    return f"&#{entity[1].lstrip('0')[:8] or '0'}"


def _escaped(text: str) -> str:
    if text.count("\\") < 4:
        return ""
    return _ESCAPES.sub(lambda match: chr(int(match[1] or match[2], 16)), text)


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13") if len(_ROT13.findall(text.lower())) > 1 else ""


def _reversed(folded: str) -> str:
    return folded[::-1] if _BACKWARDS.search(folded) else ""


def _spelt(text: str) -> str:
    """`i g n o r e  a l l` and `i.g.n.o.r.e` read as words; more than one blank between letters parts words."""
    if not _SPELT.search(text):
        return ""

    def one(run: re.Match[str]) -> str:
        if run[1] is None or run[1] == " ":
            return " ".join(re.sub(r"\s", "", word) for word in re.split(r" {2,}", run[0]))
        return run[0].replace(run[1], "")

    return _SPELT.sub(one, text)


def _split(folded: str) -> str:
    """Words cut by string concatenation or by marks inside them."""
    concatenated, times = _SPLIT.subn("", folded)
    joined, marks = _INNER.subn("", concatenated)
    return joined if times or marks > 2 else ""


def _leet(folded: str) -> str:
    read, words = _LEET.subn(lambda match: match[0].translate(_LEET_LETTERS), folded)
    return read if words > 1 else ""


def _joined(parts: Iterator[str]) -> str:
    return "\n".join(part for part in parts if part)


def _utf8(data: bytes) -> str:
    return _readable(data.decode("utf-8", errors="ignore"), len(data))


def _utf16(data: bytes) -> str:
    return _readable(data[: len(data) // 2 * 2].decode("utf-16-le", errors="ignore"), len(data) // 2)


def _readable(text: str, size: int) -> str:
    """The text if it is one: decoding noise loses bytes and gives control characters."""
    sound = sum(c.isspace() or 0x20 <= ord(c) < 0x7F or ord(c) >= 0xA0 for c in text)
    utf8 = len(text.encode("utf-8", errors="ignore"))
    return text if len(text) > 3 and sound >= 0.9 * len(text) and utf8 >= 0.9 * size else ""


def _always(_: bytes) -> bool:
    return True


Decoder = tuple[str, glance.Glance, Callable[[str], str]]
_A_LETTER = glance.LOWER + glance.UPPER + glance.DIGITS + glance.OTHER
_UNKNOWN_BLANKS = glance.BLANKS + glance.OTHER
HIDDEN: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("tags", _tags),
    ("selectors", _selectors),
    ("zero-width", _zero_width),
)
ENCODED: tuple[Decoder, ...] = (
    ("base64", _always, _base64),
    ("base32", glance.run_of(glance.UPPER + "234567", 24), _base32),
    ("hex", glance.run_of(string.hexdigits, 24, skipped=_UNKNOWN_BLANKS + ":,x\\"), _hex),
    ("binary", glance.run_of("01", 48, skipped=_UNKNOWN_BLANKS + ","), _binary),
    ("decimal", glance.run_of(glance.DIGITS + glance.OTHER, 22, skipped=glance.BLANKS + ",;"), _decimal),
    ("percent", glance.run_of("%", 1), _percent),
    ("entities", glance.run_of("&", 1), _entities),
    ("escapes", glance.run_of("\\", 1), _escaped),
    ("morse", glance.run_of(".-" + glance.OTHER, 10, skipped=" /|"), _morse),
    ("rot13", glance.one_of(_IN_ROT13), _rot13),
    ("spelt", glance.alone(_A_LETTER, " .-_*|,/~+", 4), _spelt),
)
CASELESS = tuple(decoder for decoder in ENCODED if decoder[0] not in {"base64", "base32"})
RESPELT: tuple[Decoder, ...] = (  # of the folded text
    ("reversed", glance.one_of(_BACK_TO_FRONT), _reversed),
    (
        "leetspeak",
        glance.more_than(1, {"a": glance.LOWER, "1": glance.DIGITS + "@$|+", "!": "!"}, "a1", "1a", "!a", "!1"),
        _leet,
    ),
    (
        "split",
        glance.either(
            glance.any_of({"q": "\"'", "p": "+.&"}, ["qpq", "qppq"], skipped=_UNKNOWN_BLANKS),
            glance.more_than(2, {"a": glance.LOWER, "-": "-.*_|~^" + glance.OTHER}, "-a"),
        ),
        _split,
    ),
)
