"""Texts from templates: `{a|b}` is a choice, `{slot}` a choice from slots.txt, `\\n` a line break.

The same seed gives the same texts, everywhere. Every fifth template of a family is held out: no text of it is ever
trained on, so that what is measured there is what the classifier makes of phrasings it never saw.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HELD_OUT_EVERY = 5
_HERE = Path(__file__).parent
_BRACES = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Template:
    """One line of a grammar file."""

    family: str
    number: int  # in its family
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it is kept for measuring."""
        return self.number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


@cache
def templates(name: str) -> tuple[Template, ...]:
    """The templates of `attacks` or `benign`."""
    found: list[Template] = []
    family, number = "", 0
    for line in (_HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            family, number = line.removeprefix("== "), 0
        elif line and not (line.startswith("# ") and not family):
            found.append(Template(family, number, line))
            number += 1
    return tuple(found)


@cache
def _slots() -> dict[str, tuple[str, ...]]:
    slots: dict[str, list[str]] = {}
    name = ""
    for line in (_HERE / "slots.txt").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"\[([a-z]+)\]", line):
            name = heading[1]
        elif line and name:
            slots.setdefault(name, []).append(line)
    return {name: tuple(lines) for name, lines in slots.items()}


def expand(template: Template, draw: random.Random) -> str:
    """One text of a template; braces that hold neither choices nor a slot stay as they are."""
    text = template.text.replace("\\n", "\n")
    for _ in range(40):
        text, changed = _BRACES.subn(lambda match: _chosen(match[1], draw), text)
        if not changed:
            break
    return text.replace("\x01", "{").replace("\x02", "}")


def _chosen(inside: str, draw: random.Random) -> str:
    slots = _slots()
    if "|" in inside:
        return draw.choice(inside.split("|"))
    if _SLOT.fullmatch(inside) and inside in slots:
        return draw.choice(slots[inside])
    return f"\x01{inside}\x02"  # literal braces, as in JSON


def expanded(template: Template, *, each: int, seed: int) -> list[tuple[str, str]]:
    """Up to `each` distinct (family, text) of a template."""
    draw = random.Random(f"{seed} {template.family} {template.number}")
    distinct = dict.fromkeys(expand(template, draw) for _ in range(each * 2))
    return [(template.family, _varied(text, draw)) for text in list(distinct)[:each]]


def held_out_texts(name: str, *, each: int, seed: int) -> list[tuple[str, str]]:
    """(family, text) of the templates that are never trained on and set no threshold."""
    kept = (template for template in templates(name) if template.held_out)
    return [one for template in kept for one in expanded(template, each=each, seed=seed)]


def prose() -> list[str]:
    """Paragraphs of this project's own documents: what long benign texts are made of, which templates are not."""
    lines = (_HERE / "prose.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("# ")]


def _varied(text: str, draw: random.Random) -> str:
    """As people type: now and then no capital, capitals alone, no full stop."""
    chance = draw.random()
    if chance < 0.12:
        return text.lower()
    if chance < 0.16:
        return text.upper()
    if chance < 0.3:
        return text[:1].upper() + text[1:]
    return text.rstrip(".") if chance < 0.4 else text
