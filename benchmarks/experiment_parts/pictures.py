"""The pictures: one for each question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiment_parts.bandit import Regret
from experiment_parts.false_positives import FalsePositives
from experiment_parts.planned import PlannedLooks
from experiment_parts.power import Found
from experiment_parts.simulation import ALPHA
from experiment_parts.split import SPLIT_UNITS, SPLITS, split_power

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")
INK = "#23272f"
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "font.size": 9,
}


@contextmanager
def drawn(folder: Path, name: str, height: float) -> Iterator[Figure]:
    """A figure that is kept as `experiment_validity_NAME.png`."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, height), layout="constrained", dpi=110)
        yield figure
        figure.savefig(folder / f"experiment_validity_{name}.png")


def draw_false_positives(rows: Sequence[FalsePositives], folder: Path) -> None:
    """How many A/A tests had claimed a difference, by the looks so far."""
    with drawn(folder, "false_positives", 3.6) as figure:
        axes = figure.subplots()
        for row, colour in zip(rows, COLOURS, strict=True):
            place = np.linspace(0, 1, len(row.naive_curve))
            axes.plot(place, row.naive_curve, color=colour, lw=1, ls="--")
            axes.plot(place, row.sequence_curve, color=colour, lw=1.8, label=row.metric)
        axes.axhline(ALPHA, color=INK, lw=1)
        axes.annotate("5 %", (0.0, ALPHA), xytext=(2, 3), textcoords="offset points")
        axes.set(xlabel="looks so far (1: all)", ylabel="A/A tests that ever\nclaimed a difference", ylim=(0, None))
        axes.set_title("solid: always-valid sequence; dashed: a t-test at each look", loc="left", fontsize=9)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def draw_planned(rows: Sequence[PlannedLooks], folder: Path) -> None:
    """The share of A/A tests with planned looks that claimed a difference, beside the textbook's."""
    with drawn(folder, "planned", 3.4) as figure:
        axes = figure.subplots()
        places, wrong = np.arange(len(rows)), [100 * row.wrong for row in rows]
        reach = [[100 * (row.wrong - row.low) for row in rows], [100 * (row.high - row.wrong) for row in rows]]
        axes.axvline(100 * ALPHA, color=INK, lw=1)
        axes.errorbar(wrong, places, xerr=reach, fmt="o", color=COLOURS[0], capsize=3, label="five planned looks, 95 %")
        axes.plot([100 * row.textbook for row in rows], places, "x", color=COLOURS[5], label="the textbook's test")
        axes.set_yticks(places, [f"{row.metric}, arms {row.arms}" for row in rows])
        axes.invert_yaxis()
        axes.set(xlabel="A/A tests that claimed a difference, %", xlim=(0, None))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def draw_power(found: Sequence[Found], folder: Path) -> None:
    """What is found, and how soon, by the true effect."""
    with drawn(folder, "power", 3.2) as figure:
        left, right = figure.subplots(1, 2)
        for method, colour in zip(dict.fromkeys(row.method for row in found), COLOURS, strict=False):
            own = [row for row in found if row.method == method]
            effects = [row.effect for row in own]
            left.plot(effects, [row.power for row in own], "o-", color=colour, label=method)
            right.plot(effects, [row.mean_units for row in own], "o-", color=colour)
        where = "true effect, in parts of the declared one"
        left.set(xlabel=where, ylabel="found", ylim=(0, 1.03))
        right.set(xlabel=where, ylabel="units until it ended, mean", ylim=(0, None))
        left.legend(loc="lower right")


def draw_bandit(regret: Sequence[Regret], folder: Path) -> None:
    """What is lost on the way, by the units so far."""
    with drawn(folder, "bandit", 3.2) as figure:
        axes = figure.subplots()
        for one, colour in zip(regret, COLOURS, strict=False):
            axes.plot(np.arange(1, len(one.curve) + 1) * 500, one.curve, color=colour, label=one.shares)
        axes.set(xlabel="units", ylabel="successes lost to the best arm", ylim=(0, None))
        axes.legend()


def draw_split(mismatch: dict[str, float], folder: Path) -> None:
    """How often the split check hides results, simulated on the computed curve."""
    with drawn(folder, "split", 3.2) as figure:
        axes = figure.subplots()
        off = np.linspace(0, 0.012, 121)
        for units, colour in ((10_000, "#56B4E9"), (SPLIT_UNITS, "#0072B2"), (1_000_000, "#009E73")):
            curve = [split_power(0.5 + float(points), units) for points in off]
            axes.plot(100 * off, curve, color=colour, lw=1.8, label=f"{units:,} units, computed")
        seen = [(100 * (SPLITS[name] - 0.5), share) for name, share in mismatch.items()]
        label = f"{SPLIT_UNITS:,} units, simulated"
        axes.plot(*zip(*seen, strict=True), "o", color=COLOURS[5], label=label, clip_on=False)
        axes.set(xlabel="points by which one arm's share is off 50 %", ylabel="results hidden")
        axes.set(ylim=(0, 1.03), xlim=(0, None))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
