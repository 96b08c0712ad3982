"""Whether a text can hold what a decoder looks for: a few microseconds that spare a regular expression over all of it.

A no is always right, a yes is only likely. Each glance sees the text as ASCII bytes, with `?` for every other
character, so that one `bytes.translate` and one search for a literal tell.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

Glance = Callable[[bytes], bool]
DIGITS = "0123456789"
LOWER = "abcdefghijklmnopqrstuvwxyz"
UPPER = LOWER.upper()
BLANKS = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"  # what `\s` matches, in ASCII
OTHER = "?"  # a character that is none of ASCII's, or a question mark


def as_ascii(text: str) -> bytes:
    """The text as glances see it."""
    return text.encode("ascii", "replace")


def run_of(kept: str, least: int, skipped: str = "") -> Glance:
    """At least so many of these characters in a row, those skipped not counted."""
    return any_of({"x": kept}, ["x" * least], skipped)


def any_of(kinds: dict[str, str], runs: Collection[str], skipped: str = "") -> Glance:
    """One of these runs of kinds of characters, each kind a letter; `kinds` names the characters of each."""
    table, without = _table(kinds), skipped.encode()
    found = [run.encode() for run in runs]

    def glance(seen: bytes) -> bool:
        read = seen.translate(table, without)
        return any(run in read for run in found)

    return glance


def more_than(most: int, kinds: dict[str, str], *runs: str) -> Glance:
    """More than so many of these runs of kinds, all together."""
    table, counted = _table(kinds), [run.encode() for run in runs]

    def glance(seen: bytes) -> bool:
        read = seen.translate(table)
        return sum(map(read.count, counted)) > most

    return glance


def alone(letters: str, between: str, least: int) -> Glance:
    """So many letters, each alone between two of the marks that may stand between letters, or several blanks."""
    table, single = _table({"a": letters, "-": between}), "-".join("a" * least).encode()
    spaced, blanks = _table({"a": letters, " ": " "}), " ".join("a" * least).encode()

    def glance(seen: bytes) -> bool:
        return single in seen.translate(table) or blanks in b" ".join(seen.translate(spaced).split())

    return glance


def either(*glances: Glance) -> Glance:
    """One of several says yes."""
    return lambda seen: any(glance(seen) for glance in glances)


def one_of(words: Collection[str]) -> Glance:
    """One of these words, in any case, with no letter, digit or underscore of ASCII beside it."""
    letters = {c: c for c in DIGITS + "_"} | {c: c + c.upper() for c in LOWER}
    table, wanted = _table(letters, other=" "), frozenset(word.encode() for word in words)
    return lambda seen: not wanted.isdisjoint(seen.translate(table).split())


def _table(kinds: dict[str, str], other: str = ".") -> bytes:
    table = bytearray(other.encode() * 256)
    for kind, characters in kinds.items():
        for character in characters:
            table[ord(character)] = ord(kind)
    return bytes(table)
