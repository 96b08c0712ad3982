"""The page's pictures: the confidence sequence as units came; matplotlib without its global state, to inline SVG.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tuneloop.registry.experiments.declaration import Metric
from tuneloop.registry.experiments.report import Report, TreatmentResult
from tuneloop.registry.experiments.words import change, metric_name

BLUE, GREEN, ORANGE, GREY, INK = "#0072B2", "#009E73", "#D55E00", "#8a8f98", "#23272f"
_WIDTH = 9.6  # inches
_STYLE = {
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,
}


def pictures(report: Report) -> dict[str, str]:
    """Picture's name → SVG: `curve-VERSION` and `guardrails-VERSION`, for each treatment there is data for."""
    with mpl.rc_context(_STYLE):
        drawn = {
            f"{kind}-{treatment.version}": draw(report, treatment)
            for treatment in report.treatments
            for kind, draw in (("curve", _curve), ("guardrails", _guardrails))
        }
        return {name: _svg(name, figure) for name, figure in drawn.items() if figure is not None}


def _svg(name: str, figure: Figure) -> str:
    # Ids inside an SVG are hashed with this salt; with one salt for all, pictures on a page would share clip paths.
    with mpl.rc_context({"svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _curve(report: Report, treatment: TreatmentResult) -> Figure | None:
    """The difference and its interval over time; the picture is cut where the first looks know next to nothing."""
    curve, declared = treatment.curve, report.experiment.declaration
    if not curve:
        return None
    figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    times = date2num([point.at for point in curve])
    low, high = ([getattr(point.difference, side) for point in curve] for side in ("low", "high"))
    estimate = [point.difference.estimate for point in curve]
    effect = declared.primary.minimum_effect
    if declared.max_units is None:
        axes.fill_between(
            times, low, high, color=BLUE, alpha=0.18, lw=0, label=f"{declared.level * 100:.3g} % interval"
        )
        axes.plot(times, estimate, color=BLUE, lw=1.8, label="difference")
    else:
        reach = [
            [e - a for e, a in zip(estimate, low, strict=True)],
            [b - e for e, b in zip(estimate, high, strict=True)],
        ]
        axes.errorbar(times, estimate, reach, fmt="o", color=BLUE, capsize=5, lw=1.8, label="planned look")
    axes.axhline(0, color=INK, lw=1)
    for side in (-effect, effect):
        axes.axhline(side, color=GREY, lw=1, ls=(0, (4, 3)), label="least difference declared" if side > 0 else None)
    if (first := next((p for p in curve if p.difference.low > 0 or p.difference.high < 0), None)) is not None:
        axes.axvline(
            date2num(first.at), color=GREEN, lw=1.2, ls=(0, (1, 2)), label=f"0 left out, {first.units:,} units"
        )
    settled = curve[len(curve) // 5 :]
    reach_y = max(2 * effect, *(max(abs(p.difference.low), abs(p.difference.high)) for p in settled)) * 1.1
    axes.set_ylim(-reach_y, reach_y)
    _difference_axis(axes, declared.primary, treatment.version)
    assert report.experiment.started_at is not None
    axes.set_xlim(date2num(report.experiment.started_at), date2num(report.at))
    locator = AutoDateLocator(maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("UTC")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return figure


def _difference_axis(axes: Axes, metric: Metric, version: int) -> None:
    axes.set_ylabel(f"version {version} minus control,\n{metric_name(metric)}")
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda amount, _: change(metric, amount).replace(".0 points", " points") if amount else "0")
    )
    axes.set_title("below 0 is better" if metric.lower_is_better else "above 0 is better", loc="left", fontsize=10)


def _guardrails(_report: Report, treatment: TreatmentResult) -> Figure | None:
    """How much worse each guardrail may be, in parts of its margin: 1 is the limit."""
    known = [one for one in treatment.guardrails if one.difference is not None]
    if not known:
        return None
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.5 * len(known)), layout="constrained")
    axes = figure.subplots()
    reach = 2.0
    for place, one in enumerate(known):
        assert one.difference is not None
        sign = 1.0 if one.metric.lower_is_better else -1.0
        ends = sorted(sign * side / one.margin for side in (one.difference.low, one.difference.high))
        centre = sign * one.difference.estimate / one.margin
        colour = {"fine": GREEN, "harmed": ORANGE, "not decided": GREY}[one.verdict]
        axes.plot(ends, [place, place], color=colour, lw=5, solid_capstyle="butt", alpha=0.55)
        axes.plot(centre, place, "o", color=colour, ms=7)
        reach = max(reach, min(abs(ends[1]), 5.0) * 1.1)
    axes.axvline(1, color=ORANGE, lw=1.2, ls=(0, (4, 3)))
    axes.axvline(0, color=INK, lw=1)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-0.6, len(known) - 0.4)
    axes.set_yticks(range(len(known)), [metric_name(one.metric) for one in known])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("how much worse, in parts of what is allowed (1 is the limit; below 0 is better)")
    return figure
