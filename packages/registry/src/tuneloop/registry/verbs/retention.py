"""`tuneloop retention`."""

from __future__ import annotations

from pathlib import Path

import click

from tuneloop.registry.deliveries.receivers import EVERY_MODEL
from tuneloop.registry.facade import Registry
from tuneloop.registry.printing import json_option
from tuneloop.registry.retention_needs import warnings_of
from tuneloop.registry.retention_policy import RetentionPolicy, current_retention
from tuneloop.registry.verbs.policy import policy_options, print_policy, set_policy


@click.command()
@click.argument("model", required=False)
@policy_options
@json_option
def retention(model: str | None, path: Path | None, by: str | None, reason: str | None, as_json: bool) -> None:
    """Show or set after how many days what a model was asked and answered goes: its texts, and the records.

    Without MODEL that of every model that has none of its own; where nothing is set, all is kept for ever. A controller
    deletes, once a day; what it took stands in the audit log. Days that are too few for the monitor are warned of.
    """
    subject = EVERY_MODEL if model is None else model
    with Registry.open() as registry:
        if model is not None:
            registry.check_model(model)
        if path is not None:
            set_policy(registry, subject, RetentionPolicy, path, by, reason)
            for warning in warnings_of(registry, subject):
                click.echo(f"warning: {warning}", err=True)
        print_policy(current_retention(registry.database).of(subject), as_json)
