"""Whether files are what their names say: a pickle is one whatever it is called.

Somebody who offers files chooses their names, and whoever opens `extra.json` later may open it with whatever reads it.
JSON is parsed within the bounds that refusals have, text is read piece by piece and tried as a pickle, of weights only
the header is read.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import BinaryIO

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.versions.adapters import header_shapes
from tuneloop.registry.versions.bounded import entries, shown, text_in
from tuneloop.registry.versions.pickles import pickle_in

_THEN = "take it out, or bring it as what its name says"
_TOLD = 3  # files in a message
_PIECE_BYTES = 1 << 20
_CONTROL = frozenset(range(0x20)) - frozenset(b"\t\n\v\f\r") | {0x7F}
_TOKENIZER = ".model"  # SentencePiece's own format, or a list of tokens as text
_PROGRAMS = {b"\x80": "a pickle", b"PK\x03\x04": "an archive"}  # what PyTorch saves as, older and newer


def not_as_named(folder: Path) -> list[str]:
    """What is wrong with the files of a folder; empty where each is what its name says."""
    found = []
    for path in sorted(path for path in entries(folder) if path.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            why = _why_not(path)
        except InvalidInput as error:
            why = str(error).partition("; ")[0].removeprefix(path.name).lstrip(": ")
        if why is not None:
            found.append(f"{shown(name)} {why}")
    more = f" and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
    return [f"{', '.join(found[:_TOLD])}{more}; {_THEN}"] if found else []


def _why_not(path: Path) -> str | None:
    """What follows a file's name where it is not what that says.

    Raises:
        InvalidInput: likewise; the message begins with the name.
    """
    match path.suffix:
        case ".safetensors":
            header_shapes(path)
        case ".json":
            text = text_in(path, _THEN)
            try:
                json.loads(text)
            except RecursionError:
                return "is no JSON (it is nested too deep)"
            except ValueError as error:
                return f"is no JSON ({shown(error)})"
        case suffix if suffix == _TOKENIZER:
            with path.open("rb") as file:
                start = file.read(4)
                known = next((f"is {what}" for magic, what in _PROGRAMS.items() if start.startswith(magic)), None)
                return known or pickle_in(file)
        case _:
            with path.open("rb") as file:
                return _no_text(file) or pickle_in(file)
    return None


def _no_text(file: BinaryIO) -> str | None:
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    while True:
        piece = file.read(_PIECE_BYTES)
        if strange := _CONTROL.intersection(piece):
            byte, at = min(((byte, piece.index(byte)) for byte in strange), key=lambda each: each[1])
            return f"is no text (byte {read + at} is 0x{byte:02x}, which no text has)"
        try:
            decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            return f"is no text (near byte {read}: {shown(error.reason)})"
        if not piece:
            return None
        read += len(piece)
