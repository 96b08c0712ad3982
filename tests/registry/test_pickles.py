"""A pickle that is called a text is told from a text, in every protocol and wherever it ends; no text is taken for one.

What Python's own unpickler does is what is held against: it stands in a class that calls nothing.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuneloop.registry.versions.pickles import is_pickle

ROOT = Path(__file__).parent.parent.parent


class Runs:
    """Whoever unpickles it runs what it says."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("pwned",)


class Held:
    """An object like any other, which is made anew by calling its class."""

    def __init__(self) -> None:
        self.value = 3


def told(content: bytes, folder: Path) -> bool:
    path = folder / "notes.txt"
    path.write_bytes(content)
    return is_pickle(path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(what=plain, protocol=st.sampled_from([0, 1]), extra=st.sampled_from([None, Runs(), Held(), os.system]))
@example(what=[], protocol=0, extra=None)
def test_what_the_older_protocols_write_is_a_pickle_whatever_it_holds(
    what: object, protocol: int, extra: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert told(pickle.dumps(what if extra is None else [what, extra], protocol), folder)


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
}


@pytest.mark.parametrize("content", CALLS.values(), ids=CALLS)
def test_what_runs_something_when_it_is_unpickled_is_a_pickle_however_it_ends(content: bytes, tmp_path: Path) -> None:
    reached = list[str]()

    class Found:
        def __init__(self, *_: object) -> None:
            reached.append("called")

    class Kept:
        """What is imported to be changed."""

        def __setitem__(self, *_: object) -> None:
            reached.append("changed")

        append = extend = __setitem__

    class Looks(pickle.Unpickler):
        def find_class(self, _module: str, name: str) -> object:
            return Kept() if name in {"environ", "path"} else Found

    with suppress(EOFError, pickle.UnpicklingError):
        Looks(io.BytesIO(content)).load()
    assert reached, "otherwise it shows nothing"
    assert told(content, tmp_path)


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
def test_what_begins_with_letters_that_are_a_pickles_steps_is_no_pickle(text: str, tmp_path: Path) -> None:
    assert not told(text.encode(), tmp_path)


def test_no_text_of_this_project_is_a_pickle() -> None:
    folders = [ROOT / name for name in ("docs", "packages", "tests", "requirements")]
    texts = [path for folder in folders for path in folder.rglob("*") if path.suffix in {".md", ".txt", ".py", ".yaml"}]
    assert len(texts) > 500
    assert [path for path in texts if is_pickle(path)] == []


def test_what_goes_on_as_a_pickle_beyond_all_measure_is_taken_for_one_soon(tmp_path: Path) -> None:
    assert told(b"N0" * 1_000_000, tmp_path), "nobody looks at all of it"
    assert not told(b"N" * 100_000 + b"](e" * 30_000, tmp_path), "and its stack may be as high as it is long"
