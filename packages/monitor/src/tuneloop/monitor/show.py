"""An alert episode in words: what the person on call reads first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuneloop.monitor.delivery.page import next_commands
from tuneloop.registry.deliveries.receivers import MOST_EXAMPLES
from tuneloop.registry.evidence import (
    aftermath_lines,
    causes_of_evidence,
    changes_of_evidence,
    findings_of,
    listed_of,
    part_of,
    since_of,
    slices_of,
    summary_of,
)
from tuneloop.registry.nouns import AlertEpisode, WindowScore, version_name
from tuneloop.registry.printing import one_line

WINDOW_HEADERS = ("UNTIL (UTC)", "VERSION", "SIGNAL", "N", "STATISTIC", "THRESHOLD", "P", "VERDICT")


def episode_lines(episode: AlertEpisode, state: str) -> Iterator[str]:
    """The episode, a line at a time: what, since when, how sure, slices, examples, what was done, what to type next."""
    evidence = episode.evidence
    yield f"{episode.id}  {episode.severity}  {state}"
    yield one_line(summary_of(episode))
    yield ""
    yield f"since      {_when(since_of(episode).isoformat())}, seen {_when(episode.opened_at.isoformat())}"
    if episode.resolved_at is not None:
        yield f"until      {_when(episode.resolved_at.isoformat())}"
    reference = part_of(evidence, "reference")
    if {"n", "from", "to"} <= reference.keys():  # not every episode is the monitor's own
        whose = version_name(episode.model, reference.get("version", episode.version))
        held = f"{reference['n']} {reference.get('what', 'records')} of {whose}"
        yield f"held to    {held} from {_when(str(reference['from']))} to {_when(str(reference['to']))}"
    if "mean_run_length" in evidence:
        yield f"how sure   one false alarm in {evidence['mean_run_length']} records or more, over all signals together"
    yield from (f"cause      {one_line(f'{kind}: {why}')}" for kind, why in causes_of_evidence(episode))
    yield from (f"before     {one_line(what)}" for what in changes_of_evidence(episode))
    for signal, finding in findings_of(episode).items():
        yield from _finding_lines(signal, finding)
    first, *figures = aftermath_lines(episode) or [""]
    if first:
        yield ""
        yield f"retrained  {one_line(first)}"
        yield from (f"           {one_line(line)}" for line in figures)
    if episode.done:
        yield ""
        yield from (f"done       {one_line(line)}" for line in episode.done)
    yield ""
    yield f"runbook    {episode.runbook}"
    if episode.state != "resolved":
        _, first, *more = next_commands(episode)  # this is the first of them
        yield f"next       {first}; tuneloop report {episode.model}"
        yield from (f"           {command}" for command in more)


def window_row(score: WindowScore) -> tuple[object, ...]:
    """A judged window as a line of a table; see `WINDOW_HEADERS`."""
    judged = score.verdict != "not enough data"
    return (
        f"{score.window_end:%Y-%m-%d %H:%M:%S}",
        version_name(score.model, score.version),
        score.signal,
        score.n,
        f"{score.statistic:.4g}" if judged else None,
        f"{score.threshold:.4g}" if judged else None,
        f"{score.p_value:.2g}" if score.p_value is not None else None,
        score.verdict if judged else f"{score.verdict}: {score.detail['reason']}",
    )


def _finding_lines(signal: str, finding: dict[str, Any]) -> Iterator[str]:
    yield ""
    measured = [finding.get(name) for name in ("statistic", "threshold")]
    if not all(isinstance(value, float | int) for value in measured):
        yield f"{signal}: nothing else is known of it"
        return
    statistic, threshold = (f"{value:.4g}" for value in measured)
    p_value = f", p {p:.2g}" if isinstance(p := finding.get("p_value"), float | int) else ""
    yield f"{signal}: {statistic} against a threshold of {threshold}{p_value}"
    if finding.keys() >= {"detector", "n", "window_end"}:
        yield f"           {finding['detector']}; {finding['n']} records up to {_when(str(finding['window_end']))}"
    for field, value, said in slices_of(finding):
        yield f"slice      {one_line(f'{field} {value}: {said}')}"
    for word in listed_of(finding, "words", "word", "reference", "window")[:5]:
        shares = f"{_share(word['reference'])} of the reference, {_share(word['window'])} of the window"
        yield f"word       {one_line(str(word['word']))}: {shares}"
    for example in listed_of(finding, "examples", "question", "request_id")[:MOST_EXAMPLES]:
        yield f"example    {one_line(str(example['question'])[:100])}"
        yield f"           tuneloop trace {example['request_id']}"


def _share(value: object) -> str:
    return f"{value:.0%}" if isinstance(value, float | int) else str(value)


def _when(text: str) -> str:
    return text[:19].replace("T", " ") + "Z"
