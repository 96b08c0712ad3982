"""`tuneloop promote · rollback · route`."""

from __future__ import annotations

import re

import click

from tuneloop.registry import overview
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Route, parse_version_name
from tuneloop.registry.printing import by_option, emit, json_option, reason_option, table, tell_unreadable
from tuneloop.registry.routes.promotion import Change, hold_out, override, set_route
from tuneloop.registry.routes.promotion import promote as promote_version
from tuneloop.registry.routes.promotion import rollback as roll_back

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
        show_route(promote_version(registry, model, number, Change(by, reason, force)), as_json)


@click.command()
@click.argument("model")
@click.option(
    "--to",
    "to_revision",
    type=click.IntRange(1, 2**31 - 1),
    help="The revision whose split returns; the last change of who serves is undone otherwise.",
)
@by_option
@reason_option
@force_option
@json_option
def rollback(model: str, to_revision: int | None, by: str, reason: str, force: bool, as_json: bool) -> None:
    """Take the last change of who serves back."""
    with Registry.open() as registry:
        show_route(roll_back(registry, model, Change(by, reason, force), to_revision=to_revision), as_json)


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
        text = f"{route_line(found)}\ngateways: " + (
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
        show_route(set_route(registry, model, shares, Change(by, reason, force), expected_revision=expect), as_json)


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
        show_route(override(registry, model, wanted, Change(by, reason), expected_revision=expect), as_json)


@route.command("holdout")
@click.argument("model")
@click.option("--share", "share_bp", type=int, required=True, help="Basis points of the keys; 0 holds nobody out.")
@click.option("--expect", type=int, help="Fail if the newest revision is not this one.")
@by_option
@reason_option
@json_option
def route_holdout(model: str, share_bp: int, expect: int | None, by: str, reason: str, as_json: bool) -> None:
    """Keep a share of the keys with the champion, whatever the split says.

    A rollout does not judge by them.
    """
    with Registry.open() as registry:
        show_route(hold_out(registry, model, share_bp, Change(by, reason), expected_revision=expect), as_json)


def show_route(route: Route, as_json: bool) -> None:
    """Print a route."""
    emit(route, as_json, route_line(route))


def route_line(route: Route) -> str:
    """A route in one line."""
    keys = "1 key has" if len(route.overrides) == 1 else f"{len(route.overrides)} keys have"
    own = f", {keys} a version of their own" if route.overrides else ""
    held = f", {route.holdout_bp / 100:g} % of the keys held out" if route.holdout_bp else ""
    return f"{route.model} revision {route.revision}: {route.split_text}{own}{held} (by {route.by}: {route.reason})"
