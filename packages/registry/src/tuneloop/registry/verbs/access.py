"""`tuneloop key new · list · limit · owner · owners · rotate · usage · revoke`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, get_args

import click
from pydantic import ValidationError

from tuneloop.registry.access.limits import PRIORITIES, KeyLimits
from tuneloop.registry.database import faults
from tuneloop.registry.errors import InvalidInput, NotFound, Unavailable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import ApiKey
from tuneloop.registry.nouns.access import Scope
from tuneloop.registry.printing import by_user_option, emit, json_option, may_reason_option, table, tell_unreadable

_LIFT = "none"
_LIMITS = (  # option, field, what it says
    ("--rpm", "requests_per_minute", "Requests a minute."),
    ("--tpm", "tokens_per_minute", "Tokens a minute, prompt and answer together."),
    ("--streams", "streams", "Requests at once, streamed or not."),
    ("--budget-usd", "budget_usd_per_month", "Money a month, at the gateway's prices."),
)


def _limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--rpm --tpm --streams --budget-usd --priority`."""
    priority = click.option(
        "--priority", type=click.Choice(PRIORITIES), help="Whose turn it is where requests wait for engines."
    )
    return _owner_options(priority(command))


def _owner_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--rpm --tpm --streams --budget-usd`."""
    for option, field, help_text in reversed(_LIMITS):
        command = click.option(option, field, metavar="NUMBER|none", help=help_text)(command)
    return command


def _changed(limits: KeyLimits, given: dict[str, str | None]) -> KeyLimits:
    """Limits with what was given on the command line.

    Raises:
        InvalidInput: a limit is no number, or out of bounds; every one at once.
    """
    values: dict[str, Any] = limits.model_dump()
    for field, text in given.items():
        if text is not None:
            values[field] = None if text == _LIFT else _number(field, text)
    try:
        return KeyLimits.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(f"no such limits can be set: {faults(error)}; `none` lifts one") from None


def _number(field: str, text: str) -> int | str:
    return int(text) if field not in {"budget_usd_per_month", "priority"} and text.isdecimal() else text


def _said(limits: KeyLimits) -> str:
    """Limits in a table's cell."""
    parts = [
        f"{option.removeprefix('--')} {getattr(limits, field)}"
        for option, field, _ in _LIMITS
        if getattr(limits, field) is not None
    ]
    if limits.priority != "normal":
        parts.append(limits.priority)
    return ", ".join(parts) or "none"


def _shown(key: ApiKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"digest", "old_digest", "owner_limits"})


@click.group()
def key() -> None:
    """Make, limit, rotate, list and revoke API keys for the gateway."""


@key.command("new")
@click.option("--owner", required=True, help="Whose key it is.")
@click.option("--model", "models", multiple=True, help="A model it may ask; every model when not given.")
@click.option("--pin", is_flag=True, help="It may ask for MODEL@VERSION.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(get_args(Scope)),
    help="An endpoint it opens; every one when not given.",
)
@_limit_options
@by_user_option
@may_reason_option
@click.option("--days", type=float, help="It expires after so many days.")
@json_option
def key_new(
    owner: str,
    models: tuple[str, ...],
    pin: bool,
    scopes: tuple[Scope, ...],
    by: str,
    reason: str | None,
    days: float | None,
    as_json: bool,
    **given: str | None,
) -> None:
    """Make a key; the secret is printed once and not kept."""
    limits = _changed(KeyLimits(), given)
    with Registry.open(begin=True) as registry:
        secret, made = registry.keys.new(
            owner,
            by=by,
            models=models,
            may_pin=pin,
            scopes=scopes,
            ttl_s=days * 86_400 if days is not None else None,
            limits=limits,
            reason=reason,
        )
        click.echo(f"written to {registry.database.shown}: gateways on that database take it within 2 s", err=True)
        for model in models:
            _warn_of_a_stranger(registry, model)
        emit({"id": made.id, "secret": secret, "owner": made.owner}, as_json, secret)


def _warn_of_a_stranger(registry: Registry, model: str) -> None:
    """A key may be made before its model, so a name that nothing has yet is no error; a misspelt one is told here."""
    try:
        registry.check_model(model)
    except (NotFound, Unavailable) as error:
        click.echo(f"warning: {error}; the key is made all the same", err=True)


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
                " ".join(k.scopes) or "all",
                _said(k.limits),
                f"{k.created_at:%Y-%m-%d}",
                "yes" if k.usable(now) else "no",
            ]
            for k in found
        ]
        headers = ["ID", "OWNER", "MODELS", "MAY PIN", "SCOPES", "LIMITS", "MADE", "USABLE"]
        emit([_shown(k) for k in found], as_json, table(headers, rows))


@key.command("limit")
@click.argument("key_id")
@_limit_options
@by_user_option
@may_reason_option
@json_option
def key_limit(key_id: str, by: str, reason: str | None, as_json: bool, **given: str | None) -> None:
    """Change a key's limits, `none` lifts one; the others stay. Gateways follow within 2 s."""
    _require_some(given)
    with Registry.open() as registry:
        changed = registry.keys.limit(key_id, lambda limits: _changed(limits, given), by=by, reason=reason)
        emit(_shown(changed), as_json, f"{key_id}: {_said(changed.limits)}")


def _require_some(given: dict[str, str | None]) -> None:
    if all(text is None for text in given.values()):
        raise InvalidInput("name what to change, for example --rpm 60, or --rpm none to lift it")


@key.command("owner")
@click.argument("owner")
@_owner_options
@by_user_option
@may_reason_option
@json_option
def key_owner(owner: str, by: str, reason: str | None, as_json: bool, **given: str | None) -> None:
    """Limit what all keys of an owner may take together; `none` lifts one. Gateways follow within 2 s."""
    _require_some(given)
    with Registry.open() as registry:
        changed = registry.owners.limit(owner, lambda limits: _changed(limits, given), by=by, reason=reason)
        emit(changed, as_json, f"{changed.name}: {_said(changed.limits)}")
        if not any(made.owner == changed.name for made in registry.keys.all()):
            click.echo(f"warning: no key is {changed.name}'s yet; `tuneloop key list` shows the owners", err=True)


@key.command("owners")
@json_option
def key_owners(as_json: bool) -> None:
    """List the limits of owners."""
    with Registry.open() as registry:
        found = registry.owners.all()
        tell_unreadable(found.unreadable)
        rows = [[one.name, _said(one.limits), f"{one.changed_at:%Y-%m-%d}"] for one in found]
        emit(list(found), as_json, table(["OWNER", "LIMITS TOGETHER", "CHANGED"], rows))


@key.command("rotate")
@click.argument("key_id")
@click.option("--grace-days", type=float, default=1.0, show_default=True, help="The old secret opens for so long.")
@by_user_option
@may_reason_option
@json_option
def key_rotate(key_id: str, grace_days: float, by: str, reason: str | None, as_json: bool) -> None:
    """Give a key a new secret, printed once; models, limits and what was used stay."""
    with Registry.open() as registry:
        secret, key = registry.keys.rotate(key_id, by=by, grace_s=grace_days * 86_400, reason=reason)
        until = key.old_until.isoformat() if key.old_until else None
        emit({"id": key_id, "secret": secret, "old_until": until}, as_json, secret)


@key.command("usage")
@click.argument("key_id", required=False)
@click.option("--month", type=click.DateTime(["%Y-%m"]), help="YYYY-MM, of UTC.  [default: this month]")
@json_option
def key_usage(key_id: str | None, month: datetime | None, as_json: bool) -> None:
    """Show what keys used in a month, by model, as far as it is on record."""
    with Registry.open() as registry:
        at = registry.clock() if month is None else month.replace(tzinfo=registry.clock().tzinfo)
        found = registry.usage.month(at, keys=None if key_id is None else [key_id])
        tell_unreadable(found.unreadable)
        owners = {k.id: k.owner for k in registry.keys.all()}
        rows = [
            [u.api_key, owners.get(u.api_key), u.model, u.requests, u.prompt_tokens, u.completion_tokens] for u in found
        ]
        headers = ["KEY", "OWNER", "MODEL", "REQUESTS", "PROMPT TOKENS", "ANSWER TOKENS"]
        emit(list(found), as_json, table(headers, rows))


@key.command("revoke")
@click.argument("key_id")
@by_user_option
@may_reason_option
def key_revoke(key_id: str, by: str, reason: str | None) -> None:
    """Make a key unusable; gateways follow within 2 s."""
    with Registry.open() as registry:
        registry.keys.revoke(key_id, by=by, reason=reason)
    click.echo(f"{key_id} is revoked")
