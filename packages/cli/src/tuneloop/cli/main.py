"""`tuneloop <verb>`: collects the verbs of every installed package and turns their errors into exit codes.

A package offers verbs through the entry point group `tuneloop.verbs`, a tuple of click commands. Any error with an
`exit_code` of its own is shown in one paragraph; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import entry_points
from typing import TextIO

import click

# The order in which people meet the verbs.
ORDER = [
    *("demo", "up", "status", "trace", "requests", "feedback", "report", "alerts", "alert"),
    *("models", "versions", "show", "card", "compare", "register", "gate", "approve", "sign"),
    *("promote", "rollback", "route", "rollout", "experiment", "retraining"),
    *("recipe", "data", "plan", "train", "export", "base", "drift", "bias", "guard"),
    *("key", "token", "config", "engine", "gateway", "monitor", "worker", "controller", "api"),
    *("audit", "forget", "retention", "db"),
]


class FrontDoor(click.Group):
    """Verbs in the order people meet them; verbs this list does not know follow by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs' names, in the order of `--help`."""
        known = {name: place for place, name in enumerate(ORDER)}
        return sorted(super().list_commands(ctx), key=lambda name: (known.get(name, len(ORDER)), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every verb with the whole first sentence of its help; click would cut it short."""
        with formatter.section("Verbs"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(1_000)) for name in self.list_commands(ctx)]
            )


@click.group(cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tuneloop-cli", prog_name="tuneloop")
def tuneloop() -> None:
    """Keep fine-tuned language models good in production: train, register, serve, watch, train again."""


def build() -> click.Group:
    """The command group with the verbs of every installed package."""
    for point in sorted(entry_points(group="tuneloop.verbs"), key=lambda point: point.name):
        for verb in point.load():
            tuneloop.add_command(verb)
    return tuneloop


@contextmanager
def _stdout_for_answers() -> Iterator[TextIO]:
    """Standard output for verbs' answers alone: what libraries and child processes print meanwhile goes to stderr."""
    stdout = sys.stdout.fileno()
    with os.fdopen(os.dup(stdout), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), stdout)
        try:
            yield answers
        finally:
            sys.stdout.flush()
            os.dup2(answers.fileno(), stdout)


def _only_text(arguments: Sequence[str]) -> None:
    """Names and reasons are kept for ever in databases and JSON, which hold text alone.

    Raises:
        UsageError: an argument is not UTF-8.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="backslashreplace").decode()
            raise click.UsageError(f"{shown} is not UTF-8 text; write it as such, or rename the file") from None


def main() -> None:
    """The console script: 0 done, 1 failed, 2 wrong usage or input, 3 refused by a gate or policy."""
    try:
        _only_text(sys.argv[1:])
        with _stdout_for_answers() if "--json" in sys.argv[1:] else nullcontext() as answers:
            code = build()(standalone_mode=False, obj=answers)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        exit_code = getattr(error, "exit_code", None)
        if not isinstance(exit_code, int):
            raise
        click.echo(f"tuneloop: {error}", err=True)
        sys.exit(exit_code)
    sys.exit(code if isinstance(code, int) else 0)
