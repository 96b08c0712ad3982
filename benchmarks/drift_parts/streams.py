"""Streams of windows in which something begins to change: what is asked, how it is written, in which language."""

from __future__ import annotations

import gettext
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drift_parts.corpus import Pair
from drift_parts.power import REFERENCE, WINDOW

BEFORE, AFTER = 2, 6  # windows of the usual, then windows of the change
_RAMP = 0.1  # of a gradual mix's window: 10 % more each time
_SLANG = {
    "you": "u", "your": "ur", "are": "r", "for": "4", "to": "2", "please": "pls", "because": "cuz", "with": "w/",
    "and": "n", "the": "da", "this": "dis", "what": "wut", "package": "pkg", "application": "app", "program": "prog",
    "documentation": "docs", "library": "lib", "libraries": "libs", "development": "dev", "files": "stuff",
}  # fmt: skip
_CRIES = ("lol", "tbh", "idk", "thx", "asap", "ngl")


@dataclass(frozen=True)
class Stream:
    """A reference and what came after it; the change begins with window BEFORE."""

    kind: str
    reference: list[str]
    windows: list[list[str]]


def streams(texts: dict[str, list[str]], pairs: list[Pair], translations: Path | None, rounds: int) -> list[Stream]:
    """`rounds` streams of each kind of change, over different pairs of topics."""
    made = []
    for number in range(rounds):
        rng = random.Random(number)
        pair = pairs[number % len(pairs)]
        new = texts[pair.new]
        usual = texts[pair.usual]

        def other(_: int, window: list[str], new: list[str] = new, rng: random.Random = rng) -> list[str]:
            return rng.sample(new, min(len(window), len(new)))

        def ramp(index: int, window: list[str], new: list[str] = new, rng: random.Random = rng) -> list[str]:
            return _mixed(window, new, (index + 1) * _RAMP, rng)

        def hurried(_: int, window: list[str], rng: random.Random = rng) -> list[str]:
            return [slang(text, rng) for text in window]

        def wrapped(_: int, window: list[str]) -> list[str]:
            return [json.dumps({"query": text}) for text in window]

        changes: dict[str, Callable[[int, list[str]], list[str]]]
        changes = {"topic change": other, "gradual mix": ramp, "slang": hurried, "prompt format": wrapped}
        made += [_stream(kind, usual, rng, change) for kind, change in changes.items()]
        if translations is not None:
            made.append(_in_german(translations, rng))
    return made


def slang(text: str, rng: random.Random) -> str:
    """As it is typed in a hurry."""
    words = [_SLANG.get(word, word) for word in re.findall(r"\S+", text.lower())]
    return " ".join([*words, rng.choice(_CRIES)] if rng.random() < 0.5 else words)


def _stream(
    kind: str,
    usual: list[str],
    rng: random.Random,
    change: Callable[[int, list[str]], list[str]],
    size: int = REFERENCE,
) -> Stream:
    reference = rng.sample(usual, size)
    rest = sorted(set(usual) - set(reference))
    windows = [rng.choices(rest, k=WINDOW) if len(rest) < WINDOW else rng.sample(rest, WINDOW) for _ in range(BEFORE)]
    for index in range(AFTER):
        fresh = rng.choices(rest, k=WINDOW) if len(rest) < WINDOW else rng.sample(rest, WINDOW)
        windows.append(change(index, fresh))
    return Stream(kind, reference, windows)


def _mixed(window: list[str], new: list[str], share: float, rng: random.Random) -> list[str]:
    changed = round(share * len(window))
    return window[changed:] + rng.sample(new, changed)


def _in_german(catalogs: Path, rng: random.Random) -> Stream:
    """Messages of a framework, in English and then in German."""
    german: dict[str, str] = {}
    for path in sorted(catalogs.rglob("locale/de/LC_MESSAGES/*.mo")):
        with path.open("rb") as stream:
            catalog = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]
        german |= {key: text for key, text in catalog.items() if isinstance(key, str) and len(key) > 8}
    english = sorted(german)
    return _stream("language", english, rng, lambda _, w: [german[text] for text in w], size=len(english) // 2)
