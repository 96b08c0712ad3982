"""`tuneloop up`: engine, gateway, monitor, worker, controller and control plane on one machine, until Ctrl-C.

A process that ends soon after its start stops everything with its last lines (a taken port, a wrong setting); one that
dies later is started again, with a pause that doubles up to half a minute.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from tuneloop.cli.processes import Ended, Processes, tuneloop_command
from tuneloop.cli.sections import sections

STARTING_S = 15.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


def run(base: Path, logs: Path) -> None:
    """Run every process until SIGINT or SIGTERM; exits 1 when one cannot start.

    Raises:
        click.ClickException: there is no base in that folder, or a port is taken; nothing was started.
    """
    known = sections()
    if faults := [*_no_base(base), *_taken_ports(known)]:
        raise click.ClickException("\n".join(faults))
    commands = {
        "engine": tuneloop_command("engine", "--base", str(base)),
        "gateway": tuneloop_command("gateway"),
        "monitor": tuneloop_command("monitor"),
        "worker": tuneloop_command("worker"),
        "api": tuneloop_command("api"),
        "controller": tuneloop_command("controller"),
    }
    patience_s = {name: known[name].load().stop_timeout_s for name in commands if name in known}
    failure = supervise(commands, logs, patience_s=patience_s)
    if failure is not None:
        click.echo(f"tuneloop up: {failure.name} could not start (exit code {failure.code}):", err=True)
        click.echo(failure.tail, err=True)
        sys.exit(1)
    click.echo("all stopped")


def _no_base(base: Path) -> Iterator[str]:
    if not (base / "config.json").is_file():
        yield f"--base {base} holds no config.json, so no base model; `tuneloop base RECIPE` makes one and prints where"


def _taken_ports(known: Mapping[str, Any]) -> Iterator[str]:
    """Found out before a minute of loading, all at once."""
    for name in ("engine", "gateway", "api"):
        if name not in known:
            continue
        section = known[name].load()
        family = socket.AF_INET6 if ":" in section.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((section.host, section.port))
            except OSError as error:
                yield (
                    f"{name} cannot listen on {section.host}:{section.port}: {error.strerror or error}; stop what "
                    f"listens there, or set {section.prefix()}PORT (port under [{name}] in tuneloop.toml)"
                )


def supervise(
    commands: Mapping[str, Sequence[str]],
    logs: Path,
    *,
    patience_s: Mapping[str, float] = MappingProxyType({}),
    starting_s: float = STARTING_S,
) -> Ended | None:
    """Keep the commands running until SIGINT or SIGTERM, then stop them; returns the one that could not start, if any.

    Only a process that never ran for `starting_s` could not start. One that did is started again however often it
    ends, with a pause that doubles until it has run for `starting_s` again. `patience_s` says how long each may take to
    end, where it is not the usual time.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _signal, _frame: stopping.set())
    processes = Processes(logs, {}, click.echo)
    due = dict.fromkeys(commands, 0.0)  # name → when to start it
    started: dict[str, float] = {}
    pause: dict[str, float] = {}  # name → before the next start; only of those that once ran
    try:
        while not stopping.is_set():
            now = time.monotonic()
            for name in [name for name, at in due.items() if at <= now]:
                del due[name]
                processes.start(name, commands[name], echo=True, stop_timeout_s=patience_s.get(name))
                started[name] = now
            for gone in processes.ended():
                ran = now - started[gone.name] >= starting_s
                if not ran and gone.name not in pause:
                    return gone
                wait_s = FIRST_PAUSE_S if ran else pause[gone.name]
                click.echo(f"{gone.name} ended with {gone.code}; starting it again in {wait_s:.0f} s", err=True)
                due[gone.name] = now + wait_s
                pause[gone.name] = min(2 * wait_s, LONGEST_PAUSE_S)
            stopping.wait(0.2)
        return None
    finally:
        processes.stop_all()
