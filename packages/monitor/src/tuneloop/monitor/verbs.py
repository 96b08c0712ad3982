"""The monitor's verbs: `monitor`, `alerts`, `alert`, `report`, `drift`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuneloop.registry.errors import Refused
from tuneloop.registry.printing import emit, json_option, table

if TYPE_CHECKING:
    from tuneloop.registry.nouns import AlertEpisode

DEFAULT_REPORT = Path("report")


@click.command()
@click.option("--once", is_flag=True, help="Make one pass, say what was found, and end.")
@click.option("--every-s", type=float, help="Seconds between passes.")
@click.option("--metrics-port", type=int, help="Where Prometheus scrapes; 0 switches it off.")
def monitor(*, once: bool, every_s: float | None, metrics_port: int | None) -> None:
    """Watch what is served, raise episodes, ask for retraining."""
    from tuneloop.monitor.process import run_monitor
    from tuneloop.monitor.settings import MonitorSettings

    settings = MonitorSettings.load(every_s=every_s, metrics_port=metrics_port)
    for state in run_monitor(settings, once=once):
        raised = f", {state.alarms} alarms" if state.alarms else ""
        click.echo(f"{state.model}@{state.version}: {state.judged} windows judged{raised}; {state.waiting}")


@click.command()
@click.option("--model", help="Of one model only.")
@click.option("--all", "ended", is_flag=True, help="Resolved ones too.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def alerts(*, model: str | None, ended: bool, as_json: bool) -> None:
    """What is wrong now: one line per alert episode."""
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        found = registry.episodes.all(model, open_only=not ended)
    if as_json:
        click.echo(json.dumps([episode.model_dump(mode="json") for episode in found], indent=2))
        return
    if not found:
        click.echo("no open alert episodes" if not ended else "no alert episodes")
    for episode in found:
        click.echo(
            f"{episode.id}  {episode.opened_at:%Y-%m-%d %H:%M:%S}Z  {episode.severity:<6}  {episode.state:<12}  "
            f"{episode.evidence['summary']}"
        )


@click.group()
def alert() -> None:
    """One alert episode: show it, take it, end it."""


@alert.command()
@click.argument("episode_id")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def show(episode_id: str, *, as_json: bool) -> None:
    """What happened, how sure, which examples, what to do next."""
    from tuneloop.monitor.show import episode_lines
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        episode = registry.episodes.get(episode_id)
    click.echo(episode.model_dump_json(indent=2) if as_json else "\n".join(episode_lines(episode)))


@alert.command()
@click.argument("episode_id")
@click.option("--by", required=True, help="Who.")
@click.option("--note", default="", help="What you are doing about it.")
def ack(episode_id: str, *, by: str, note: str) -> None:
    """Say that you are on it."""
    episode = _change(episode_id, "acknowledged", by, f"acknowledged by {by}" + (f": {note}" if note else ""))
    click.echo(f"{episode.id} is acknowledged")


@alert.command()
@click.argument("episode_id")
@click.option("--by", required=True, help="Who.")
@click.option("--reason", required=True, help="Why it is over; kept for ever.")
def resolve(episode_id: str, *, by: str, reason: str) -> None:
    """End an episode by hand; a new alarm opens a new one."""
    episode = _change(episode_id, "resolved", by, f"{reason} (by {by})")
    click.echo(f"{episode.id} is resolved")


@click.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_REPORT, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures that were drawn.")
def report(model: str, *, out: Path, as_json: bool) -> None:
    """Write a self-contained HTML report of a model, with every figure as JSON beside it."""
    from tuneloop.monitor.report import write_report
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        page, figures = write_report(registry, model, out)
    click.echo(figures.read_text(encoding="utf-8") if as_json else f"{page}\n{figures}")


@click.group()
def drift() -> None:
    """The drift detector by itself."""


@drift.command()
@click.option("--reference", type=click.Path(path_type=Path), required=True, help='What is normal: {"text": …} lines.')
@click.option("--window", type=click.Path(path_type=Path), required=True, help='What is new: {"text": …} lines.')
@click.option("--gamma", type=click.IntRange(min=1), default=10_000, show_default=True, help="Texts per false alarm.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def check(*, reference: Path, window: Path, gamma: int, as_json: bool) -> None:
    """Hold one file of texts against another: statistic, threshold, p, verdict, examples."""
    from tuneloop.monitor.offline import check_files

    found = check_files(reference, window, gamma)
    if as_json:
        click.echo(json.dumps(vars(found), indent=2))
        return
    click.echo(f"verdict    {found.verdict}")
    click.echo(f"statistic  {found.statistic:.5f} (MMD², {found.n_reference} against {found.n_window} texts)")
    click.echo(f"threshold  {found.threshold:.5f} (one false alarm in {gamma} texts or more; alpha {found.alpha:.2g})")
    click.echo(f"p          {found.p_value:.2g} ({found.permutations} permutations)")
    for word in found.words:
        click.echo(
            f"word       {word['word']}: in {word['reference']:.0%} of the reference, {word['window']:.0%} of the new"
        )
    for example in found.examples:
        click.echo(f"line {example['line']:<5} {example['text'][:110]}")


@drift.command()
@click.argument("model")
@json_option
def windows(model: str, as_json: bool) -> None:
    """List the judged windows of a model in order of time."""
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        found = registry.episodes.scores(model)
    rows = [
        [f"{w.window_end:%H:%M:%S}", w.version, w.signal, w.n, f"{w.statistic:.4g}", f"{w.threshold:.4g}", w.verdict]
        for w in found
    ]
    headers = ["END (UTC)", "VERSION", "SIGNAL", "N", "STATISTIC", "THRESHOLD", "VERDICT"]
    emit(found, as_json, table(headers, rows))


def _change(episode_id: str, state: str, by: str, note: str) -> AlertEpisode:
    from tuneloop.monitor.alerts import noted, resolved
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        episode = registry.episodes.get(episode_id)
        if episode.state == "resolved":
            raise Refused(f"{episode_id} is resolved already; `tuneloop alert show {episode_id}` says how")
        now = registry.clock()
        if state == "resolved":
            changed = resolved(episode, note, now)
        else:
            changed = noted(episode, note, now).model_copy(update={"state": state})
        registry.episodes.update(changed, by=by, action=f"episode.{'resolve' if state == 'resolved' else 'ack'}")
    return changed


VERBS: tuple[click.Command, ...] = (monitor, alerts, alert, report, drift)
