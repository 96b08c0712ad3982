"""`tuneloop key new · list · revoke`."""

from __future__ import annotations

import click

from tuneloop.registry.facade import Registry
from tuneloop.registry.printing import by_user_option, emit, json_option, table, tell_unreadable


@click.group()
def key() -> None:
    """Make, list and revoke API keys for the gateway."""


@key.command("new")
@click.option("--owner", required=True, help="Whose key it is.")
@click.option("--model", "models", multiple=True, help="A model it may ask; every model when not given.")
@click.option("--pin", is_flag=True, help="It may ask for MODEL@VERSION.")
@by_user_option
@click.option("--days", type=float, help="It expires after so many days.")
@json_option
def key_new(owner: str, models: tuple[str, ...], pin: bool, by: str, days: float | None, as_json: bool) -> None:
    """Make a key; the secret is printed once and not kept."""
    with Registry.open() as registry:
        secret, made = registry.keys.new(
            owner, by=by, models=models, may_pin=pin, ttl_s=days * 86_400 if days is not None else None
        )
        emit({"id": made.id, "secret": secret, "owner": owner}, as_json, secret)


@key.command("list")
@json_option
def key_list(as_json: bool) -> None:
    """List keys; never their secrets."""
    with Registry.open() as registry:
        found = registry.keys.all()
        tell_unreadable(found.unreadable)
        now = registry.clock()
        rows = [
            [
                k.id,
                k.owner,
                " ".join(k.models) or "all",
                "yes" if k.may_pin else "no",
                f"{k.created_at:%Y-%m-%d}",
                "yes" if k.usable(now) else "no",
            ]
            for k in found
        ]
        shown = [k.model_dump(mode="json", exclude={"digest"}) for k in found]
        emit(shown, as_json, table(["ID", "OWNER", "MODELS", "MAY PIN", "MADE", "USABLE"], rows))


@key.command("revoke")
@click.argument("key_id")
@by_user_option
def key_revoke(key_id: str, by: str) -> None:
    """Make a key unusable; gateways follow within 2 s."""
    with Registry.open() as registry:
        registry.keys.revoke(key_id, by=by)
    click.echo(f"{key_id} is revoked")
