"""The monitor's verbs: `monitor`, `alerts`, `alert`, `report`, `drift`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

import click

from tuneloop.monitor.settings import MAX_RUN_LENGTH
from tuneloop.registry.errors import Refused, TuneloopError
from tuneloop.registry.nouns import AlertEpisode, Signal
from tuneloop.registry.printing import by_option, emit, json_option, reason_option, table, tell_unreadable

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
    states = run_monitor(settings, once=once)
    for state in states:
        raised = f", {state.alarms} alarms" if state.alarms else ""
        if not state.failure:
            click.echo(f"{state.model}@{state.version}: {state.judged} windows judged{raised}; {state.waiting}")
    if failed := [f"{state.model}: {state.failure}" for state in states if state.failure]:
        raise TuneloopError(f"the pass was cut short for {'; '.join(failed)}")


@click.command()
@click.option("--model", help="Of one model only.")
@click.option("--all", "ended", is_flag=True, help="Resolved ones too.")
@json_option
def alerts(*, model: str | None, ended: bool, as_json: bool) -> None:
    """What is wrong now: one line per alert episode."""
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        found = registry.episodes.all(model, open_only=not ended)
        tell_unreadable(found.unreadable)
        if model is not None and not found and not found.unreadable:
            registry.check_model(model)
    rows = [
        (e.id, f"{e.opened_at:%Y-%m-%d %H:%M:%S}", e.severity, e.state, e.evidence.get("summary", e.signal))
        for e in found
    ]
    none = "no alert episodes" if ended else "no open alert episodes"
    emit(found, as_json, table(("EPISODE", "OPENED (UTC)", "SEVERITY", "STATE", "WHAT"), rows) if found else none)


@click.group()
def alert() -> None:
    """One alert episode: show it, take it, end it."""


@alert.command()
@click.argument("episode_id")
@json_option
def show(episode_id: str, *, as_json: bool) -> None:
    """What happened, how sure, which examples, what to do next."""
    from tuneloop.monitor.show import episode_lines
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        episode = registry.episodes.get(episode_id)
    emit(episode, as_json, "\n".join(episode_lines(episode)))


@alert.command()
@click.argument("episode_id")
@by_option
@click.option("--note", default="", help="What you are doing about it.")
def ack(episode_id: str, *, by: str, note: str) -> None:
    """Say that you are on it."""
    episode = _change(episode_id, "acknowledged", by, f"acknowledged by {by}" + (f": {note}" if note else ""))
    click.echo(f"{episode.id} is acknowledged")


@alert.command()
@click.argument("episode_id")
@by_option
@reason_option
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
    emit(json.loads(figures.read_text(encoding="utf-8")), as_json, f"{page}\n{figures}")


@click.group()
def drift() -> None:
    """The drift detector by itself."""


@drift.command()
@click.option("--reference", type=click.Path(path_type=Path), required=True, help='What is normal: {"text": …} lines.')
@click.option("--window", type=click.Path(path_type=Path), required=True, help='What is new: {"text": …} lines.')
@click.option(
    "--gamma", type=click.IntRange(1, MAX_RUN_LENGTH), default=10_000, show_default=True, help="Texts per false alarm."
)
@json_option
def check(*, reference: Path, window: Path, gamma: int, as_json: bool) -> None:
    """Hold one file of texts against another: statistic, threshold, p, verdict, examples."""
    from tuneloop.monitor.offline import check_files, check_lines

    found = check_files(reference, window, gamma)
    emit(vars(found), as_json, "\n".join(check_lines(found)))


@drift.command()
@click.argument("model")
@click.option("--signal", type=click.Choice(get_args(Signal)), help="Of one signal only.")
@json_option
def windows(model: str, *, signal: str | None, as_json: bool) -> None:
    """Every window that was judged: statistic, threshold, verdict."""
    from tuneloop.monitor.show import WINDOW_HEADERS, window_row
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        found = registry.episodes.scores(model, signal=signal)
        if not found:
            registry.check_model(model)
    none = f"no window of {model} has been judged yet"
    emit(found, as_json, table(WINDOW_HEADERS, [window_row(score) for score in found]) if found else none)


def _change(episode_id: str, state: Literal["acknowledged", "resolved"], by: str, note: str) -> AlertEpisode:
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
        registry.episodes.update(
            episode, changed, by=by, action=f"episode.{'resolve' if state == 'resolved' else 'ack'}"
        )
    return changed


VERBS: tuple[click.Command, ...] = (monitor, alerts, alert, report, drift)
