"""A page held against a run: what of an output is the same in every run, and the page with the run's own blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from docs.documents import CONSOLE
from docs.promoting.scene import MACHINE
from docs.promoting.story import Printed
from docs.promoting.users import Asked

_RATIO = r"\d+\.\d\d"
_FIGURE = r"\d+(?:\.\d+)?"
_COMMIT = r"(?:[0-9a-f]{40}(?:-dirty)?|tuneloop-train \S+)"
_WITHIN = rf"{_FIGURE} \[{_FIGURE}, {_FIGURE}\]"
# A kind of field and what stands for it: what a run measures, when it was, and what it and its files are called.
VARIES = tuple(
    (re.compile(pattern, re.MULTILINE), instead)
    for pattern, instead in (
        (r"\b\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?\b", "TIME"),
        (r"\b\d\d:\d\d:\d\d(?= UTC)", "TIME"),
        (r"(?<=gone on with by )\S+-\d+-[0-9a-f]{6}(?=, whose lease)", "CONTROLLER"),
        (r"^[0-9a-f]{64}$", "HASH"),
        (rf"{_RATIO}(?= MB)", "SIZE"),
        (r"\b(Python|torch|transformers|peft|trl) \d[\w.+]*", r"\1 VERSION"),
        (r"\b\d+(?= packages in all)", "COUNT"),
        (
            r"(?<=NLL difference )-\d\.\d{4} nats/token, 95% interval \[-\d\.\d{4}, -\d\.\d{4}\]",
            "-X nats/token, 95% interval [-X, -X]",
        ),
        (rf"(?<=^nll\.)(\w+ +)(?:{_FIGURE}|(-))( +){_FIGURE}$", r"\1X\2\3X"),
        (rf"(?<=^perplexity\.)(\w+ +)(?:{_WITHIN}|(-))( +){_WITHIN}$", r"\1X\2\3X"),
        (rf"(?<=total time ){_RATIO}(?= ×)", "X"),
        (rf"^(engine's time|time to first token)( +){_RATIO} × \[{_RATIO}, {_RATIO}\]$", r"\1\2X × [X, X]"),
    )
)
# A kind of line, what varies in it, and the name that stands for it, numbered: what is equal in one output stays equal.
NUMBERED = tuple(
    (re.compile(line, re.MULTILINE), re.compile(value), name)
    for line, value, name in (
        (r"^.*\b(?:ro|rt)_[0-9a-f]{12}\b.*$", r"(?<=\br[ot]_)[0-9a-f]{12}\b", "ID"),
        (r"^.*\bsha256:[0-9a-f]{12}….*$", r"\bsha256:[0-9a-f]{12}…", "DIGEST"),
        (rf"^code_commit +{_COMMIT} +{_COMMIT}$", _COMMIT, "COMMIT"),
        (r"^signed_by +[0-9a-f]{12} +[0-9a-f]{12}$", r"\b[0-9a-f]{12}\b", "KEY"),
    )
)
_MACHINES = re.compile(r"(?<=gone on with by )\S+(?=-\d+-[0-9a-f]{6}, whose lease)")


def bare(output: str) -> str:
    """An output without what differs from run to run, nor the widths of columns that follow from it."""
    for pattern, instead in VARIES:
        output = pattern.sub(instead, output)
    for line, value, name in NUMBERED:
        output = _numbered(output, line, value, name)
    return re.sub(r"  +", "  ", output)


def _numbered(output: str, line: re.Pattern[str], value: re.Pattern[str], name: str) -> str:
    numbers: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return f"{name}_{numbers.setdefault(found[0], len(numbers) + 1)}"

    return line.sub(lambda found: value.sub(number, found[0]), output)


def row(asked: Asked) -> str:
    """A request as a row of the page's table."""
    return f"| `{asked.unit}` | `{asked.version}` | {asked.revision} |"


def renewed(page: str, printed: Sequence[Printed], asked: Sequence[Asked]) -> str:
    """The page with the run's outputs below its commands, which name no machine.

    Raises:
        ValueError: the page shows other commands than were run, or in another order.
    """
    left = iter(printed)

    def block(found: re.Match[str]) -> str:
        return f"```{found['info']}\n{''.join(_shown(found['body'], left))}```"

    page = CONSOLE.sub(block, page)
    if (more := next(left, None)) is not None:
        raise ValueError(f"the run goes on and the page does not: write `$ {more.line}` where it belongs")
    for one in asked:
        page = re.sub(rf"^\| `{one.unit}` \|.*$", lambda _, one=one: row(one), page, flags=re.MULTILINE)  # type: ignore[misc]
    return page


def _shown(body: str, left: Iterator[Printed]) -> Iterator[str]:
    for line in re.findall(r"^\$ (.+)$", body, re.MULTILINE):
        there = next(left, None)
        if there is None or there.line != line:
            raise ValueError(
                f"the page shows `{line}` where the run has {f'`{there.line}`' if there else 'ended'}; make the "
                "commands of the page and of story.py agree first"
            )
        yield f"$ {line}\n{_MACHINES.sub(MACHINE, there.output)}"
