"""An alert episode in words: what the person on call reads first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuneloop.monitor.signals import SERVED_MODEL_CHANGE
from tuneloop.registry.evidence import findings_of, part_of, since_of, summary_of
from tuneloop.registry.nouns import AlertEpisode, WindowScore, version_name
from tuneloop.registry.printing import one_line

WINDOW_HEADERS = ("UNTIL (UTC)", "VERSION", "SIGNAL", "N", "STATISTIC", "THRESHOLD", "P", "VERDICT")


def episode_lines(episode: AlertEpisode, state: str) -> Iterator[str]:
    """The episode, a line at a time: what, since when, how sure, examples, what was done, what to type next."""
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
        yield f"held to    {held} from {_when(reference['from'])} to {_when(reference['to'])}"
    if "mean_run_length" in evidence:
        yield f"how sure   one false alarm in {evidence['mean_run_length']} records or more, over all signals together"
    yield from (f"cause      {one_line(cause['kind'] + ': ' + cause['why'])}" for cause in evidence.get("causes", []))
    yield from (f"before     {one_line(change['what'])}" for change in evidence.get("changes", []))
    for signal, finding in findings_of(episode).items():
        yield from _finding_lines(signal, finding)
    if episode.done:
        yield ""
        yield from (f"done       {one_line(line)}" for line in episode.done)
    yield ""
    yield f"runbook    {episode.runbook}"
    if episode.state != "resolved":
        first = "tuneloop status" if episode.signal == SERVED_MODEL_CHANGE else "tuneloop retraining list"
        yield f"next       {first}; tuneloop report {episode.model}"
        yield f"           tuneloop alert ack {episode.id} --by YOU"


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
    if "statistic" not in finding:
        yield f"{signal}: nothing else is known of it"
        return
    p_value = f", p {finding['p_value']:.2g}" if finding["p_value"] is not None else ""
    yield f"{signal}: {finding['statistic']:.4g} against a threshold of {finding['threshold']:.4g}{p_value}"
    yield f"           {finding['detector']}; {finding['n']} records up to {_when(finding['window_end'])}"
    for word in finding.get("words", [])[:5]:
        shares = f"{word['reference']:.0%} of the reference, {word['window']:.0%} of the window"
        yield f"word       {one_line(word['word'])}: {shares}"
    for example in finding.get("examples", [])[:3]:
        yield f"example    {one_line(example['question'][:100])}"
        yield f"           tuneloop trace {example['request_id']}"


def _when(text: str) -> str:
    return text[:19].replace("T", " ") + "Z"
