"""Real short texts by topic, from what is on the machine: package synopses by section, docstrings by library.

No topic is chosen by hand: every topic with texts enough for a reference is measured against its nearest neighbour,
the topic whose mean text is most like its own.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

LIBRARIES = ("sklearn", "scipy.stats", "numpy", "pandas", "sqlalchemy", "networkx", "matplotlib")
ENOUGH, SOME = 760, 150  # texts of a topic that can be a reference; of one that can be drifted to
_LONGEST, _SHORTEST, _CHARS_READ = 300, 20, 400_000
_PER_CENTROID = 600


@dataclass(frozen=True)
class Pair:
    """A topic and its nearest neighbour."""

    usual: str
    new: str
    similarity: float  # cosine of the mean texts


def topics() -> dict[str, list[str]]:
    """Topic → its distinct texts, in a fixed order."""
    found = _sections() | {f"docs of {name}": sorted(set(_docstrings(name))) for name in LIBRARIES if find_spec(name)}
    return {name: texts for name, texts in sorted(found.items()) if len(texts) >= SOME}


def neighbours(texts: dict[str, list[str]]) -> list[Pair]:
    """Every topic that can be a reference, with its nearest topic."""
    names = list(texts)
    sample = [text for name in names for text in _spread(texts[name])]
    weighted = TfidfVectorizer(sublinear_tf=True).fit_transform(sample)
    owner = np.repeat(np.arange(len(names)), [len(_spread(texts[name])) for name in names])
    means = np.stack([np.asarray(weighted[owner == i].mean(axis=0)).ravel() for i in range(len(names))])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    near = means @ means.T
    np.fill_diagonal(near, -1.0)
    return [
        Pair(name, names[int(near[i].argmax())], round(float(near[i].max()), 3))
        for i, name in enumerate(names)
        if len(texts[name]) >= ENOUGH
    ]


def _spread(texts: list[str]) -> list[str]:
    return texts[:: max(1, len(texts) // _PER_CENTROID)]


def _sections() -> dict[str, list[str]]:
    """Synopses of the distribution's packages by section; nothing where the lists are not on the machine."""
    if shutil.which("apt-cache") is None:
        return {}
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, errors="replace", check=False)
    sections: dict[str, set[str]] = {}
    for record in listed.stdout.split("\n\n"):
        section = re.search(r"^Section: (?:.*/)?(.+)$", record, re.MULTILINE)
        synopsis = re.search(r"^Description(?:-en)?: (.+)$", record, re.MULTILINE)
        if section and synopsis:
            sections.setdefault(section[1], set()).add(synopsis[1].strip())
    return {name: sorted(texts) for name, texts in sections.items()}


def _docstrings(library: str) -> Iterator[str]:
    """The first paragraph of every docstring of a library."""
    spec = find_spec(library)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*.py")):
        if "tests" in path.parts or path.stat().st_size > _CHARS_READ:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if _SHORTEST <= len(text) <= _LONGEST:
                    yield text
