"""`python -m tuneloop.cli`: the front door without the console script."""

from __future__ import annotations

from tuneloop.cli.main import main

main()
