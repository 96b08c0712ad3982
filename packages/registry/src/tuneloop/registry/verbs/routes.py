"""`tuneloop promote · rollback · route · rollout`."""

from __future__ import annotations

import re

import click

from tuneloop.registry import actions, overview
from tuneloop.registry.canary import Limits
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Route, parse_version_name
from tuneloop.registry.printing import by_option, emit, json_option, reason_option, table, tell_unreadable
from tuneloop.registry.promotion import Change, override, set_route
from tuneloop.registry.promotion import promote as promote_version
from tuneloop.registry.promotion import rollback as roll_back
from tuneloop.registry.rollout import Plan, run

force_option = click.option("--force", is_flag=True, help="Serve what nobody approved; on record.")


@click.command()
@click.argument("version")
@by_option
@reason_option
@force_option
@json_option
def promote(version: str, by: str, reason: str, force: bool, as_json: bool) -> None:
    """Give a version all the traffic.

    The former champion stays loaded for rollback.
    """
    model, number = parse_version_name(version)
    with Registry.open() as registry:
        _show(promote_version(registry, model, number, Change(by, reason, force)), as_json)


@click.command()
@click.argument("model")
@click.option(
    "--to",
    "to_revision",
    type=int,
    help="The revision whose split returns; the last change of who serves is undone otherwise.",
)
@by_option
@reason_option
@force_option
@json_option
def rollback(model: str, to_revision: int | None, by: str, reason: str, force: bool, as_json: bool) -> None:
    """Take the last change of who serves back."""
    with Registry.open() as registry:
        _show(roll_back(registry, model, Change(by, reason, force), to_revision=to_revision), as_json)


@click.group()
def route() -> None:
    """Show or set which versions get which share."""


@route.command("show")
@click.argument("model")
@json_option
def route_show(model: str, as_json: bool) -> None:
    """Show the route in force and which gateways apply it."""
    with Registry.open() as registry:
        now = overview.route_now(registry, model)
        found, applied = now.route, now.gateways
        tell_unreadable(now.unreadable)
        text = f"{_line(found)}\ngateways: " + (
            ", ".join(f"{g} applies {r}" for g, r in applied.items()) or "none is live"
        )
        emit(found.model_dump(mode="json") | {"gateways": applied}, as_json, text)


@route.command("history")
@click.argument("model")
@json_option
def route_history(model: str, as_json: bool) -> None:
    """List every revision, the newest first."""
    with Registry.open() as registry:
        found = registry.routes.history(model)
        if not found and not found.unreadable:
            registry.routes.current(model)  # raises what to do when there is none
        tell_unreadable(found.unreadable)
        rows = [
            [r.revision, f"{r.at:%Y-%m-%d %H:%M:%S}", r.split_text, r.by, r.reason, "forced" if r.forced else ""]
            for r in found
        ]
        emit(found, as_json, table(["REVISION", "AT (UTC)", "SPLIT (BP)", "BY", "REASON", ""], rows))


@route.command("set")
@click.argument("model")
@click.argument("split", nargs=-1, required=True, metavar="VERSION=BASIS_POINTS...")
@click.option("--expect", type=int, help="Fail if the newest revision is not this one.")
@by_option
@reason_option
@force_option
@json_option
def route_set(
    model: str, split: tuple[str, ...], expect: int | None, by: str, reason: str, force: bool, as_json: bool
) -> None:
    """Write a split, for example `7=9000 8=1000`, as the next revision."""
    shares: dict[int, int] = {}
    for part in split:
        said = re.fullmatch(r"([0-9]{1,9})=([0-9]{1,9})", part)
        if said is None or int(said[1]) in shares:
            raise InvalidInput(f"{part!r} is not VERSION=BASIS_POINTS, each version once, for example 7=9000")
        shares[int(said[1])] = int(said[2])
    with Registry.open() as registry:
        _show(set_route(registry, model, shares, Change(by, reason, force), expected_revision=expect), as_json)


@route.command("override")
@click.argument("model")
@click.argument("keys", nargs=-1, required=True, metavar="KEY=VERSION...")
@click.option("--expect", type=int, help="Fail if the newest revision is not this one.")
@by_option
@reason_option
@json_option
def route_override(model: str, keys: tuple[str, ...], expect: int | None, by: str, reason: str, as_json: bool) -> None:
    """Give single sticky keys, testers for example, a version of their own.

    KEY= gives a key back to the split. Keys are kept as hashes.
    """
    wanted: dict[str, int | None] = {}
    for part in keys:
        said = re.fullmatch(r"(.+)=([0-9]{0,9})", part, re.DOTALL)
        if said is None:
            raise InvalidInput(f"{part!r} is not KEY=VERSION, for example tester-7=3, or tester-7= to give it back")
        if said[1] in wanted:
            raise InvalidInput(f"the key {said[1]!r} is given twice")
        wanted[said[1]] = int(said[2]) if said[2] else None
    with Registry.open() as registry:
        _show(override(registry, model, wanted, Change(by, reason), expected_revision=expect), as_json)


@click.group()
def rollout() -> None:
    """Raise a version's share in steps, judged against the champion."""


@rollout.command("start")
@click.argument("version")
@click.option("--steps", default="1000,5000,10000", show_default=True, help="Basis points, rising, the last 10000.")
@click.option("--hold-s", default=60.0, show_default=True, help="Least time on each step.")
@click.option(
    "--give-up-s", default=3600.0, show_default=True, help="Longest wait for a decision before a person is asked."
)
@click.option(
    "--min-samples",
    default=30,
    show_default=True,
    help="Answered requests of the version, on each step, before it is left.",
)
@click.option(
    "--margin", default=0.1, show_default=True, help="How much worse feedback (0 to 1) may be and still pass."
)
@click.option(
    "--error-margin",
    default=0.05,
    show_default=True,
    help="How much larger a share of requests may fail and still pass.",
)
@by_option
@reason_option
@json_option
def rollout_start(
    version: str,
    steps: str,
    hold_s: float,
    give_up_s: float,
    min_samples: int,
    margin: float,
    error_margin: float,
    by: str,
    reason: str,
    as_json: bool,
) -> None:
    """Raise a version to 100 % in steps; roll back on fail, pause on inconclusive."""
    model, number = parse_version_name(version)
    try:
        steps_bp = tuple(int(step) for step in steps.split(","))
    except ValueError:
        raise InvalidInput(f"--steps {steps!r} is not a list of basis points such as 1000,5000,10000") from None
    limits = Limits(min_samples=min_samples, feedback_margin=margin, error_margin=error_margin)
    plan = Plan(steps_bp, limits, hold_s, give_up_s)
    with Registry.open() as registry:
        report = run(registry, model, number, plan, Change(by, reason), lambda line: click.echo(line, err=as_json))
        emit(report.model_dump(mode="json") | {"verdict": report.verdict}, as_json, f"{version}: {report.verdict}")


@rollout.command("status")
@click.argument("model")
@json_option
def rollout_status(model: str, as_json: bool) -> None:
    """Judge the running canary as it stands now."""
    with Registry.open() as registry:
        route, now = registry.routes.current(model), overview.rollout_now(registry, model)
        if now is None:
            emit(None, as_json, f"{_line(route)}\nno canary is running")
            return
        report = now.report
        rows = [[check.name, check.verdict, check.detail] for check in report.checks]
        whose = "the rollout's own limits" if now.own_limits else "the usual limits; no rollout set this share"
        text = f"{_line(route)}\n{model}@{report.version}: {report.verdict} (by {whose})\n" + table(
            ["CHECK", "VERDICT", "DETAIL"], rows
        )
        emit(report.model_dump(mode="json") | {"verdict": report.verdict}, as_json, text)


@rollout.command("abort")
@click.argument("model")
@by_option
@reason_option
@json_option
def rollout_abort(model: str, by: str, reason: str, as_json: bool) -> None:
    """Take the canary's share away; a running `rollout start` stops by itself."""
    with Registry.open() as registry:
        _show(actions.abort(registry, model, Change(by, reason)), as_json)


def _show(route: Route, as_json: bool) -> None:
    emit(route, as_json, _line(route))


def _line(route: Route) -> str:
    keys = "1 key has" if len(route.overrides) == 1 else f"{len(route.overrides)} keys have"
    own = f", {keys} a version of their own" if route.overrides else ""
    return f"{route.model} revision {route.revision}: {route.split_text}{own} (by {route.by}: {route.reason})"
