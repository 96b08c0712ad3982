"""Whether a file that is called a text is a pickle: the oldest protocol writes ASCII, and every protocol can.

Two things are told. Whether whoever unpickles it would call or change something that it imports: nothing has to end
well for that, so it is told of the beginning alone, and arguments that some unpickler might take are taken. And whether
it is a pickle from its first byte to its last, which does neither. Nothing is run.

Texts mostly end as pickles within a word. A list of words need not: after a `c` two lines are an import, and `a`, `b`
and `s` change one by another. That is no less than an attack (`json.loads` becomes `pickle.loads` by two imports and a
`b`), and no rule tells the two apart, so such a list is refused, with the line that does it and the way out.
"""

from __future__ import annotations

import pickletools
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
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
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_AGAIN = frozenset({*_GETS, "DUP"})  # what was there before
_KEEPS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_LEAVES = frozenset({*_KEEPS, "READONLY_BUFFER"})  # the uppermost thing as it is
_DEEP = {"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3}  # how deep what is called lies
_CALLS = frozenset({*_DEEP, "INST", "OBJ"})  # an error where there is nothing to call
_CHANGES = {"APPEND": 2, "SETITEM": 3, "BUILD": 2}  # how deep what is changed lies, of which that calls a method
_CHANGES_BELOW = frozenset({"APPENDS", "SETITEMS", "ADDITEMS"})  # what lies below the mark
_AT_MARK = frozenset({"INST", "OBJ", *_CHANGES_BELOW})
_SCALARS = frozenset(
    {
        pickletools.pyint,
        pickletools.pyinteger_or_bool,
        pickletools.pybool,
        pickletools.pyfloat,
        pickletools.pynone,
    }
)
_BY_CHANCE = (
    "a list of words may begin so by chance: then begin it with a line that no pickle has, such as `#`, or bring it as "
    "JSON"
)


class _Kind(Enum):
    """What is known of a thing on the stack."""

    MARK = auto()
    IMPORTED = auto()
    ARGUMENTS = auto()  # a tuple, or what Python's slower unpickler takes for one: whatever can be gone through
    MAYBE = auto()  # it may be imported, or arguments
    OTHER = auto()


class _End(Enum):
    """What unpickling a file comes to."""

    CALLS = auto()  # it calls what it imports
    CHANGES = auto()  # it changes what it imports
    ENDLESS = auto()  # it goes on for too long to tell
    WHOLE = auto()  # none of that, and it ends as a pickle does where the file ends
    BROKEN = auto()  # an error


@dataclass(frozen=True)
class _Ended:
    end: _End
    step: str = ""  # the one that calls or changes
    at: int = 0  # the byte behind its letter


_ANYTHING = frozenset({_Kind.IMPORTED, _Kind.MAYBE})  # it may be whatever there is to call
_IS_ARGUMENTS = frozenset({_Kind.ARGUMENTS, _Kind.MAYBE})


def pickle_in(file: BinaryIO) -> str | None:
    """What follows a file's name where whoever unpickles it calls or changes what it names, or it is a pickle as a
    whole; None: it is none. `file` is read from its beginning, wherever it stands."""
    file.seek(0)
    ended = _ended(file)
    match ended.end:
        case _End.CALLS:
            return f"is a pickle ({_place(file, ended)} calls what it imports)"
        case _End.CHANGES:
            return f"reads as a pickle ({_place(file, ended)} changes what it imports; {_BY_CHANCE})"
        case _End.ENDLESS:
            return f"is a pickle as far as it is read ({_MOST_STEPS} steps)"
        case _End.WHOLE:
            file.seek(0)
            return "is a pickle" if _is_well_formed(file.read(_MOST_BYTES + 1)) else None
        case _End.BROKEN:
            return None


def _place(file: BinaryIO, ended: _Ended) -> str:
    file.seek(0)
    left, line = ended.at - 1, 1
    while piece := file.read(min(_PIECE_BYTES, left)):
        left, line = left - len(piece), line + piece.count(b"\n")
    return f"{ended.step} in its line {line}"


def _is_well_formed(content: bytes) -> bool:
    """Whether each argument is of its kind, too."""
    if len(content) > _MOST_BYTES:
        return False
    try:
        return all(step is not None for step, _, _ in pickletools.genops(content))
    except ValueError:
        return False


def _ended(file: BinaryIO) -> _Ended:
    """What unpickling comes to, of several pickles one after the other, too."""
    stack, kept, imported, first = list[_Kind](), set[int](), False, True
    for _ in range(_MOST_STEPS):
        step = _STEPS.get(file.read(1).decode("latin-1"))
        at = file.tell()
        lines = None if step is None else _argument(file, step)
        if step is None or lines is None:
            break
        if step.name == "STOP":
            if not stack or stack[-1] is _Kind.MARK:
                break
            if not file.read(1):
                return _Ended(_End.WHOLE if first and len(stack) == 1 else _End.BROKEN)
            file.seek(at)
            stack, first = [], False
            continue
        if step.name in {"GLOBAL", "INST"} and not all(map(_is_name, lines)):
            break  # there is nothing of that name to import
        key = _key(file, step, at, lines, len(kept)) if step.name in _GETS | _KEEPS else None
        if (step.name in _GETS and key not in kept) or (step.name in _KEEPS and key is None):
            break  # nothing is kept there
        if _reaches(stack, step):
            return _Ended(_End.CALLS if step.name in _CALLS else _End.CHANGES, step.name, at)
        if step.name in _CALLS or not _popped(stack, step):
            break
        imported = imported or step.name in _IMPORTS
        if key is not None:
            kept.add(key)
        if step.name not in _LEAVES:
            stack += [_kind(step, thing, imported=imported) for thing in step.stack_after]
    else:
        return _Ended(_End.ENDLESS)
    return _Ended(_End.BROKEN)


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


def _key(file: BinaryIO, step: pickletools.OpcodeInfo, at: int, lines: list[str], many: int) -> int | None:
    """Under which number a step keeps something, or gets it again; None: under none."""
    if step.arg is None:
        return many  # that of the next
    if lines:
        with suppress(ValueError):
            return number if (number := int(lines[0])) >= 0 else None
        return None
    behind = file.tell()
    file.seek(at)
    number = int.from_bytes(file.read(behind - at), "little")
    file.seek(behind)
    return number


def _reaches(stack: list[_Kind], step: pickletools.OpcodeInfo) -> bool:
    """Whether a step calls what was imported, or changes it."""
    if step.name in _AT_MARK:
        mark = next((place for place in reversed(range(len(stack))) if stack[place] is _Kind.MARK), None)
        if mark is None or step.name == "INST":
            return mark is not None
        at = mark + 1 if step.name == "OBJ" else mark - 1
        return 0 <= at < len(stack) and stack[at] in _ANYTHING
    deep = _DEEP.get(step.name) or _CHANGES.get(step.name)
    if deep is None or len(stack) < deep or _Kind.MARK in stack[-deep:]:
        return False
    return stack[-deep] in _ANYTHING and (step.name not in _CALLS or stack[1 - deep] in _IS_ARGUMENTS)


def _popped(stack: list[_Kind], step: pickletools.OpcodeInfo) -> bool:
    """Take off what a step needs; whether it is there."""
    if step.name == "POP" and stack:  # a mark, too
        stack.pop()
        return True
    if step.name in _LEAVES:
        return bool(stack) and stack[-1] is not _Kind.MARK
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
    if imported and step.name in _AGAIN:
        return _Kind.MAYBE
    return _Kind.OTHER if thing in _SCALARS else _Kind.ARGUMENTS
