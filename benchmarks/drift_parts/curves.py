"""The curves that docs/drift.md shows, each from a figure of drift.json: nothing is measured here, nothing made up.

Pictures carry the digest of the figures they show, so that a test can tell one that is older than its figures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
GREY, INK = "#8a8f98", "#23272f"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tuneloop",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write `drift_NAME.svg` for each; those whose part was not measured are left as they are."""
    return [_drawn(name, results[part], folder) for name, (part, _) in PICTURES.items() if part in results]


def digest(figures: dict[str, Any]) -> str:
    """Of the part of the results that a picture is of."""
    return hashlib.sha256(json.dumps(figures, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _drawn(name: str, figures: dict[str, Any], folder: Path) -> Path:
    path = folder / f"drift_{name}.svg"
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        PICTURES[name][1](figure.subplots(), figures)
        figure.savefig(path, metadata={"Date": None, "Description": f"figures {digest(figures)}"})
    path.write_text("\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()) + "\n")
    return path


def _power(axes: Axes, power: dict[str, Any]) -> None:
    """Power against the share of the window that is of the neighbouring topic."""
    for number, pair in enumerate(power["pairs"]):
        label = "one pair of topics, the looks as they come" if number == 0 else None
        axes.plot(*_points(pair["seen"]), color=COLOURS[0], alpha=0.22, lw=1, label=label)
    for (name, shares), colour in zip(power["shares"].items(), COLOURS, strict=False):
        axes.plot(*_points(shares), "o-", ms=4, lw=2, color=colour, label=f"{name}, all pairs")
    axes.axhline(
        100 * power["alpha"], color=INK, ls=":", lw=1, label=f"false alarms allowed: {100 * power['alpha']:g} %"
    )
    axes.set(
        xlabel=f"% of a window of {power['window']} texts that are of the nearest other topic",
        ylabel="% of windows that alarm",
        xlim=(-1, 101),
        ylim=(-2, 103),
    )
    axes.legend(loc="lower right", fontsize=9)


def _delay(axes: Axes, scalars: dict[str, Any]) -> None:
    """Delay against run length, a colour for each shift."""
    shifts = sorted({row["shift"] for row in scalars["delays"]})
    for shift, colour in zip(shifts, COLOURS, strict=False):
        rows = sorted((row for row in scalars["delays"] if row["shift"] == shift), key=lambda row: row["run_length"])
        lengths = [row["run_length"] for row in rows]
        tuned, error = [row["tuned"] for row in rows], [2 * row["standard_error"] for row in rows]
        axes.errorbar(lengths, tuned, error, fmt="o-", ms=4, capsize=3, color=colour, label=f"shift of {shift:g} σ")
        axes.plot(lengths, [row["untuned"] for row in rows], color=colour, lw=1.2, ls=":")
        axes.plot(lengths, [row["optimum"] for row in rows], color=colour, lw=1.2, ls="--")
    for style, label in (("-", "made for the shift (± 2 standard errors)"), (":", "as it comes"), ("--", "optimum")):
        axes.plot([], [], color=INK, ls=style, lw=1.2, label=label)
    axes.set(xscale="log", yscale="log", xlabel="γ: values between two false alarms", ylabel="values until the alarm")
    _plain(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def _run_length(axes: Axes, scalars: dict[str, Any]) -> None:
    """Achieved run length in parts of the one that was asked for."""
    rows = scalars["run_lengths"]
    streams = list(dict.fromkeys(row["stream"] for row in rows))
    asked = sorted({row["asked"] for row in rows})
    for number, (length, colour) in enumerate(zip(asked, COLOURS, strict=False)):
        held = [row for row in rows if row["asked"] == length]
        axes.errorbar(
            [row["mean"] / length for row in held],
            [streams.index(row["stream"]) + 0.12 * (2 * number - len(asked) + 1) for row in held],
            xerr=[2 * row["standard_error"] / length for row in held],
            fmt="o",
            ms=5,
            capsize=3,
            color=colour,
            label=f"γ = {length:,}",
        )
    axes.axvline(1.0, color=INK, lw=1)
    axes.axvspan(0.8, 1.2, color=GREY, alpha=0.15, lw=0, label="± 20 %")
    axes.set_yticks(range(len(streams)), [name.replace(" (", "\n(").replace(", ", ",\n") for name in streams])
    axes.set(
        xlabel="mean run length, in parts of the one that was set (± 2 standard errors)",
        ylim=(-0.6, len(streams) - 0.4),
    )
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


PICTURES: dict[str, tuple[str, Callable[[Axes, dict[str, Any]], None]]] = {
    "power": ("power", _power),
    "delay": ("scalars", _delay),
    "run_length": ("scalars", _run_length),
}


def _points(seen: dict[str, float]) -> tuple[list[float], list[float]]:
    return [float(share.rstrip("%")) for share in seen], [100 * value for value in seen.values()]


def _plain(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
