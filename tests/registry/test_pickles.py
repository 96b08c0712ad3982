"""A pickle that is called a text is told from a text, in every protocol and however it ends; prose is taken for none.

What Python's own unpicklers do is what is held against, the one in C and the slower one, which joblib uses: they find
nothing but a class that runs nothing. A list of words is refused where they would change what it names, and only there.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuneloop.registry.versions.pickles import pickle_in

ROOT = Path(__file__).parent.parent.parent


class Runs:
    """Whoever unpickles it runs what it says."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("pwned",)


class Held:
    """An object like any other, which is made anew by calling its class."""

    def __init__(self) -> None:
        self.value = 3


def told(content: bytes) -> bool:
    return pickle_in(io.BytesIO(content)) is not None


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(what=plain, protocol=st.sampled_from([0, 1]), extra=st.sampled_from([None, Runs(), Held(), os.system]))
@example(what=[], protocol=0, extra=None)
def test_what_the_older_protocols_write_is_a_pickle_whatever_it_holds(
    what: object, protocol: int, extra: object
) -> None:
    assert told(pickle.dumps(what if extra is None else [what, extra], protocol))


# Each runs something in Python's unpickler, and most of them then break off with an error.
CALLS = {
    "without an end": b"cos\nmkdir\n(S'pwned'\ntR",
    "with a text behind it": b"cos\nmkdir\n(S'pwned'\ntR.\nand so on\n",
    "behind what is thrown away": b"I1\n0(0N0]0cos\nmkdir\n(S'pwned'\ntR.",
    "with an argument in another form": b"I0x10\n0cos\nmkdir\n(V\\u0070wned\ntR.",
    "with an argument that is kept": b"(S'pwned'\ntp0\n0cos\nmkdir\ng0\nR.",
    "what is kept": b"cos\nmkdir\np5\n0g5\n(S'pwned'\ntR.",
    "by its name alone": b"(S'pwned'\nios\nmkdir\n.",
    "as an object of a class": b"(cos\nmkdir\nS'pwned'\no.",
    "behind what is longer than a line that anybody writes": b"S'" + b"x" * 200_000 + b"'\n0cos\nmkdir\n(S'pwned'\ntR.",
    "in an environment that is changed": b"cos\nenviron\nS'PWNED'\nS'yes'\ns.",
    "in a list that grows": b"csys\npath\nS'pwned'\na.",
    "in a list that grows by many": b"csys\npath\n(S'pwned'\nS'b'\ne.",
    "in a newer protocol without its beginning": b"\x8c\x02os\x8c\x05mkdir\x93\x8c\x05pwned\x85R.",
    "what is kept by the next number": b"cos\ngetpid\n\x94)R.",
    "what is kept by a letter that a text may have": b"cos\ngetpid\nq\xc2\x94)R.",
    "by a list of arguments": b"cos\ngetpid\n(lR.",
    "by a mapping of arguments": b"cos\nmkdir\n(S'pwned'\nI1\ndR.",
    "by an empty mapping of arguments": b"cos\ngetpid\n}R.",
    "by a set of arguments": b"cos\ngetpid\n\x8fR.",
    "by a set of arguments that stays as it is": b"cos\ngetpid\n(\x91R.",
    "by letters as arguments": b"cos\nmkdir\nVp\nR.",
    "by a new object of a list of arguments": b"cbuiltins\nlist\n]\x81.",
    "by a new object of named arguments": b"cbuiltins\nlist\n]}\x92.",
    "behind a state that is none": b"]Nb0cos\ngetpid\n)R.",
    "behind a whole pickle": b"I1\n.cos\nmkdir\n(S'pwned'\ntR.",
    "by imports alone": b"cjson.tool\njson\ncpickle\n__dict__\nb.",
    "by imports alone, later": b"csys\npath_hooks\ncrunpy\nrun_path\na.",
}


class Methods(type):
    """What may be changed of what is imported."""

    def __setitem__(cls, *_: object) -> None:
        REACHED.append("changed")

    append = extend = add = update = __setstate__ = __setitem__


class Found(metaclass=Methods):
    """Whatever is imported."""

    def __new__(cls, *_: object, **__: object) -> Found:
        REACHED.append("called")
        return super().__new__(cls)


REACHED = list[str]()


def find(_self: object, module: str, _name: str) -> object:
    if not module:
        raise ImportError("no module is called so")
    return Found


IN_C, SLOWER = (type("Looks", (base,), {"find_class": find}) for base in (pickle.Unpickler, pickle._Unpickler))


def reached(content: bytes, *unpicklers: type[Any]) -> bool:
    """Whether an unpickler of Python's calls or changes what it imports, of several pickles in a row, too."""
    REACHED.clear()
    for unpickler in unpicklers or (IN_C, SLOWER):
        file = io.BytesIO(content)
        with suppress(Exception):  # most break off
            while True:
                unpickler(file).load()
    return bool(REACHED)


@pytest.mark.parametrize("content", CALLS.values(), ids=CALLS)
def test_what_runs_something_when_it_is_unpickled_is_a_pickle_however_it_ends(content: bytes) -> None:
    assert reached(content), "otherwise it shows nothing"
    assert told(content)


kept = st.sampled_from([b"p7\n", b"q\x07", b"r\x07\x00\x00\x00", b"\x94", b"20", b"(0", b"(1", b"N0", b"]Nb0"])
gotten = st.sampled_from([b"g7\n", b"h\x07", b"j\x07\x00\x00\x00"])


@given(
    between=st.lists(kept | gotten.map(lambda got: got + b"0")), last=st.just(b"") | gotten.map(lambda got: b"0" + got)
)
def test_no_step_that_leaves_what_is_imported_where_it_is_hides_the_call(between: list[bytes], last: bytes) -> None:
    content = b"cos\ngetpid\np7\n" + b"".join(between) + last + b")R."
    assert reached(content)
    assert told(content)


TEXTS = (
    "# A model\n\nIt answers.\n",
    "class Foo\nbar baz\n(tR\n",  # no module is called "lass Foo"
    "cat\ndog\n(and)\n.\n",
    "cat\ndog\nfish\nNaN\n",
    "(in brief)\nIt answers.\n",
    "(c)\n2026\n",
    "Instructions:\n1. Ask.\n",
    "I am done.",
    "I am done",
    "Very good.\nVery.",
    "Some notes\nthat end.",
    "License: Apache-2.0\n",
    "Permission is granted.",
    "Never.",
    "#version: 0.2\nĠ t\nh e\n",
    "[PAD]\n[UNK]\nthe\n",
    "t h\np e\nR a\ni n\no r\nb a\n",
    "torch==2.13.0\ntransformers\n",
    "pandas\npillow\n",
    "certifi==2026.1.1\ncharset-normalizer\n(\n",
    "gguf\nuvloop\n",
    "{{ messages }}",
    "{%- for message in messages -%}\n",
    '{"a": 1}\n{"a": 2}\n',
    "",
    ".",
    "No.",
    "...",
    "1. one\n2. two\n",
    "0\n1\n2\n",
    "café\n",
    "(" * 1_000,
    "\n".join(f"V{number}" for number in range(1_000)),
)


@pytest.mark.parametrize("text", TEXTS)
def test_what_begins_with_letters_that_are_a_pickles_steps_is_no_pickle(text: str) -> None:
    assert not told(text.encode())


def test_no_text_of_this_project_is_a_pickle() -> None:
    folders = [ROOT / name for name in ("docs", "packages", "tests", "requirements")]
    texts = [path for folder in folders for path in folder.rglob("*") if path.suffix in {".md", ".txt", ".py", ".yaml"}]
    assert len(texts) > 500
    assert [path for path in texts if told(path.read_bytes())] == []


def test_what_goes_on_as_a_pickle_beyond_all_measure_is_taken_for_one_soon() -> None:
    assert told(b"N0" * 1_000_000), "nobody looks at all of it"
    assert not told(b"N" * 100_000 + b"](e" * 30_000), "and its stack may be as high as it is long"


def test_a_list_of_words_is_refused_only_where_it_would_change_what_it_names() -> None:
    """Words as documentation has them; the unpickler in C makes room for 1.6 billion things at an `r`."""
    pages = [path.read_bytes() for path in sorted((ROOT / "docs").rglob("*.md"))]
    words = sorted(set(re.findall(rb"\b[a-z]+\b", b" ".join(pages))))
    dice, refused = random.Random(5), 0
    for _ in range(20_000):
        listed = b"".join(b"%s\n" % word for word in dice.sample(words, 6))
        is_reached = reached(listed, SLOWER)
        assert told(listed) == is_reached, listed
        refused += is_reached
    assert 0 < refused < 200, "it is rare, and happens"


@pytest.mark.parametrize(
    ("words", "step"),
    [
        ("correct incorrect complete incomplete bad", "BUILD in its line 5"),
        ("cpu cuda cpp c bash", "BUILD in its line 5"),
        ("cat dog cow pig ant", "APPEND in its line 5"),
        ("cat dog cow pig cod fish sole", "SETITEM in its line 7"),
    ],
)
def test_who_lists_words_that_read_as_a_pickle_is_told_where_and_the_way_out(words: str, step: str) -> None:
    content = (words.replace(" ", "\n") + "\n").encode()
    assert reached(content)
    why = pickle_in(io.BytesIO(content))
    assert why is not None
    assert why.startswith(f"reads as a pickle ({step} changes what it imports; ")
    assert "begin it with a line that no pickle has, such as `#`" in why
    assert not told(b"#\n" + content)
