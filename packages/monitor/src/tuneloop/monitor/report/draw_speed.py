"""Pictures of speed and of what guards found, over time; a gap is a time in which nothing was there to measure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from tuneloop.monitor.report.canvas import ALARM, INK, PALETTE, canvas, span, time_axis
from tuneloop.monitor.report.figures import Figures, HeatMap, Middle
from tuneloop.monitor.report.over_time import FOUND

_SCHEME = "YlGnBu"
_MOST_STEPS = 8  # of the colour scale
_SHORTEST_ROW_MS = 1_000.0  # from here on bounds are told in seconds


def heat(figures: Figures) -> Figure | None:
    """Answers by when they came and how long they took."""
    held = figures.heat
    if held is None:
        return None
    figure, (axes,) = canvas(1, 4.2)
    counts = np.array(held.answers).T
    empty = counts.sum(axis=0) == 0
    steps = _steps(int(counts.max()))
    colours = colormaps[_SCHEME].resampled(len(steps) + 1)(range(1, len(steps) + 1))
    shown = np.ma.masked_where(counts == 0, counts)
    edges = _edges(held)
    rows = range(len(held.bounds_ms))
    mesh = axes.pcolormesh(
        edges,
        list(rows),
        shown,
        cmap=ListedColormap(colours),
        norm=BoundaryNorm([*steps, counts.max() + 1], len(steps)),
        edgecolors="white",
        linewidth=0.4,
    )
    for place in np.flatnonzero(empty):
        axes.axvspan(edges[place], edges[place + 1], facecolor="#f1f2f4", hatch="////", edgecolor="#c9cdd3", lw=0)
    axes.set_yticks(list(rows), [_time(bound) for bound in held.bounds_ms])
    axes.set_ylabel("time of an answer")
    axes.grid(visible=False)
    axes.set_xlim(edges[0], edges[-1])
    time_axis(axes)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, ticks=steps, spacing="uniform")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    bar.set_label(f"answers in {span(held.span_s)}, from … on")
    keys = [Patch(facecolor="white", edgecolor="#c9cdd3", label="0 answers")]
    if empty.any():
        keys.append(Patch(facecolor="#f1f2f4", edgecolor="#c9cdd3", hatch="////", label="nothing was answered"))
    axes.legend(handles=keys, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=9)
    return figure


def speed(figures: Figures) -> Figure | None:
    """Tokens a second, time between tokens, time in the queue."""
    held = figures.speed
    if held is None:
        return None
    rows: list[tuple[str, str, Sequence[Middle | None] | None]] = [("Tokens written", "tokens a second", None)]
    rows += [
        (title, "milliseconds", values)
        for title, values in (
            ("Between tokens of a stream", held.between_tokens_ms),
            ("In the gateway's queue", held.queue_ms),
        )
        if any(values)
    ]
    figure, drawn = canvas(len(rows), 2.3 * len(rows) + 0.4)
    middle = [float(date2num(at)) + held.span_s / 172_800 for at in held.starts]
    for axes, (title, unit, values) in zip(drawn, rows, strict=True):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_ylabel(unit)
        if values is None:
            axes.plot(middle, held.tokens_per_s, color=PALETTE[0], drawstyle="steps-mid", label="all answers")
        else:
            _middles(axes, middle, values)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    time_axis(drawn[-1])
    return figure


def guards(figures: Figures) -> Figure | None:
    """Shares of requests in which guards found something."""
    held = figures.guards
    if held is None:
        return None
    figure, (axes,) = canvas(1, 3.0)
    middle = [float(date2num(at)) + held.span_s / 172_800 for at in held.starts]
    looks = ((ALARM, "-", 3.0), (INK, ":", 1.5), (PALETTE[0], "-", 1.5))  # what is stopped is mostly an attack
    for (name, counts), (colour, line, width) in zip(held.found.items(), looks, strict=True):
        shares = [100 * n / of if of else math.nan for n, of in zip(counts, held.requests, strict=True)]
        axes.plot(middle, shares, marker="o", ms=3, ls=line, lw=width, color=colour, label=name)
    axes.set_ylabel(f"% of the requests\nof {span(held.span_s)}")
    axes.set_ylim(bottom=0)
    time_axis(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(FOUND), fontsize=9)
    return figure


def _middles(axes: Axes, at: Sequence[float], values: Sequence[Middle | None]) -> None:
    axes.plot(at, [m.p50 if m else math.nan for m in values], "o-", ms=3, color=PALETTE[0], label="median")
    axes.plot(at, [m.p95 if m else math.nan for m in values], "o-", ms=3, color=ALARM, label="95th percentile")


def _edges(held: HeatMap) -> list[float]:
    starts = [float(date2num(at)) for at in held.starts]
    return [*starts, starts[-1] + held.span_s / 86_400]


def _steps(most: int) -> list[int]:
    """Where the colours of a scale from 1 to `most` begin: few, round, and the finer the fewer answers there are."""
    round_ones = [lead * 10**power for power in range(9) for lead in (1, 2, 5) if lead * 10**power <= most]
    return round_ones[:: -(-len(round_ones) // _MOST_STEPS)]


def _time(ms: float) -> str:
    return f"{ms:g} ms" if ms < _SHORTEST_ROW_MS else f"{ms / 1000:g} s"
