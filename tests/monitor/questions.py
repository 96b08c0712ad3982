"""Questions a code helper is asked, made from docstrings at hand everywhere: the standard library's and NumPy's."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable, Sequence
from functools import cache

STDLIB = (
    "argparse", "ast", "asyncio", "base64", "bisect", "calendar", "collections", "configparser", "contextlib",
    "copy", "csv", "datetime", "decimal", "difflib", "email", "enum", "fileinput", "fnmatch", "fractions",
    "functools", "gettext", "glob", "gzip", "hashlib", "heapq", "html", "inspect", "io", "ipaddress", "itertools",
    "json", "linecache", "locale", "logging", "math", "mimetypes", "operator", "os", "pathlib", "pickle",
    "platform", "pprint", "queue", "random", "re", "sched", "secrets", "shelve", "shlex", "shutil", "signal",
    "socket", "sqlite3", "statistics", "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "time", "timeit", "tokenize", "traceback", "types", "unicodedata", "urllib.parse", "uuid",
    "warnings", "weakref", "zipfile", "zlib",
)  # fmt: skip
NUMPY = ("numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.ma", "numpy.polynomial", "numpy.strings")
_BY_NAME = ("What does `{}` do?", "Explain `{}`.", "What is `{}` for?", "How do I use {}?")
_BY_TASK = ("How can I {} in Python?", "Which function does this: {}?", "I need to {}. What do I call?")


@cache
def topics(modules: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(qualified name, what it does) of every documented function and class of these modules."""
    found: dict[str, str] = {}
    for name in modules:
        module = importlib.import_module(name)
        for member in sorted(vars(module)):
            thing = vars(module)[member]
            text = inspect.getdoc(thing) if callable(thing) and not member.startswith("_") else None
            said = next(
                (s for s in map(_sentence, (text or "").split("\n\n")) if 15 < len(s) < 140 and "(" not in s), None
            )
            if said is not None:
                found.setdefault(said, f"{name}.{member}")
    return tuple((name, said) for said, name in found.items())


def _sentence(paragraph: str) -> str:
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".")


def by_name(chosen: Sequence[tuple[str, str]], rng: random.Random) -> list[str]:
    """Questions that name the function."""
    return [rng.choice(_BY_NAME).format(name) for name, _ in chosen]


def by_task(chosen: Sequence[tuple[str, str]], rng: random.Random) -> list[str]:
    """Questions that only describe the task: nothing in them says which library is meant."""
    return [rng.choice(_BY_TASK).format(said[0].lower() + said[1:]) for _, said in chosen]


Phrasing = Callable[[Sequence[tuple[str, str]], random.Random], list[str]]


def ask(modules: tuple[str, ...], n: int, rng: random.Random, phrasing: Phrasing = by_name) -> list[str]:
    """`n` questions about different things of these modules."""
    return phrasing(rng.sample(topics(modules), n), rng)
