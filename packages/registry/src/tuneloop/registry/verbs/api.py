"""`tuneloop api` and `tuneloop token new · list · revoke`."""

from __future__ import annotations

import click

from tuneloop.registry.access.roles import Role
from tuneloop.registry.access.tokens import Token
from tuneloop.registry.facade import Registry
from tuneloop.registry.paging import MOST_PER_PAGE, Ask
from tuneloop.registry.printing import by_user_option, emit, json_option, reason_option, table, tell_unreadable


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.  [default: 8102]")
def api(host: str | None, port: int | None) -> None:
    """Serve the control plane: these verbs over HTTP, until stopped."""
    from tuneloop.registry.api.server import serve
    from tuneloop.registry.logs import set_up
    from tuneloop.registry.settings import ApiSettings, RegistrySettings

    registry = RegistrySettings.load()
    set_up(registry.log_format)
    serve(ApiSettings.load(host=host, port=port), registry)


@click.group()
def token() -> None:
    """Make, list and revoke tokens for the control plane."""


@token.command("new")
@click.argument("name")
@click.option("--role", type=click.Choice([str(role) for role in Role]), required=True, help="What it may do.")
@click.option("--days", type=float, help="It expires after so many days.")
@by_user_option
@reason_option
@json_option
def token_new(name: str, role: str, days: float | None, by: str, reason: str, as_json: bool) -> None:
    """Make a token; the secret is printed once and not kept."""
    with Registry.open(begin=True) as registry:
        ttl_s = None if days is None else days * 86_400
        secret, made = registry.tokens.new(name, Role(role), by=by, reason=reason, ttl_s=ttl_s)
        emit({"name": made.name, "role": made.role, "secret": secret}, as_json, secret)


@token.command("list")
@json_option
def token_list(as_json: bool) -> None:
    """List tokens; never their secrets."""
    with Registry.open() as registry:
        found, ask = list[Token](), Ask(MOST_PER_PAGE)
        while True:
            page = registry.tokens.page(ask)
            tell_unreadable(page.unreadable)
            found += page.items
            if page.next is None:
                break
            ask = Ask(MOST_PER_PAGE, page.next)
        now = registry.clock()
        rows = [
            [
                t.name,
                t.role,
                f"{t.created_at:%Y-%m-%d}",
                f"{t.expires_at:%Y-%m-%d %H:%M}" if t.expires_at else None,
                "yes" if t.usable(now) else "no",
            ]
            for t in found
        ]
        emit(found, as_json, table(["NAME", "ROLE", "MADE", "EXPIRES (UTC)", "USABLE"], rows))


@token.command("revoke")
@click.argument("name")
@by_user_option
@reason_option
def token_revoke(name: str, by: str, reason: str) -> None:
    """Make a token unusable at once."""
    with Registry.open() as registry:
        registry.tokens.revoke(name, by=by, reason=reason)
    click.echo(f"{name} is revoked")
