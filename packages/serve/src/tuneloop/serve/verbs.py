"""The verbs of this package, for the front door."""

from __future__ import annotations

import click

from tuneloop.serve.engine.verb import engine
from tuneloop.serve.gateway.verb import gateway
from tuneloop.serve.guards.verb import guard

VERBS: tuple[click.Command, ...] = (gateway, engine, guard)
