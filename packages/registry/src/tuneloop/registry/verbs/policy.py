"""What verbs that show or set a model's policy share: its options, reading it from YAML, printing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import yaml
from pydantic import ValidationError

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.facade import Registry
from tuneloop.registry.files import cannot_read, read_text
from tuneloop.registry.nouns import Noun
from tuneloop.registry.plain_yaml import PlainYaml
from tuneloop.registry.policies import PolicyT
from tuneloop.registry.printing import emit, who

_WIDTH = 10_000  # a value stays on its line


def policy_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--set FILE --by --reason`: without a file the policy in force is shown."""
    options = (
        click.option(
            "--set", "path", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with the new policy."
        ),
        click.option("--by", callback=who, help="Who does it."),
        click.option("--reason", help="Why; kept for ever."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def set_policy(
    registry: Registry,
    model: str,
    kind: type[PolicyT],
    path: Path,
    by: str | None,
    reason: str | None,
    check: Callable[[PolicyT], None] = lambda _: None,
) -> None:
    """Append what the file says as the policy's next revision.

    Raises:
        InvalidInput: nobody or no reason is named, or the file holds no such policy; every error at once.
    """
    if not (by or "").strip() or not (reason or "").strip():
        raise InvalidInput("setting a policy needs --by and --reason")
    wanted = read_policy(path, kind)
    check(wanted)
    registry.policies.set(model, wanted, by=by or "", reason=reason or "")


def show_policy(registry: Registry, model: str, kind: type[PolicyT], as_json: bool) -> None:
    """Print the policy in force, as the YAML that would set it."""
    print_policy(registry.policies.get(model, kind), as_json)


def print_policy(policy: Noun, as_json: bool) -> None:
    """Print a policy as the YAML that would set it."""
    text = yaml.safe_dump(
        policy.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=None, width=_WIDTH
    )
    emit(policy, as_json, text.rstrip("\n"))


def read_policy(path: Path, kind: type[PolicyT]) -> PolicyT:
    """The policy of a YAML file.

    Raises:
        InvalidInput: it cannot be read, or is no such policy; every error at once, each with its line.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error, "give --set a YAML file with the new policy") from None
    document = PlainYaml(str(path), text, "a policy: a mapping of keys (min_rows, …) to values")
    policy: PolicyT | None = None
    try:
        policy = kind.model_validate(document.values)
    except ValidationError as error:
        for one in error.errors():
            document.add(one, kind)
    if policy is None or document.errors:
        raise InvalidInput("\n".join(document.errors))
    return policy
