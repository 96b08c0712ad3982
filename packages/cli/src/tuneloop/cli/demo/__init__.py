"""`tuneloop demo`: the whole loop on one machine, on top of public verbs and the public API only."""

from __future__ import annotations

from tuneloop.cli.demo.loop import run

__all__ = ["run"]
