"""`tuneloop promote · rollback · route`."""

from __future__ import annotations

import re

import click

from tuneloop.registry import overview
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Interval, Route, parse_version_name, version_name
from tuneloop.registry.printing import (
    by_option,
    emit,
    json_option,
    newest_option,
    reason_option,
    table,
    tell_more,
    tell_unreadable,
    who,
)
from tuneloop.registry.routes.changes import differences
from tuneloop.registry.routes.promotion import Change, hold_out, override, set_route
from tuneloop.registry.routes.promotion import promote as promote_version
from tuneloop.registry.routes.rolling_back import rollback as roll_back
from tuneloop.registry.routes.shadowing import ShadowReport, shadow

_SHARE = re.compile(r"([0-9]{1,9})=([0-9]{1,9})")
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
        before = registry.routes.history(model, limit=1)
        now = promote_version(registry, model, number, Change(by, reason, force))
        if now in before:
            click.echo(f"{version} has everything already: nothing was written", err=True)
        show_route(now, as_json)


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
        shown = found.model_dump(mode="json") | {"gateways": applied}
        emit(shown, as_json, text)


@route.command("history")
@click.argument("model")
@newest_option
@json_option
def route_history(model: str, newest: int, as_json: bool) -> None:
    """List a route's revisions, the newest first."""
    with Registry.open() as registry:
        found = registry.routes.history(model, limit=newest + 1)
        tell_more(found, newest)
        if not found and not found.unreadable:
            registry.route(model)  # raises what to do when there is none
        tell_unreadable(found.unreadable)
        rows = [
            [
                r.revision,
                f"{r.at:%Y-%m-%d %H:%M:%S}",
                _split_and_shadow(r),
                r.by,
                r.reason,
                "yes" if r.forced else "",
            ]
            for r in found
        ]
        emit(found, as_json, table(["REVISION", "AT (UTC)", "SPLIT (BP)", "BY", "REASON", "FORCED"], rows))


@route.command("diff")
@click.argument("model")
@click.argument("before", type=click.IntRange(1, 2**31 - 1))
@click.argument("after", type=click.IntRange(1, 2**31 - 1), required=False)
@json_option
def route_diff(model: str, before: int, after: int | None, as_json: bool) -> None:
    """Show what differs between two revisions, and how many keys it moves.

    Without a second one, the first is held against the route in force.
    """
    with Registry.open() as registry:
        now = registry.route(model) if after is None else registry.routes.at(model, after)
        found = differences(registry.routes.at(model, before), now)
    rows = [[one.what, one.before, one.after] for one in found.differences]
    text = table(["", f"REVISION {found.before.revision}", f"REVISION {found.after.revision}"], rows)
    moved = f"another version answers {found.moved_bp / 100:g} % of the keys"
    emit(found, as_json, f"{text}\n{moved}" if rows else "they are alike")


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
        said = _SHARE.fullmatch(part)
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


@route.command("shadow")
@click.argument("model")
@click.argument("shadow_share", metavar="[VERSION=BASIS_POINTS]", required=False)
@click.option("--expect", type=int, help="Fail if the newest revision is not this one.")
@click.option("--by", callback=who, help="Who sets it.")
@click.option("--reason", help="Why; kept for ever.")
@json_option
def route_shadow(
    model: str, shadow_share: str | None, expect: int | None, by: str | None, reason: str | None, as_json: bool
) -> None:
    """Send a version copies of what a share of the keys asks, for example `8=500`.

    Nobody is given its answers; without a share they are compared with those that were given. 8=0 ends it.
    """
    if shadow_share is None:
        if by is not None or reason is not None or expect is not None:
            raise InvalidInput("--by, --reason and --expect are for VERSION=BASIS_POINTS, for example 8=500")
        with Registry.open() as registry:
            now = overview.shadow_now(registry, model)
        tell_unreadable(now.unreadable)
        emit(now, as_json, shadow_text(model, now.report) if now.report else f"{model} has no shadow")
        return
    if not (by or "").strip() or not (reason or "").strip():
        raise InvalidInput("setting a shadow needs --by and --reason")
    said = _SHARE.fullmatch(shadow_share)
    if said is None:
        raise InvalidInput(f"{shadow_share!r} is not VERSION=BASIS_POINTS, for example 8=500")
    version, share_bp, change = int(said[1]), int(said[2]), Change(by or "", reason or "")
    with Registry.open() as registry:
        show_route(shadow(registry, model, version, share_bp, change, expected_revision=expect), as_json)


def show_route(route: Route, as_json: bool) -> None:
    """Print a route."""
    emit(route, as_json, route_line(route))


def route_line(route: Route) -> str:
    """A route in one line."""
    keys = "1 key has" if len(route.overrides) == 1 else f"{len(route.overrides)} keys have"
    own = f", {keys} a version of their own" if route.overrides else ""
    held = f", {route.holdout_bp / 100:g} % of the keys held out" if route.holdout_bp else ""
    who = f"{_split_and_shadow(route)}{own}{held}"
    return f"{route.model} revision {route.revision}: {who} (by {route.by}: {route.reason})"


def _split_and_shadow(route: Route) -> str:
    return route.split_text + (f", shadow {route.shadow.text}" if route.shadow else "")


def shadow_text(model: str, found: ShadowReport) -> str:
    """A shadow beside the live answers, as people read it."""
    name, since = version_name(model, found.version), f"{found.since:%Y-%m-%d %H:%M:%S} UTC"
    head = f"{name} shadows {found.share_bp / 100:g} % of the keys since {since}"
    if not found.pairs:
        return f"{head}: nothing compared yet"
    failures = found.failures
    wider = f" ({100 * failures.estimate:+.2f} points {_between(failures, '+.2f', 100)})" if failures else ""
    rows: list[list[object]] = [["failed", f"{found.failed} of {found.pairs}, live {found.live_failed}{wider}"]]
    for name, ratio in [
        ("engine's time", found.engine_time),
        ("time to first token", found.first_token),
        ("tokens of an answer", found.tokens),
        ("characters of an answer", found.length),
    ]:
        rows.append([name, f"{ratio.estimate:.2f} × {_between(ratio, '.2f')}" if ratio else None])
    return f"{head}:\n{table(['OF THE SAME REQUESTS', 'SHADOW AGAINST LIVE, 95 %'], rows)}"


def _between(interval: Interval, form: str, times: float = 1.0) -> str:
    return f"[{times * interval.low:{form}}, {times * interval.high:{form}}]"
