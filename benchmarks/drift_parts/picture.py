"""One picture: what is seen of a mix, how soon changes are seen beside Evidently, CUSUM delays beside the optimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

OURS, OTHER, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8a8f98"


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the three panels."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    _mixes(left, results["power"])
    _changes(middle, results["peers"])
    _delays(right, results["scalars"])
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mixes(axes: Axes, power: dict[str, Any]) -> None:
    colours = (OURS, GREEN, OTHER, GREY)
    for pair in power["pairs"]:
        axes.plot(list(pair["seen"]), list(pair["seen"].values()), color=OURS, alpha=0.15, lw=1)
    for (name, shares), colour in zip(power["shares"].items(), colours, strict=False):
        axes.plot(list(shares), list(shares.values()), marker="o", color=colour, label=name, lw=2)
    axes.axhline(power["alpha"], color=GREY, ls=":", lw=1)
    axes.set(title="Windows that alarmed (thin: single pairs)", ylabel="share of windows", ylim=(-0.02, 1.05))
    axes.set_xlabel(f"of {power['window']} texts, how many are of the nearest other topic")
    axes.legend(frameon=False)


def _changes(axes: Axes, peers: dict[str, Any]) -> None:
    width = 0.38
    for place, (name, table) in enumerate(peers["detectors"].items()):
        kinds = table["kinds"]
        label = f"{name} (false alarms: {table['false_alarms']} in {table['usual_windows']} windows)"
        bars = axes.bar(
            [x + place * width for x in range(len(kinds))],
            [row["windows_until_seen"] for row in kinds.values()],
            width,
            color=(OURS, OTHER)[place],
            label=label,
        )
        axes.bar_label(bars, [f"{row['seen']}/{row['streams']}" for row in kinds.values()], fontsize=8)
        axes.set_xticks([x + width / 2 for x in range(len(kinds))], list(kinds), rotation=12)
    axes.set(title="Windows until a change is seen (above: streams)", ylabel="windows; 7: never in six", ylim=(0, 9.5))
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _delays(axes: Axes, scalars: dict[str, Any]) -> None:
    for run_length, colour in zip((1_000, 10_000, 100_000), (OURS, OTHER, GREEN), strict=True):
        rows = [row for row in scalars["delays"] if row["run_length"] == run_length]
        shifts = [row["shift"] for row in rows]
        axes.plot(shifts, [row["optimum"] for row in rows], color=colour, lw=1, ls="--")
        axes.plot(shifts, [row["tuned"] for row in rows], color=colour, marker="o", label=f"γ = {run_length:,}")
    axes.set(xscale="log", yscale="log", title="CUSUM: delay of a shift (dashed: exact optimum)")
    axes.set_xticks([0.25, 0.5, 1, 2], ["0.25", "0.5", "1", "2"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="shift of the mean (standard deviations)", ylabel="values until the alarm")
    axes.legend(frameon=False)
