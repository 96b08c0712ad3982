"""Whether a file that is called a text is a pickle: the oldest protocol writes ASCII, and every protocol can.

Two things are told. Whether whoever unpickles it would call something that it imports: nothing has to end well for
that, so it is told of the beginning alone, and arguments that some unpickler might take are taken. And whether it is a
pickle from its first byte to its last, which calls nothing. Texts mostly end as pickles within a word; nothing is run.
"""

from __future__ import annotations

import pickletools
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO

_MOST_STEPS = 200_000  # no text goes on as a pickle for so long; a second's work
_MOST_BYTES = 1 << 20  # of one that is read to its end
_PIECE_BYTES = 1 << 16
_STEPS = {step.code: step for step in pickletools.opcodes}
_LENGTHS = {  # bytes that say how many follow
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_IMPORTS = frozenset({"GLOBAL", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
_MEMORISED = frozenset({"GET", "BINGET", "LONG_BINGET", "DUP"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_CALLS = {"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3, "BUILD": 2}  # how deep what is called lies
_CHANGES = {"APPEND": 2, "SETITEM": 3}  # and what is changed, which calls a method of it
_CHANGES_BELOW = frozenset({"APPENDS", "SETITEMS", "ADDITEMS"})  # what lies below the mark
_AT_MARK = frozenset({"INST", "OBJ", *_CHANGES_BELOW})


class _Kind(Enum):
    """What is known of a thing on the stack."""

    MARK = auto()
    IMPORTED = auto()
    TUPLE = auto()
    MAYBE = auto()  # it may be imported, or a tuple
    OTHER = auto()


class _End(Enum):
    """What unpickling a file comes to."""

    CALLS = auto()  # it calls or changes what it imports
    WHOLE = auto()  # it does not, and ends as a pickle does where the file ends
    BROKEN = auto()  # an error


_ANYTHING = frozenset({_Kind.IMPORTED, _Kind.MAYBE})  # it may be whatever there is to call


def is_pickle(path: Path) -> bool:
    """Whether whoever unpickles the file calls what it names, or it is a pickle as a whole."""
    with path.open("rb") as file:
        end = _end(file)
        file.seek(0)
        return end is _End.CALLS or (end is _End.WHOLE and _is_well_formed(file.read(_MOST_BYTES + 1)))


def _is_well_formed(content: bytes) -> bool:
    """Whether each argument is of its kind, too."""
    if len(content) > _MOST_BYTES:
        return False
    try:
        return all(step is not None for step, _, _ in pickletools.genops(content))
    except ValueError:
        return False


def _end(file: BinaryIO) -> _End:
    """What unpickling comes to; what goes on for too long to tell is taken to call something."""
    stack, imported = list[_Kind](), False
    for _ in range(_MOST_STEPS):
        step = _STEPS.get(file.read(1).decode("latin-1"))
        lines = None if step is None else _argument(file, step)
        if step is None or lines is None:
            return _End.BROKEN
        if step.name == "STOP":
            return _End.WHOLE if len(stack) == 1 and stack[0] is not _Kind.MARK and not file.read(1) else _End.BROKEN
        if step.name in {"GLOBAL", "INST"} and not all(map(_is_name, lines)):
            return _End.BROKEN  # there is nothing of that name to import
        if _reaches(stack, step):
            return _End.CALLS
        if step.name in _CALLS or step.name in {"INST", "OBJ"} or not _popped(stack, step):
            return _End.BROKEN
        imported = imported or step.name in _IMPORTS
        stack += [_kind(step, thing, imported=imported) for thing in step.stack_after]
    return _End.CALLS


def _argument(file: BinaryIO, step: pickletools.OpcodeInfo) -> list[str] | None:
    """Read past a step's argument; its lines, as far as it is lines. None: the file ends before."""
    if step.arg is None:
        return []
    if step.arg.n == pickletools.UP_TO_NEWLINE:
        lines = [_line(file) for _ in range(2 if step.name in {"GLOBAL", "INST"} else 1)]
        return None if None in lines else [line for line in lines if line is not None]
    size = step.arg.n
    if size in _LENGTHS:
        told = file.read(_LENGTHS[size])
        if len(told) < _LENGTHS[size]:
            return None
        size = int.from_bytes(told, "little")
    here = file.tell()
    if here + size > file.seek(0, 2):
        return None
    file.seek(here + size)
    return []


def _line(file: BinaryIO) -> str | None:
    """The beginning of a line that ends."""
    start = piece = file.readline(_PIECE_BYTES)
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(_PIECE_BYTES)
    return start.removesuffix(b"\n").decode(errors="replace") if piece else None


def _is_name(line: str) -> bool:
    return all(part.isidentifier() for part in line.strip().split("."))


def _reaches(stack: list[_Kind], step: pickletools.OpcodeInfo) -> bool:
    """Whether a step calls what was imported, or changes it."""
    if step.name in _AT_MARK:
        mark = next((place for place in reversed(range(len(stack))) if stack[place] is _Kind.MARK), None)
        if mark is None or step.name == "INST":
            return mark is not None
        at = mark + 1 if step.name == "OBJ" else mark - 1
        return 0 <= at < len(stack) and stack[at] in _ANYTHING
    deep = _CALLS.get(step.name) or _CHANGES.get(step.name)
    if deep is None or len(stack) < deep or _Kind.MARK in stack[-deep:]:
        return False
    wants_tuple = step.name in _CALLS and step.name != "BUILD"
    return stack[-deep] in _ANYTHING and not (wants_tuple and stack[1 - deep] not in {_Kind.TUPLE, _Kind.MAYBE})


def _popped(stack: list[_Kind], step: pickletools.OpcodeInfo) -> bool:
    """Take off what a step needs; whether it is there."""
    if step.name == "POP" and stack:  # a mark, too
        stack.pop()
        return True
    if step.name in _PUTS:
        return bool(stack)
    needs = step.stack_before
    if pickletools.markobject in needs:
        while stack:
            if stack.pop() is _Kind.MARK:
                break
        else:
            return False
        needs = needs[: needs.index(pickletools.markobject)]
    if len(stack) < len(needs) or _Kind.MARK in stack[len(stack) - len(needs) :]:
        return False
    del stack[len(stack) - len(needs) :]
    return True


def _kind(step: pickletools.OpcodeInfo, thing: pickletools.StackObject, *, imported: bool) -> _Kind:
    if thing is pickletools.markobject:
        return _Kind.MARK
    if step.name in _IMPORTS:
        return _Kind.IMPORTED
    if thing is pickletools.pytuple:
        return _Kind.TUPLE
    return _Kind.MAYBE if imported and step.name in _MEMORISED else _Kind.OTHER
