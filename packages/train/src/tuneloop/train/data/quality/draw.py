"""The page's pictures: matplotlib without its global state, to SVG text that stands inline in a page."""

from __future__ import annotations

import io
from itertools import pairwise

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from tuneloop.train.data.quality.report import Histogram, QualityReport

BLUE, SKY, ORANGE, GREY, INK = "#0072B2", "#56B4E9", "#D55E00", "#8a8f98", "#23272f"  # Okabe and Ito's
_WIDTH = 9.6  # inches
_LANGUAGES = 8
_LABEL_CHARACTERS = 60
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
    "text.parse_math": False,  # a row's text is no formula
}


def pictures(report: QualityReport) -> dict[str, str]:
    """Picture's name → SVG."""
    with mpl.rc_context(_STYLE):
        return {
            "scores": _svg("scores", _scores(report)),
            "lengths": _svg("lengths", _lengths(report)),
            "answers": _svg("answers", _shares(report)),
        }


def _svg(name: str, figure: Figure) -> str:
    # Ids inside an SVG are hashed with this salt; with one salt for all, pictures on a page would share clip paths.
    with mpl.rc_context({"svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _scores(report: QualityReport) -> Figure:
    figure = Figure(figsize=(_WIDTH, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(left, report.histograms["score"], BLUE)
    left.set(xlabel="score of a row", ylabel="rows")
    if report.min_score is not None:
        left.axvline(report.min_score, color=ORANGE, lw=1.4)
        left.annotate(
            f"min_score {report.min_score:g}",
            (report.min_score, left.get_ylim()[1]),
            xytext=(-4, -10),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=ORANGE,
        )
    names, means = list(report.mean_parts), list(report.mean_parts.values())
    right.barh(names, means, color=SKY)
    right.set(xlim=(0, 1.12), xlabel="mean of each part")
    for place, mean in enumerate(means):
        right.annotate(f"{mean:.2f}", (mean, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    right.invert_yaxis()
    right.grid(visible=False, axis="y")
    return figure


def _lengths(report: QualityReport) -> Figure:
    figure = Figure(figsize=(_WIDTH, 2.9), layout="constrained")
    spreads = {"question words": report.prompt_words, "answer words": report.answer_words}
    if report.rejected_words is not None:
        spreads["rejected words"] = report.rejected_words
    axes = figure.subplots(1, len(spreads))
    for one, (name, spread) in zip(axes, spreads.items(), strict=True):
        _bars(one, report.histograms[name], BLUE)
        one.set_xscale("log")
        one.axvline(max(1.0, spread[1]), color=INK, lw=1.2)
        one.set_title(f"{name}: {spread[0]} to {spread[2]:,}, median {spread[1]:g}", loc="left", fontsize=10)
        one.set(xlabel="words (logarithmic)", ylabel="rows")
        one.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        one.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _shares(report: QualityReport) -> Figure:
    """Languages, and the answers that are given most often."""
    figure = Figure(figsize=(_WIDTH, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    languages = list(report.languages.items())[:_LANGUAGES]
    _ranked(left, [(code, count) for code, count in languages], report.rows, SKY)
    left.set_title("languages (und: not sure)", loc="left", fontsize=10)
    answers = [(_label(text), count) for text, count in report.commonest_answers]
    _ranked(right, answers, report.rows, SKY)
    right.set_title(f"commonest of {report.distinct_answers:,} different answers", loc="left", fontsize=10)
    return figure


def _ranked(axes: Axes, values: list[tuple[str, int]], total: int, colour: str) -> None:
    counts = [count for _, count in values]
    axes.barh(range(len(values)), counts, color=colour)
    axes.set_yticks(range(len(values)), [name for name, _ in values], fontsize=8)
    axes.set_xlim(0, max(counts, default=1) * 1.3)
    for place, count in enumerate(counts):
        axes.annotate(
            f"{count:,} ({count / total:.1%})",
            (count, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("rows")


def _bars(axes: Axes, histogram: Histogram, colour: str) -> None:
    widths = [right - left for left, right in pairwise(histogram.edges)]
    axes.bar(
        histogram.edges[:-1], histogram.counts, widths, align="edge", color=colour, edgecolor="white", linewidth=0.4
    )
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(visible=False, axis="x")


def _label(text: str) -> str:
    """A line that the picture's font can draw; the whole text stands in the page."""
    plain = " ".join(text.split())
    plain = plain if len(plain) <= _LABEL_CHARACTERS else f"{plain[: _LABEL_CHARACTERS - 1]}…"
    return "".join(character if character <= "\u04ff" or character in "…–—’“”" else "□" for character in plain)
