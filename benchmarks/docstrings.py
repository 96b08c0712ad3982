"""Rows whose lengths are as real rows' are: the docstrings of Python's standard library, most short, some very long.

Read from the source of the interpreter that runs this, and kept nowhere: each is the answer to what its function does.
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from pathlib import Path

_LEFT_OUT = ("test", "tests", "site-packages", "idlelib", "lib2to3", "ensurepip", "__pycache__")


def docstring_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """So many instruction rows, drawn by the seed, each docstring once."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if any(part in _LEFT_OUT for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # files that show what does not parse
        module = ".".join(part for part in parts if part != "__init__")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                found.setdefault(text, f"What does `{module}.{node.name}` do?")
    rows = [{"instruction": asked, "output": text} for text, asked in found.items()]
    random.Random(seed).shuffle(rows)
    return rows[:count]


def write_docstrings(path: Path, count: int = 2000) -> Path:
    """The rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in docstring_rows(count)), encoding="utf-8")
    return path
