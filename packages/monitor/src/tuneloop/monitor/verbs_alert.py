"""`tuneloop alert`: one episode shown, taken, silenced, ended; who is told of episodes, and what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from tuneloop.monitor.durations import seconds
from tuneloop.registry.nouns import ServingSignal, Signal
from tuneloop.registry.printing import by_option, emit, json_option, reason_option, table, tell_unreadable, who


@click.group()
def alert() -> None:
    """One alert episode: show it, take it, silence it, end it; and who is told of them."""


@alert.command()
@click.argument("episode_id")
@json_option
def show(episode_id: str, *, as_json: bool) -> None:
    """What happened, how sure, which examples, what to do next."""
    from tuneloop.monitor.show import episode_lines
    from tuneloop.registry import Registry
    from tuneloop.registry.episodes import shown_state

    with Registry.open() as registry:
        episode = registry.episodes.get(episode_id)
        state = shown_state(episode, registry.silences.all(active_only=True), registry.clock())
    emit(episode, as_json, "\n".join(episode_lines(episode, state)))


@alert.command()
@click.argument("episode_id")
@by_option
@click.option("--note", default="", help="What you are doing about it.")
def ack(episode_id: str, *, by: str, note: str) -> None:
    """Say that you are on it."""
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        click.echo(f"{registry.episodes.acknowledge(episode_id, by=by, note=note).id} is acknowledged")


@alert.command()
@click.argument("episode_id")
@by_option
@reason_option
def resolve(episode_id: str, *, by: str, reason: str) -> None:
    """End an episode by hand; a new alarm opens a new one."""
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        click.echo(f"{registry.episodes.resolve(episode_id, by=by, reason=reason).id} is resolved")


@alert.command()
@click.argument("episode_id", required=False)
@click.option("--model", help="Every episode of this model, also those that open meanwhile.")
@click.option(
    "--signal",
    type=click.Choice([*get_args(Signal), *get_args(ServingSignal)]),
    help="Of the model's only those in which nothing but this signal is seen.",
)
@click.option("--for", "for_s", required=True, callback=seconds, help="How long: 90s, 30m, 2h, 3d.")
@by_option
@reason_option
def silence(
    episode_id: str | None, *, model: str | None, signal: str | None, for_s: float, by: str, reason: str
) -> None:
    """Have nothing delivered for a while; it is recorded all the same, and told afterwards if it is still open."""
    from tuneloop.registry import Registry, actions
    from tuneloop.registry.deliveries.silences import APART

    with Registry.open() as registry:
        made = actions.silence(registry, for_s, by=by, reason=reason, model=model, episode_id=episode_id, signal=signal)
    what = episode_id or (f"{signal} of {made.model}" if signal else f"everything of {made.model}")
    click.echo(f"{made.id}: {what} is silenced until {made.until:%Y-%m-%d %H:%M:%S}Z")
    if made.cause:
        others = " or ".join(cause for cause in APART if cause != made.cause)
        click.echo(f"it is silenced for {made.cause}; what joins it by another cause ({others}) is told once")


@alert.command()
@click.option("--all", "ended", is_flag=True, help="Ended ones too.")
@json_option
def silences(*, ended: bool, as_json: bool) -> None:
    """What is silenced, until when, by whom and why."""
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        found = registry.silences.all(active_only=not ended)
        tell_unreadable(found.unreadable)
    rows = [
        (s.id, s.model, s.episode_id or s.signal or "everything", f"{s.ends_at:%Y-%m-%d %H:%M:%S}", s.by, s.reason)
        for s in found
    ]
    headers = ("SILENCE", "MODEL", "WHAT", "UNTIL (UTC)", "BY", "REASON")
    emit(found, as_json, table(headers, rows) if rows else "nothing is silenced")


@alert.command()
@click.argument("silence_id")
@by_option
@reason_option
def unsilence(silence_id: str, *, by: str, reason: str) -> None:
    """End a silence now; what is open then is delivered."""
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        click.echo(f"{registry.silences.revoke(silence_id, by=by, reason=reason).id} is over")


@alert.command()
@click.option("--set", "path", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with the new list.")
@click.option("--by", callback=who, help="Who sets it.")
@click.option("--reason", help="Why; kept for ever.")
@json_option
def receivers(*, path: Path | None, by: str | None, reason: str | None, as_json: bool) -> None:
    """Show who is told of episodes, or set a new list."""
    from tuneloop.registry import Registry
    from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy
    from tuneloop.registry.verbs.policy import set_policy

    with Registry.open(begin=path is not None) as registry:
        if path is not None:
            set_policy(registry, EVERY_MODEL, ReceiversPolicy, path, by, reason)
        found = registry.policies.get(EVERY_MODEL, ReceiversPolicy)
    rows = [(r.name, r.kind, r.severity, ", ".join(r.models) or "every model", r.examples) for r in found.receivers]
    none = "nobody is told of episodes; `tuneloop alert receivers --set FILE --by YOU --reason WHY`"
    emit(found, as_json, table(("RECEIVER", "KIND", "FROM", "MODELS", "EXAMPLES"), rows) if rows else none)


@alert.command()
@click.argument("episode_id", required=False)
@json_option
def deliveries(episode_id: str | None, *, as_json: bool) -> None:
    """What was delivered, what waits, and why."""
    from tuneloop.registry import Registry

    with Registry.open() as registry:
        if episode_id is not None:
            registry.episodes.get(episode_id)
        found = registry.outbox.all(episode_id)
        tell_unreadable(found.unreadable)
    rows = [
        (
            d.id,
            d.episode_id,
            d.transition,
            d.receiver,
            d.state,
            d.attempts,
            f"{d.ended_at or d.next_at:%m-%d %H:%M:%S}",
            d.error,
        )
        for d in found
    ]
    headers = ("DELIVERY", "EPISODE", "WHAT", "RECEIVER", "STATE", "TRIES", "AT (UTC)", "ERROR")
    emit(found, as_json, table(headers, rows) if rows else "nothing was to be delivered yet")


@alert.command()
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write them here instead of printing them."
)
def rules(*, out: Path | None) -> None:
    """Write Prometheus rules of the objectives in [monitor.slo]."""
    from tuneloop.monitor import slo
    from tuneloop.monitor.settings import MonitorSettings
    from tuneloop.registry.files import write_atomically

    text = slo.rules(MonitorSettings.load().slo)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())
        click.echo(str(out))


@alert.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write them into."
)
def dashboards(*, out: Path) -> None:
    """Write Grafana dashboards: for who is on call, who owns a model, who sees to capacity."""
    from tuneloop.monitor import boards
    from tuneloop.monitor.settings import MonitorSettings
    from tuneloop.registry.errors import InvalidInput
    from tuneloop.registry.files import write_atomically

    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in boards.dashboards(MonitorSettings.load().slo).items():
            write_atomically(out / name, text.encode())
            click.echo(str(out / name))
    except OSError as error:
        raise InvalidInput(
            f"{out} cannot be written to ({error.strerror}); give --out a folder that can be, with room in it"
        ) from None
