"""The quarter as a document that somebody on call can read: what happened, the pages as they came, the reckoning."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from quarter_parts.findings import Findings, Row, over_at
from quarter_parts.people import Told
from quarter_parts.plan import START
from quarter_parts.world import Quarter
from tuneloop.monitor.delivery.page import Page, text_lines
from tuneloop.registry.evidence import aftermath_lines

_WIDTH = 118
_TIMES = ("since", "opened_at", "resolved_at")
HEADERS = ("EVENT", "BEGAN (UTC)", "FOUND", "ANSWERS, BOUND", "NAMED", "TOLD", "PAGES", "RETRAINING")
INTRODUCTION = Path(__file__).parent / "introduction.md"


def document(quarter: Quarter, found: Findings) -> str:
    """All of it, as Markdown."""
    return "\n".join([INTRODUCTION.read_text(encoding="utf-8"), *_course(quarter), *_reckoning(quarter, found)]) + "\n"


def table(found: Findings) -> list[tuple[str, ...]]:
    """A line for each event; see `HEADERS`."""
    return [_line(row) for row in found.rows]


def _line(row: Row) -> tuple[str, ...]:
    event, first = row.event, row.episodes[0] if row.episodes else None
    after = f"{_span(first.opened_at - event.at)} later" if first else "**missed**"
    due = "" if not event.due_after_days else f", from day {event.due_after_days:g} on"
    return (
        f"{event.name} ({event.kind})",
        f"{event.at:%a %d %b %H:%M}",
        f"{first.opened_at:%a %d %b %H:%M}, {after}" if first else after,
        f"{row.answers if row.answers is not None else '–'} of {event.bound}{due}",
        row.named,
        str(row.opened),
        str(row.pages),
        ", ".join(row.requests) or (f"refused: {row.held}" if row.held else "none"),
    )


def _course(quarter: Quarter) -> Iterator[str]:
    entries: list[tuple[datetime, int, list[str]]] = []
    for event in quarter.plan.events:
        said = f"*What nobody has been told: {event.says}.*"
        entries.append((event.at, 0, [f"**{event.at:%a %d %b %H:%M}** {said}"]))
    entries += [
        (told.at, 1, list(_told(told))) for told in quarter.people.told if told.page["transition"] != "acknowledged"
    ]
    entries += [(line.at, 2, [f"**{line.at:%a %d %b %H:%M}** {line.text}"]) for line in quarter.lines]
    week = -1
    for at, _, lines in sorted(entries, key=lambda entry: entry[:2]):
        if (now := (at - START) // timedelta(days=7)) != week:
            week = now
            monday = START + timedelta(days=7 * week)
            yield f"## Week {week + 1}, from {monday:%d %B}\n"
        yield from lines
        yield ""


def _told(told: Told) -> Iterator[str]:
    page, fields = told.page, Page.__dataclass_fields__
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in page.items() if name in fields
    }
    values |= {name: datetime.fromisoformat(page[name]) if page[name] else None for name in _TIMES}
    yield f"**{told.at:%a %d %b %H:%M}** {page['title']}\n"
    if page["transition"] == "resolved":
        yield f"Over: {page['done'][-1].partition('resolved: ')[2]}."
        return
    yield "```text"
    for line in text_lines(Page(**values)):
        yield from textwrap.wrap(line, _WIDTH, subsequent_indent=" " * 11) or [""]
    yield "```"


def _reckoning(quarter: Quarter, found: Findings) -> Iterator[str]:
    yield "## The reckoning\n"
    yield "| " + " | ".join(HEADERS) + " |"
    yield "|" + "---|" * len(HEADERS)
    for line in table(found):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
    yield ""
    yield "Bounds are in answers since the event, or since it is as large as the plan says, set for these reasons:\n"
    yield from (f"- {row.event.name}: {row.event.why}." for row in found.rows)
    gamma = quarter.plan.settings.mean_run_length
    yield (
        f"\n{found.answers:,} answers in {found.windows} windows; at one false alarm in {gamma:,} answers, "
        f"{found.budget} are within the budget. There were {len(found.false)}."
    )
    for episode in found.false:
        yield f"- {episode.opened_at:%a %d %b %H:%M} {episode.evidence['summary']}"
    yield ""
    if found.faults:
        yield "**Not kept:**\n"
        yield from (f"- {fault}" for fault in found.faults)
    else:
        yield "Every event was found within its bound, named rightly and told once; only drifts asked for retraining."
    trained = [lines for row in found.rows for episode in row.episodes if (lines := aftermath_lines(episode))]
    if trained:
        yield "\nWhat was trained, before and after:\n"
        yield from (f"- {first}: {'; '.join(figures)}." for first, *figures in trained)
    unended = [row.event.name for row in found.rows if over_at(quarter, row.event) == quarter.plan.end]
    if unended:
        yield f"\nStill going on at the end: {', '.join(unended)}."


def _span(time: timedelta) -> str:
    hours = time / timedelta(hours=1)
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.1f} days"
