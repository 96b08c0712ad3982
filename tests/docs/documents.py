"""The project's documents, and the commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
CONSOLE = re.compile(r"^```(?P<info>console[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
# In a container the image's entry point is `tuneloop`, so that `run` takes the verb alone.
_VERB = re.compile(r"(?:tuneloop|docker compose .*run --rm \w+|docker compose .*exec \w+ tuneloop) (.+)")
_INDENTED = re.compile(r"^    (tuneloop .+)$", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A command line in a document, and the output that stands below it."""

    place: str  # README.md:40
    line: str
    output: str


@dataclass(frozen=True)
class Console:
    """A console block; `runs` when its info string says so: ```` ```console run ````."""

    runs: bool
    commands: tuple[Command, ...]


def name(document: Path) -> str:
    """How a document is called in a test's id."""
    return str(document.relative_to(ROOT))


def consoles(document: Path) -> Iterator[Console]:
    """The console blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    for block in CONSOLE.finditer(text):
        first = text.count("\n", 0, block.start("body")) + 1
        yield Console("run" in block["info"].split(), tuple(_commands(name(document), first, block["body"])))


def tuneloop_lines(document: Path) -> list[tuple[str, str]]:
    """(place, command line) of every `tuneloop …` in console blocks, and in the runbooks' indented ones."""
    found = [
        (command.place, "tuneloop " + verb[1])
        for console in consoles(document)
        for command in console.commands
        if (verb := _VERB.match(command.line))
    ]
    text = document.read_text(encoding="utf-8")
    outside = CONSOLE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for match in _INDENTED.finditer(outside):
        place = f"{name(document)}:{outside.count(chr(10), 0, match.start()) + 1}"
        found += [(place, part.strip()) for part in match[1].split("; ")]
    return found


def _commands(document: str, first: int, body: str) -> Iterator[Command]:
    """`$ ` begins a command, `> ` goes on with it, everything else is output."""
    place, line, output = "", "", ""
    for number, text in enumerate(body.splitlines(), start=first):
        if text.startswith("$ "):
            if line:
                yield Command(place, line, output)
            place, line, output = f"{document}:{number}", text[2:], ""
        elif text.startswith("> ") and not output:
            line += "\n" + text[2:]
        else:
            output += text + "\n"
    if line:
        yield Command(place, line, output)
