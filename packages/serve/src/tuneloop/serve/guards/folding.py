"""Text as a reader would read it, for matching only: the original goes on unchanged.

Compatibility forms, accents, invisible characters and look-alike letters are what makes a filter see other characters
than a person does. `fold` undoes them in one pass over the text. A look-alike is folded only in a word that mixes
alphabets or holds nothing but look-alikes, so that Russian and Greek stay what they are.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Cyrillic, Greek, Armenian, Cherokee and Latin letters that read as ASCII ones (lower case; upper case is lowered
# first, but for letters whose capital alone looks alike).
_ALIKE = {
    "a": "аαɑᴀаӕꭺ",
    "b": "ЬᏏʙвƅЪβꮟ",
    "c": "сϲᴄҫ",
    "d": "ԁԃɗᴅꓒժ",
    "e": "еєҽᴇεɛəё",
    "f": "ꜰғƒϝ",
    "g": "ɡɢցԍǥ",
    "h": "һհʜнħ",
    "i": "іιɩɪıїӏǀᎥ",
    "j": "јϳʝᴊյ",
    "k": "кκᴋҝĸқ",
    "l": "ⅼʟłιاןŀ",
    "m": "мᴍɱϻм",
    "n": "ոпηɴռиŋй",
    "o": "оοσᴏօøөόѻ",
    "p": "рρᴘþ",
    "q": "ԛգզǫ",
    "r": "гʀᴦᴙя",
    "s": "ѕꜱʂꮪ",
    "t": "тτᴛŧҭ",
    "u": "υսᴜʋц",
    "v": "ѵνᴠγ",
    "w": "ѡωԝᴡшա",
    "x": "хχҳ",
    "y": "уүʏყγў",
    "z": "ᴢʐƶꮓ",
}
_FOLD = {ord(alike): latin for latin, row in _ALIKE.items() for alike in row}
# Alike at a second glance only: folded where a word mixes alphabets, not in a word of these letters alone.
_LOOSE = frozenset("ипйцгяшнғўїεγνυηημλδбвьЬ")
# Never a letter of another language's words: folded wherever they stand.
_ALWAYS = {
    ord(c): latin
    for latin, row in {
        "a": "ɑᴀɐ", "b": "ʙ", "c": "ᴄɔ", "d": "ᴅ", "e": "ᴇǝ", "f": "ꜰɟ", "g": "ɢɡƃ", "h": "ʜɥ", "i": "ɪᴉ",
        "j": "ᴊɾ", "k": "ᴋʞ", "l": "ʟן", "m": "ᴍɯ", "n": "ɴ", "o": "ᴏ", "p": "ᴘ", "r": "ʀɹ", "s": "ꜱ", "t": "ᴛʇ",
        "u": "ᴜ", "v": "ᴠʌ", "w": "ᴡʍ", "x": "х", "y": "ʏʎ", "z": "ᴢ",
    }.items()
    for c in row if c != "х"
}  # fmt: skip
_ALWAYS |= {0x1F1E6 + i: chr(97 + i) for i in range(26)}  # regional indicators: letters drawn as halves of flags
_ALWAYS |= {base + i: chr(97 + i) for base in (0x1F150, 0x1F170) for i in range(26)}  # white letters on black
_ALWAYS |= {ord(c): "'" for c in "‘’ʼ＇`´"} | {ord(c): '"' for c in "“”„«»"} | {ord(c): "-" for c in "‐‑‒–—−"}
_ALIKE_ALWAYS = re.compile(f"[{re.escape(''.join(map(chr, _ALWAYS)))}]")
_WORD = re.compile(r"(?<![^\W\d_])[a-z]*[^\W\d_a-z][^\W\d_]*")  # of a lowered text, with a letter that is not ASCII
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\x00-\x08\x0e-\x1f\x7f]"
)
_MARKS = re.compile("[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def fold(text: str, invisible: str = "") -> str:
    """The text lowered, without accents, invisible characters and look-alikes; `invisible` stands in for the latter."""
    if text.isascii():
        return (text if _plain(text) else _INVISIBLE.sub(invisible, text)).lower()
    # Word by word, as other readings of a text hold the same words; blanks are no part of what folding looks at.
    parts, at, blank = list[str](), 0, " "
    while foreign := _NOT_ASCII.search(text, at):
        start = text.rfind(blank, at, foreign.start()) + 1 or at
        end = text.find(blank, foreign.end())
        end = len(text) if end < 0 else end
        parts += [text[at:start].lower(), _part_folded(text[start:end], invisible)]
        at = end
    joined = "".join([*parts, text[at:].lower()]).replace("`", "'")
    return joined if _plain(joined) else _INVISIBLE.sub(invisible, joined)


def _plain(text: str) -> bool:
    """Whether nothing invisible is in it, at a glance: what `str` holds for printable is seen, but for some blanks."""
    return text.isascii() and text.replace("\n", "").isprintable()


def _part_folded(part: str, invisible: str) -> str:
    return _remembered(part, invisible) if len(part) <= _LONGEST_HELD else _slowly_folded(part, invisible)


def _slowly_folded(text: str, invisible: str) -> str:
    text = _INVISIBLE.sub(invisible, unicodedata.normalize("NFKC", _INVISIBLE.sub(invisible, text)))
    text = _MARKS.sub("", unicodedata.normalize("NFKD", text.lower()))
    text = _ALIKE_ALWAYS.sub(lambda one: _ALWAYS[ord(one[0])], unicodedata.normalize("NFC", text))
    return text if text.isascii() else _WORD.sub(lambda word: _folded(word[0]), text)


_LONGEST_HELD = 40  # characters
_remembered = lru_cache(maxsize=4096)(_slowly_folded)


def invisible_inside(text: str) -> bool:
    """Whether characters that nobody sees stand in it."""
    return _INVISIBLE.search(text) is not None


@lru_cache(maxsize=4096)
def _folded(word: str) -> str:
    folded = word.translate(_FOLD)
    if not folded.isascii():
        return word
    mixed = any(c.isascii() for c in word)
    return folded if mixed or not _LOOSE.intersection(word) else word
