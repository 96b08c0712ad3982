"""Pictures of a run as PNG files: how the loss went, before against after, how long the rows were.

They are kept with the run in MLflow, not in the published folder: an engine fetches that folder and has no use for
them, and nothing but safetensors and text may be in it (an SVG could carry script). Drawn off-screen on figures of
their own, without pyplot's global state. Cost: about a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.train.evaluation.compare import Compared, Comparison

FOLDER = "pictures"
LOSS, MEASURES, LENGTHS = "loss.png", "before_after.png", "token_lengths.png"
_BEFORE, _AFTER, _REST = "#9a9a9a", "#1f6fb4", "#d98324"
_DPI = 120
Points = Sequence[tuple[int, float]]


def draw_loss(path: Path, training: Points, validation: Points) -> None:
    """Training loss by step, and validation loss where it was measured."""
    figure, axes = _canvas(7.0, 3.6)
    axes.plot(*zip(*training, strict=True), color=_AFTER, linewidth=1.5, label="training, one batch each")
    if validation:
        axes.plot(*zip(*validation, strict=True), color=_REST, marker="o", linewidth=1.5, label="validation")
    axes.set(xlabel="step", ylabel="loss, nats per token", title="Loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=_DPI)


def draw_before_after(path: Path, comparisons: Sequence[Comparison]) -> None:
    """One panel a measure, one pair of points a set, with their 95 % intervals where there are any."""
    found: dict[str, list[Compared]] = {}
    for compared in (compared for comparison in comparisons for compared in comparison.whole):
        found.setdefault(compared.measure, []).append(compared)
    tallest = max(map(len, found.values()))
    figure, panels = _canvas(7.0, (0.75 + 0.42 * tallest) * len(found) + 0.3, rows=len(found))
    for axes, (measure, sets) in zip(panels, found.items(), strict=True):
        for place, compared in enumerate(reversed(sets)):
            for spread, color, offset in ((compared.before, _BEFORE, 0.13), (compared.after, _AFTER, -0.13)):
                if spread.interval is not None:
                    ends = [spread.interval.low, spread.interval.high]
                    axes.plot(ends, [place + offset] * 2, color=color, linewidth=2)
                axes.plot([spread.estimate], [place + offset], "o", color=color, markersize=6, clip_on=False)
        if axes.dataLim.xmin >= 0 > axes.get_xlim()[0]:
            axes.set_xlim(left=0)  # no score below zero, no axis below it
        names = [f"{compared.set_name} (n = {compared.rows})" for compared in reversed(sets)]
        axes.set_yticks(range(len(sets)), names)
        axes.set_ylim(-0.5, len(sets) - 0.5)
        axes.grid(axis="x", alpha=0.25)
        better = "lower is better" if measure == "perplexity" else "higher is better"
        axes.set_title(f"{measure} ({better})", loc="left", fontsize=10)
    handles = [_dot(panels[0], color, label) for color, label in ((_BEFORE, "before"), (_AFTER, "after training"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=_DPI)


def draw_token_lengths(path: Path, lengths: Mapping[str, Sequence[int]], limit: int | None) -> None:
    """How many tokens the rows have, a line a set, with `objective.max_length` where it is near."""
    figure, axes = _canvas(7.0, 3.6)
    longest = max(max(values) for values in lengths.values())
    bins = [longest * i / 30 for i in range(31)] if longest > 30 else range(longest + 2)
    for (name, values), color in zip(lengths.items(), _colors(len(lengths)), strict=True):
        shares = [1 / len(values)] * len(values)
        axes.hist(
            values,
            bins=bins,
            weights=shares,
            histtype="step",
            linewidth=1.6,
            color=color,
            label=f"{name} (n = {len(values)})",
        )
    if limit is not None and limit <= 1.25 * longest:
        axes.axvline(limit, color="black", linestyle=":", linewidth=1)
        axes.annotate(
            f"max_length {limit}",
            (limit, 0.98),
            xycoords=("data", "axes fraction"),
            rotation=90,
            ha="right",
            va="top",
            fontsize=8,
        )
    axes.set(xlabel="tokens of a row, after cutting", ylabel="share of rows", title="Row lengths")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=_DPI)


def _canvas(width: float, height: float, rows: int | None = None) -> tuple[Any, Any]:
    """A figure with its own off-screen canvas, and its axes; with `rows`, one below the other, as a list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (half a second, once a run)
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(figure)
    if rows is None:
        return figure, figure.add_subplot()
    return figure, list(figure.subplots(rows, 1, squeeze=False)[:, 0])


def _dot(axes: Any, color: str, label: str) -> Any:
    return axes.plot([], [], "o-", color=color, linewidth=2, markersize=6, label=label)[0]


def _colors(count: int) -> list[Any]:
    from matplotlib import colormaps  # noqa: PLC0415

    return [colormaps["tab10"](index % 10) for index in range(count)]
