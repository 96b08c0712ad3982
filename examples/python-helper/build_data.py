"""Questions and answers about Python from public docstrings: of the standard library, and of SQLAlchemy for the drift.

    python examples/python-helper/build_data.py --out examples/python-helper/data

Writes stdlib/{train,validation,test,questions}.jsonl and sqlalchemy/{questions,test}.jsonl. A function is in one file
only, chosen by the hash of its own name without its module (`str.upper` and `bytes.upper` stay together), and no two
rows share an answer, so nothing that is measured was ever learned. The same Python and SQLAlchemy give the same files.
Takes about 1 s.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

# Modules whose import does nothing but define things.
STDLIB = """
abc argparse array ast asyncio base64 bdb binascii bisect builtins bz2 calendar cmath cmd codecs collections
collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars copy csv dataclasses
datetime decimal difflib dis email.message email.utils enum filecmp fileinput fnmatch fractions ftplib functools gc
getpass gettext glob gzip hashlib heapq hmac html html.parser http.client http.cookies http.server imaplib
importlib.metadata importlib.util inspect io ipaddress itertools json keyword linecache locale logging
logging.handlers lzma mailbox marshal math mimetypes mmap multiprocessing netrc operator optparse os os.path pathlib
pdb pickle pickletools pkgutil platform plistlib poplib pprint profile pstats py_compile pyclbr queue quopri random
re reprlib sched secrets select selectors shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl stat
statistics string struct subprocess symtable sys sysconfig tarfile tempfile textwrap threading time timeit token
tokenize trace traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.parse urllib.request
uuid venv warnings wave weakref webbrowser wsgiref.util xml.dom.minidom xml.etree.ElementTree xml.sax.saxutils
xmlrpc.client zipapp zipfile zipimport zlib zoneinfo
""".split()  # noqa: SIM905 (a hundred quoted names would fill two screens)
SQLALCHEMY = """
sqlalchemy.orm sqlalchemy.orm.attributes sqlalchemy.orm.events sqlalchemy.orm.mapper sqlalchemy.orm.query
sqlalchemy.orm.session sqlalchemy.ext.associationproxy sqlalchemy.ext.automap
sqlalchemy.ext.hybrid sqlalchemy.ext.indexable sqlalchemy.ext.mutable sqlalchemy.ext.orderinglist
""".split()  # noqa: SIM905 (a hundred quoted names would fill two screens)
PHRASINGS = (
    "What does `{name}` do?",
    "Explain `{name}` in one sentence.",
    "What is `{name}` for?",
    "Tell me what `{name}` does.",
    "In short, what does `{name}` do?",
    "Describe `{name}` briefly.",
)
# File, its share in percent of the hash's range, and the most rows it keeps: what is measured costs time twice a run.
Split = tuple[tuple[str, int, int | None], ...]
STDLIB_SPLIT: Split = (("train", 68, None), ("validation", 5, 32), ("test", 12, 60), ("questions", 15, None))
SQLALCHEMY_SPLIT: Split = (("questions", 72, None), ("test", 28, 60))
_DULL = re.compile(
    r"^(initialize self|return self|return repr|return str|implement |see |same as|alias|deprecated|undocumented|"
    r"internal|note|todo|helper|scalar method identical|create and return a new object|docstring|built-in)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Entry:
    """One public function, method or class and the first sentence of its docstring."""

    name: str
    summary: str

    def percent(self, salt: str) -> int:
        """A place in [0, 100) that depends on the function's own name alone."""
        return int.from_bytes(sha256(f"{salt}:{self.name.rpartition('.')[2]}".encode()).digest()[:4], "big") % 100

    def row(self) -> dict[str, str]:
        """The entry as an instruction row, in one of the phrasings."""
        phrasing = PHRASINGS[int.from_bytes(sha256(f"ask:{self.name}".encode()).digest()[:4], "big") % len(PHRASINGS)]
        return {"instruction": phrasing.format(name=self.name), "output": self.summary}


def main(arguments: Sequence[str] | None = None) -> None:
    """Build all files and print how many rows each has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    out = parser.parse_args(arguments).out
    known: set[str] = set()
    for domain, modules, split in (("stdlib", STDLIB, STDLIB_SPLIT), ("sqlalchemy", SQLALCHEMY, SQLALCHEMY_SPLIT)):
        entries = unique(collect(modules), known)
        for file, chosen in divide(entries, split, salt=domain).items():
            path = out / domain / f"{file}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(entry.row(), ensure_ascii=False) + "\n" for entry in chosen)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{len(chosen):5} rows  {path}\n")


def collect(modules: Sequence[str]) -> list[Entry]:
    """Public functions, classes and methods of the modules that have a usable summary, in order of name."""
    found: dict[str, Entry] = {}
    for name in modules:
        module = importlib.import_module(name)
        for path, thing in _public(module):
            summary = first_sentence(inspect.getdoc(thing) or "")
            if summary is not None:
                found[path] = Entry(path, summary)
    return [found[path] for path in sorted(found)]


def unique(entries: Sequence[Entry], known: set[str]) -> list[Entry]:
    """The entries whose answer is new; the shortest name keeps an answer that several share."""
    kept = []
    for entry in sorted(entries, key=lambda e: (len(e.name), e.name)):
        key = " ".join(entry.summary.lower().split())
        if key not in known:
            known.add(key)
            kept.append(entry)
    return sorted(kept, key=lambda e: sha256(e.name.encode()).digest())


def divide(entries: Sequence[Entry], split: Split, salt: str) -> dict[str, list[Entry]]:
    """Each entry in at most one file."""
    files: dict[str, list[Entry]] = {name: [] for name, _, _ in split}
    for entry in entries:
        place, upper = entry.percent(salt), 0
        for name, share, most in split:
            upper += share
            if place < upper:
                if most is None or len(files[name]) < most:
                    files[name].append(entry)
                break
    return files


def first_sentence(doc: str) -> str | None:
    """The summary of a docstring, or None when it has none of 4 to 30 plain words."""
    paragraphs = [" ".join(part.split()) for part in doc.strip().split("\n\n")]
    if len(paragraphs) > 1 and re.match(r"^[\w.]+\(.*\)( ->.*)?$", paragraphs[0]):
        paragraphs = paragraphs[1:]  # C functions begin with their signature
    if not paragraphs:
        return None
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`'\"(])", paragraphs[0], maxsplit=1)[0].replace("``", "`").strip()
    words = sentence.split()
    if not 4 <= len(words) <= 30 or not sentence[0].isupper() or _DULL.match(sentence):
        return None
    if any(
        mark in sentence for mark in (">>>", "->", "::", "=====", "-----", "<", "|", "*", "\\", "http")
    ) or sentence.endswith(":"):
        return None
    if sentence.endswith(("e.g.", "i.e.", "etc.")) or re.match(r"^[\w.]+\(", sentence):
        return None  # cut off in the middle, or a signature
    return sentence if sentence[-1] in ".!?" else sentence + "."


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name in getattr(module, "__all__", None) or dir(module):
        if name.startswith("_"):
            continue
        thing = getattr(module, name, None)
        here = name if module.__name__ == "builtins" else f"{module.__name__}.{name}"
        if inspect.isclass(thing):
            if not issubclass(thing, BaseException):
                yield here, thing
            for method, value in sorted(vars(thing).items()):
                if not method.startswith("_") and callable(getattr(thing, method, None)) and not inspect.isclass(value):
                    yield f"{here}.{method}", getattr(thing, method)
        elif callable(thing):
            yield here, thing


if __name__ == "__main__":
    main()
