"""Times as people type them: `90s`, `30m`, `2h`, `3d`."""

from __future__ import annotations

import re

import click

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(_context: click.Context, parameter: click.Parameter, value: str) -> float:
    """A duration in seconds, as a click callback."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", value.strip())
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{value!r} is no time; write 90s, 30m, 2h or 3d", param=parameter)
    return float(int(found[1]) * _SECONDS[found[2]])
