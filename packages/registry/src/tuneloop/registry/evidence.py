"""What an episode's evidence says, read safely: whoever writes to the registry may open an episode, and one that says
nothing of itself, or nothing that can be understood, must not keep anybody from the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tuneloop.registry.nouns import AlertEpisode


def since_of(episode: AlertEpisode) -> datetime:
    """When the problem began as far as windows tell; else when somebody saw it."""
    return _time(episode.evidence.get("since")) or episode.opened_at


def findings_of(episode: AlertEpisode) -> dict[str, dict[str, Any]]:
    """What each signal has raised, by signal."""
    found = part_of(episode.evidence, "signals")
    return {signal: part_of(found, signal) for signal in found}


def summary_of(episode: AlertEpisode) -> str:
    """One line of what is wrong; where it has none, its signal."""
    return str(episode.evidence.get("summary") or episode.signal)


def part_of(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What stands under a name, of evidence or of a finding; nothing where that is no mapping."""
    found = said.get(name)
    return found if isinstance(found, dict) else {}


def listed_of(said: Mapping[str, Any], name: str, *needed: str) -> list[dict[str, Any]]:
    """The mappings in the list under a name, those that have everything needed; none where that is no list."""
    found = said.get(name)
    items = found if isinstance(found, list | tuple) else ()
    return [item for item in items if isinstance(item, dict) and all(item.get(key) is not None for key in needed)]


def causes_of_evidence(episode: AlertEpisode) -> list[tuple[str, str]]:
    """(kind, why) of what may have caused it, the likeliest first, as it was written down."""
    return [(str(cause["kind"]), str(cause["why"])) for cause in listed_of(episode.evidence, "causes", "kind", "why")]


def changes_of_evidence(episode: AlertEpisode) -> list[str]:
    """What changed just before, in words, as it was written down."""
    return [str(change["what"]) for change in listed_of(episode.evidence, "changes", "what")]


def slices_of(finding: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(field, value, how much of how many) of the parts of the traffic that a signal sits in, the surest first."""
    found = []
    for one in listed_of(finding, "slices", "field", "value", "count", "of"):
        of = f"{one['count']} of {one['of']}"
        before, rest = (_of(one.get(name)) for name in ("before", "rest"))
        if one.get("how") == "share":
            said = f"comes more or less often ({of}{f', {before} before' if before else ''})"
        elif one.get("how") == "texts":
            said = f"its own texts are others than before ({of})"
        elif one.get("how") == "mean":
            said = f"{one.get('mean')} {one.get('unit')} on average, {one.get('rest')} elsewhere ({of})"
        else:
            said = of + (f", {rest} elsewhere" if rest else "")
        found.append((str(one["field"]), str(one["value"]), said))
    return found


def slice_lines(episode: AlertEpisode) -> list[str]:
    """The parts of the traffic that it sits in, signal by signal."""
    return [
        f"{signal}: {field} {value}: {said}"
        for signal, finding in findings_of(episode).items()
        for field, value, said in slices_of(finding)
    ]


def _of(counts: object) -> str:
    return f"{counts[0]} of {counts[1]}" if isinstance(counts, list | tuple) and len(counts) == 2 else ""


def window_of(finding: Mapping[str, Any]) -> tuple[datetime, datetime] | None:
    """From when to when a signal was raised, if its finding tells."""
    begin, end = _time(finding.get("window_start")), _time(finding.get("window_end"))
    return None if begin is None or end is None else (begin, end)


def pages_too(episode: AlertEpisode) -> list[str]:
    """The signals that page by themselves and joined it when it was a page already."""
    return sorted(signal for signal, finding in findings_of(episode).items() if finding.get("pages_too") is True)


def aftermath_lines(episode: AlertEpisode) -> list[str]:
    """Whether what was trained for it helped, then each signal before and after; nothing where nothing has shipped."""
    after = part_of(episode.evidence, "aftermath")
    if not {"request", "before", "after", "verdict"} <= after.keys():
        return []
    lines = [f"{after['after']}, which {after['request']} made, in place of {after['before']}: {after['verdict']}"]
    found = part_of(after, "signals")
    for signal in found:
        one = part_of(found, signal)
        was, now = (_figure_text(part_of(one, name), str(one.get("unit"))) for name in ("before", "after"))
        lines.append(f"{signal} {was} → {now}: {one.get('moved')}")
    return lines


def _figure_text(figure: Mapping[str, Any], unit: str) -> str:
    value, *ends = (figure.get(name) for name in ("value", "low", "high"))
    if not isinstance(value, float | int):
        return "not known"

    def text(number: float) -> str:
        return f"{100 * number:.0f} %" if unit == "share" else f"{number:.4g}"

    low, high = ends
    between = isinstance(low, float | int) and isinstance(high, float | int)
    interval = f" [{text(low)} to {text(high)}]" if between and low is not None and high is not None else ""
    return f"{text(value)}{interval}" + ("" if unit == "share" else f" {unit}")


def _time(said: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(said))
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
