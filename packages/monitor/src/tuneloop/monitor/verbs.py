"""The monitor's verbs: `monitor`, `alerts`, `alert`, `report`, `drift`, and `bias` from its package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from tuneloop.monitor.bias.verb import bias
from tuneloop.monitor.settings import MAX_RUN_LENGTH
from tuneloop.monitor.verbs_alert import alert
from tuneloop.registry.errors import TuneloopError
from tuneloop.registry.nouns import ChallengerSignal, ServingSignal, Signal
from tuneloop.registry.printing import emit, json_option, plain, table, tell_unreadable

if TYPE_CHECKING:
    from tuneloop.monitor.distributions import Measure
    from tuneloop.monitor.offline import StreamsBy, TextsBy

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
    from tuneloop.monitor.unread import in_words
    from tuneloop.registry import Registry
    from tuneloop.registry.episodes import shown_state
    from tuneloop.registry.evidence import summary_of

    with Registry.open() as registry:
        found = registry.episodes.all(model, open_only=not ended)
        silences, now = registry.silences.all(active_only=True), registry.clock()
        tell_unreadable(found.unreadable)
        if model is not None and not found and not found.unreadable:
            registry.check_model(model)
        routes = registry.routes.current_all()
        for route in (route for name, route in routes.items() if model in (None, name)):
            if why := in_words(registry, route):
                click.echo(f"not watched: {why}", err=True)
    shown = {e.id: shown_state(e, silences, now) for e in found}
    rows = [(e.id, f"{e.opened_at:%Y-%m-%d %H:%M:%S}", e.severity, shown[e.id], summary_of(e)) for e in found]
    values = [plain(e) | {"shown_as": shown[e.id]} for e in found]
    none = "no alert episodes" if ended else "no open alert episodes"
    emit(values, as_json, table(("EPISODE", "OPENED (UTC)", "SEVERITY", "STATE", "WHAT"), rows) if found else none)


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
    "--gamma",
    type=click.IntRange(1, MAX_RUN_LENGTH),
    show_default="10,000, or 100 windows where that is more",
    help="Texts per false alarm.",
)
@click.option(
    "--texts-by",
    type=click.Choice(["looks", "classifier"]),
    default="looks",
    show_default=True,
    help="How texts are told apart: as the monitor does, or by a classifier that is asked about texts it has not seen.",
)
@click.option("--stream", "streams", multiple=True, help="A number of each line to watch too; may be given again.")
@click.option(
    "--streams-by",
    type=click.Choice(["cusum", "page-hinkley"]),
    default="cusum",
    show_default=True,
    help="How streams are watched.",
)
@click.option("--column", "columns", multiple=True, help="A field of each line to compare too; may be given again.")
@click.option("--by", type=click.Choice(["ks", "psi", "js"]), default="ks", show_default=True, help="How columns are.")
@click.option(
    "--embeddings", default="", help="A sentence-transformers model (folder, package or name) to read texts with too."
)
@json_option
def check(
    *,
    reference: Path,
    window: Path,
    gamma: int | None,
    streams: tuple[str, ...],
    columns: tuple[str, ...],
    by: Measure,
    embeddings: str,
    texts_by: TextsBy,
    streams_by: StreamsBy,
    as_json: bool,
) -> None:
    """Hold one file of texts against another: statistic, threshold, p, verdict, slices, examples."""
    from tuneloop.monitor.offline import check_files, check_lines

    found = check_files(reference, window, gamma, streams, columns, by, embeddings, texts_by, streams_by)
    emit(vars(found), as_json, "\n".join(check_lines(found)))


@drift.command()
@click.argument("model")
@click.option(
    "--signal",
    type=click.Choice(list(dict.fromkeys((*get_args(Signal), *get_args(ServingSignal), *get_args(ChallengerSignal))))),
    help="Of one signal only.",
)
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


VERBS: tuple[click.Command, ...] = (monitor, alerts, alert, report, drift, bias)
