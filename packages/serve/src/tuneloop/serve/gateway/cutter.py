"""Cuts a text that is still being written into pieces that can be looked at alone; where the network cut it makes no
difference.

No secret and no personal data holds a plain word (`the`, `café`, `well-known`): such words pass as soon as they end.
What stands between two of them is a run, and waits until it ends. A run of `most` characters is cut into windows that
overlap by half, so whatever is shorter than half of that is whole in the window in which it begins. Two kinds of secret
can be longer (private keys, tokens of three parts): from where they begin, everything to their end is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ALONE = r"\s　-〿぀-ヿ㐀-鿿가-힯！，．：；？"  # blanks, and signs that are words themselves
_TOKEN = re.compile(rf"[{_ALONE}]|[^{_ALONE}]+")
_PLAIN = re.compile(r"[\"'“‘«(\[{*_`>#|-]*[^\W\d_]{1,32}(?:['’/–-][^\W\d_]{1,32}){0,3}[\"'”’»)\]}*_`.,;:!?|…-]*")
_ANNOUNCES = re.compile(r"(?i)key|token|secret|passw|pwd|bearer|^is$|^iban|[:=>]$")  # the value may stand behind it
_KEY_BEGINS = re.compile(r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----")
_KEY_ENDS = re.compile(r"-----END [A-Z ]{5,40}-----")
_LONGEST_END = 60
_LONGEST_KEY = 16_000
_TOKEN_BEGINS = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_.-]*\Z")
_TOKEN_GOES_ON = re.compile(r"[A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the text: to be looked at, or, when it was `left_out`, known already for what it is."""

    text: str
    look: bool = False
    ahead: str = ""  # what follows it: finds that begin in `text` may end here
    left_out: str = ""  # the kind of secret
    shown: str = ""  # in its place


class Cutter:
    """One text, from its beginning to its end; holds back fewer than `most` characters."""

    def __init__(self, most: int, *, leave_out: bool) -> None:
        """`leave_out`: secrets that may be longer than any window are left out from their beginning on."""
        self._most = most
        self._leave_out = leave_out
        self._text = ""  # not given out yet
        self._inside = ""  # the kind of secret whose end is awaited
        self._room = 0  # how many characters of it may still be left out

    @property
    def waits(self) -> bool:
        """Whether anything is held back."""
        return bool(self._text)

    def push(self, text: str) -> list[Piece]:
        """Take more of the text; gives what can be given out."""
        self._text += text
        return self._take(last=False)

    def end(self) -> list[Piece]:
        """The text is over; gives the rest."""
        return self._take(last=True)

    def _take(self, *, last: bool) -> list[Piece]:
        found: list[Piece] = []
        while self._text and (pieces := self._left_out(last) if self._inside else self._next(last)):
            found += pieces
        return found

    def _next(self, last: bool) -> list[Piece]:
        """The next piece: plain text up to a run, or the run; nothing while its end is not known."""
        text, most, announced = self._text, self._most, False
        run = 0  # where it begins
        for token in _TOKEN.finditer(text):
            start, end = token.span()
            word = token[0]
            alone = end - start == 1 and _is_alone(word)
            needed = end if alone or (last and end == len(text)) else end + 1  # to know that it ends here
            if needed > len(text) or needed - run > most:
                break
            in_run = run < start
            if alone and word.isspace() and (word != "\n" or announced or not in_run):
                if not in_run:
                    run = end
                continue
            if alone and word == "\n":
                return self._run(run, end)
            if alone or _is_plain(word):
                if in_run:
                    return self._run(run, start)
                run = end
                continue
            announced = _ANNOUNCES.search(word) is not None
        else:
            if last and run < len(text):
                return self._run(run, len(text))
        if run:
            return self._plain(run)
        return self._window() if len(text) >= most else []

    def _plain(self, end: int) -> list[Piece]:
        piece, self._text = Piece(self._text[:end]), self._text[end:]
        return [piece]

    def _run(self, start: int, end: int) -> list[Piece]:
        """A run that is whole, after the plain text before it."""
        plain = self._plain(start) if start else []
        return plain + self._looked_at(end - start, end - start, unfinished=False)

    def _window(self) -> list[Piece]:
        """The first half of a run that is too long to wait for."""
        return self._looked_at(self._most // 2, self._most, unfinished=True)

    def _looked_at(self, length: int, seen: int, *, unfinished: bool) -> list[Piece]:
        """The first `length` characters, of `seen` that are known."""
        text = self._text[:seen]
        begins = self._secret_in(text, length, unfinished=unfinished) if self._leave_out else None
        if begins is None:
            self._text = self._text[length:]
            return [Piece(text[:length], look=True, ahead=text[length:])]
        kind, start, end = begins
        before = [Piece(text[:start], look=True)] if start else []
        self._inside, self._room = kind, _LONGEST_KEY
        self._text = self._text[end:]
        return [*before, Piece(text[start:end], left_out=kind, shown=f"<{kind.upper()}>")]

    @staticmethod
    def _secret_in(text: str, length: int, *, unfinished: bool) -> tuple[str, int, int] | None:
        found = [("private-key", match) for match in [_KEY_BEGINS.search(text)] if match]
        if unfinished:
            found += [("json-web-token", match) for match in [_TOKEN_BEGINS.search(text)] if match]
        within = [(kind, *match.span()) for kind, match in found if match.start() < length]
        return min(within, key=lambda one: one[1], default=None)

    def _left_out(self, last: bool) -> list[Piece]:
        """What belongs to the secret whose beginning was seen."""
        text, kind = self._text, self._inside
        if kind == "private-key":
            end = _KEY_ENDS.search(text, 0, self._room)
            if end is not None or last or len(text) >= self._room:
                self._inside = ""
                length = end.end() if end is not None else min(len(text), self._room)
            else:
                length = max(0, len(text) - _LONGEST_END)
        else:
            match = _TOKEN_GOES_ON.match(text)
            length = match.end() if match else 0
            if length < len(text) or last:
                self._inside = ""
        self._room -= length
        piece, self._text = Piece(text[:length], left_out=kind), text[length:]
        if length:
            return [piece]
        return self._next(last) if not self._inside else []


def _is_alone(character: str) -> bool:
    return _ALONE_ONE.match(character) is not None


def _is_plain(word: str) -> bool:
    return not word.isupper() and _PLAIN.fullmatch(word) is not None and not _ANNOUNCES.search(word.rstrip(":"))


_ALONE_ONE = re.compile(f"[{_ALONE}]")
