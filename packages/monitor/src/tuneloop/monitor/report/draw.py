"""The report's pictures: matplotlib without its global state, to SVG text that can stand inline in a page.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; a version keeps its colour in every picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from tuneloop.monitor.report.canvas import ALARM, GREY, INK, PALETTE, WIDTH, canvas, day, duration, span, time_axis
from tuneloop.monitor.report.draw_speed import guards, heat, speed
from tuneloop.monitor.report.figures import Figures, Spread, WindowPoint
from tuneloop.monitor.signals import OF_SERVING, QUALITIES
from tuneloop.registry.evidence import findings_of, since_of
from tuneloop.registry.nouns import version_name

_LEAST_TICKS = 3
_STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "tuneloop",
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
    "date.converter": "concise",
}
_SIGNAL_UNITS = {
    "prompt_drift": ("Prompt drift", "standard\ndeviations"),
    "perplexity": ("Perplexity of questions", "nats per token\nabove reference"),
    "correction_perplexity": ("Perplexity of users' corrections", "nats per token\nabove reference"),
    "thumbs_down": ("Thumbs down", "share of\nthumbs"),
    "refusals": ("Refusals", "share of\nanswers"),
    "broken_answers": ("Empty or repeating answers", "share of\nanswers"),
    "answer_length": ("Length of answers", "difference of\nlog lengths"),
    "invalid_format": ("Answers that do not parse", "share of\nanswers"),
    "answer_drift": ("Drift of answers", "standard\ndeviations"),
    "correction_bleu": ("BLEU against users' corrections", "lost since\nthe reference"),
    "parity": ("Parity between groups of people", "-log10 of\nHolm's p"),
    "injections": ("Attacks that guards caught", "share of\nrequests"),
    "latency": ("Latency", "share of\nslow answers"),
    "tokens_per_s": ("Tokens a second, fewer", "difference of\nlogs"),
    "queue_time": ("Time in the queue", "difference of\nlogs"),
    "request_rate": ("Time between requests", "difference of\nlogs"),
    "personal_data": ("Personal data that guards found", "share of\nrequests"),
    "guard_blocks": ("Requests that guards stopped", "share of\nrequests"),
    "bad_corrections": ("Corrections that nothing can be learned from", "share of\ncorrections"),
    "served_model_change": ("Canaries", "nats per token\nfrom the first reading"),
    "reference_bleu": ("Answers to fixed questions", "BLEU lost\nsince the first"),
}


def pictures(figures: Figures) -> dict[str, str]:
    """Picture's name → SVG, for every picture there is data for."""
    with mpl.rc_context(_STYLE):
        drawn = {
            "loss": _loss(figures),
            "perplexity": _perplexity(figures),
            "traffic": _traffic(figures),
            "drift": _streams(figures, [s for s in figures.drift if s not in (*QUALITIES, *OF_SERVING)]),
            "quality": _streams(figures, [s for s in QUALITIES if s in figures.drift]),
            "served": _streams(figures, [s for s in OF_SERVING if s in figures.drift]),
            "heat": heat(figures),
            "speed": speed(figures),
            "latency": _latency(figures),
            "guards": guards(figures),
        }
        return {name: _svg(name, figure) for name, figure in drawn.items() if figure is not None}


def _svg(name: str, figure: Figure) -> str:
    # Ids inside an SVG are hashed with this salt; with one salt for all, pictures on a page would share clip paths.
    with mpl.rc_context({"svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _colour(figures: Figures, name: str) -> str:
    if name == "base":
        return GREY
    known = [version.name for version in figures.versions]
    order = known.index(name) if name in known else int(name.partition("@")[2] or 0)
    return PALETTE[order % len(PALETTE)]


def _loss(figures: Figures) -> Figure | None:
    with_curve = [version for version in figures.versions if version.loss]
    if not with_curve:
        return None
    figure, (axes,) = canvas(1, 3.2)
    for version in with_curve:
        steps, losses = zip(*version.loss, strict=True)
        marker = "o" if len(steps) < 40 else ""
        axes.plot(steps, losses, marker=marker, ms=3, color=_colour(figures, version.name), label=version.name)
    axes.set(xlabel="training step", ylabel="loss (nats per trained token)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def _perplexity(figures: Figures) -> Figure | None:
    sets = list(figures.perplexity)
    if not sets:
        return None
    figure, (axes,) = canvas(1, 3.4)
    names = [n for n in ("base", *(v.name for v in figures.versions)) if any(n in figures.perplexity[s] for s in sets)]
    width = 0.8 / len(names)
    values = [v for series in figures.perplexity.values() for v in series.values()]
    axes.set_yscale("log") if max(values) > 20 * min(values) else axes.set_ylim(0, max(values) * 1.15)
    for position, name in enumerate(names):
        there = [(place, figures.perplexity[s][name]) for place, s in enumerate(sets) if name in figures.perplexity[s]]
        bars = axes.bar(
            [place + (position - (len(names) - 1) / 2) * width for place, _ in there],
            [value for _, value in there],
            width * 0.92,
            color=_colour(figures, name),
            label=f"{figures.base} (base)" if name == "base" else name,
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    axes.set_xticks(range(len(sets)), sets)
    axes.set(xlabel="held-out set", ylabel="perplexity (lower is better)")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _traffic(figures: Figures) -> Figure | None:
    traffic = figures.traffic
    if traffic is None:
        return None
    figure, (axes,) = canvas(1, 3.4)
    starts, width = date2num(list(traffic.starts)), traffic.span_s / 86_400
    below = [0] * len(starts)
    for name, counts in traffic.answers.items():
        shown = (
            {"color": "#444", "hatch": "///", "label": "not answered"}
            if name == "none"
            else {
                "color": _colour(figures, name),
                "label": name,
            }
        )
        axes.bar(starts, counts, width, bottom=below, align="edge", linewidth=0, **shown)
        below = [sum(pair) for pair in zip(below, counts, strict=True)]
    top = max(below)
    axes.set_ylim(0, top * 1.28)
    first, last = starts[0], starts[-1] + width
    for number, revision in enumerate(r for r in figures.revisions if first <= date2num(r.at) <= last):
        axes.axvline(date2num(revision.at), color=INK, lw=0.9, ls=(0, (3, 2)))
        axes.annotate(
            f"r{revision.revision}",
            (date2num(revision.at), top * (1.22 - 0.07 * (number % 3))),
            xytext=(2, 0),
            textcoords="offset points",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    axes.set(ylabel=f"requests per {span(traffic.span_s)}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    time_axis(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _streams(figures: Figures, signals: Sequence[str]) -> Figure | None:
    if not signals:
        return None
    figure, rows = canvas(len(signals), 2.5 * len(signals) + 0.4)
    for axes, signal in zip(rows, signals, strict=True):
        title, unit = _SIGNAL_UNITS.get(signal, (signal, "statistic"))
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_ylabel(unit)
        _stream(axes, figures, figures.drift[signal])
        for number, episode in enumerate(e for e in reversed(figures.episodes) if signal in findings_of(e)):
            end = episode.resolved_at or figures.made_at
            label = "episode" if number == 0 else None
            axes.axvspan(day(since_of(episode)), day(end), color=ALARM, alpha=0.10, lw=0, label=label)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    time_axis(rows[-1])
    return figure


def _stream(axes: Axes, figures: Figures, points: Sequence[WindowPoint]) -> None:
    judged = [point for point in points if point.verdict != "not enough data"]
    for version in sorted({point.version for point in judged}):
        own = [point for point in judged if point.version == version]
        name, times = version_name(figures.model, version), [day(point.at) for point in own]
        axes.plot(times, [p.statistic for p in own], "o-", ms=4, color=_colour(figures, name), label=name)
        axes.plot(times, [p.threshold for p in own], "_", ms=9, color=INK, ls=":", lw=1)
    alarms = [point for point in judged if point.verdict == "drift"]
    if judged:
        axes.plot([], [], "_", ms=9, color=INK, ls=":", lw=1, label="threshold")
    if alarms:
        at, high = [day(p.at) for p in alarms], [p.statistic for p in alarms]
        axes.plot(at, high, "X", ms=9, color=ALARM, mec="white", label="alarm")
    missing = [day(point.at) for point in points if point.verdict == "not enough data"]
    if missing:
        axes.plot(missing, [0.0] * len(missing), "|", ms=10, color=GREY, label="not enough data")
    if not judged:
        axes.set_yticks([])  # nothing has a height here
    elif min(min(p.statistic, p.threshold) for p in judged) >= 0:
        axes.set_ylim(bottom=0)


def _latency(figures: Figures) -> Figure | None:
    if not figures.latency:
        return None
    figure = Figure(figsize=(WIDTH, 2.6 * len(figures.latency)), layout="constrained")
    titles = {"total": "Whole answer", "ttft": "First token"}
    for number, (name, spread) in enumerate(figures.latency.items(), 1):
        _histogram(figure.add_subplot(len(figures.latency), 1, number), titles[name], spread)
    return figure


def _histogram(axes: Axes, title: str, spread: Spread) -> None:
    edges = spread.edges_ms
    widths = [right - left for left, right in pairwise(edges)]
    axes.bar(edges[:-1], spread.counts, widths, align="edge", color=PALETTE[4], edgecolor="white", linewidth=0.4)
    axes.set_xscale("log")
    top = max(spread.counts)
    axes.set_ylim(0, top * 1.35)
    for number, (label, value) in enumerate(spread.percentiles_ms.items()):
        axes.axvline(value, color=(INK, PALETTE[0], ALARM)[number], lw=1.4)
        axes.annotate(
            f"{label} {duration(value)}",
            (value, top * (1.27 - 0.12 * number)),
            xytext=(4 if label == "p99" else -4, 0),
            textcoords="offset points",
            ha="left" if label == "p99" else "right",
            fontsize=9,
            color=(INK, PALETTE[0], ALARM)[number],
        )
    axes.set_title(f"{title}, {spread.n} answers", loc="left", fontsize=11)
    axes.set(xlabel="milliseconds (logarithmic)", ylabel="answers")
    axes.set_xticks(_round_ticks(edges[0], edges[-1]))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if value == round(value) else f"{value:g}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=False, axis="x")


def _round_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside the range; even steps where it is too narrow for three of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for power in powers for lead in (1, 2, 5) if low <= (tick := lead * 10.0**power) <= high]
    if len(ticks) < _LEAST_TICKS:
        ticks = [float(tick) for tick in MaxNLocator(nbins=6).tick_values(low, high) if low <= tick <= high]
    return ticks


def alt_texts(figures: Figures) -> Mapping[str, str]:
    """What each picture shows, for those who cannot see it."""
    return {
        "loss": "Training loss over steps, one line per version.",
        "perplexity": "Perplexity on each held-out set, one bar per version.",
        "traffic": "Requests over time, stacked by the version that answered; dashed lines are route revisions.",
        "drift": "The statistic of every window with its threshold, one panel per signal; shaded spans are episodes.",
        "quality": "Shares of worse answers and their length in every window, one panel per signal, with thresholds.",
        "served": "How far fixed texts read from what they read when the version first served, with thresholds.",
        "heat": "Answers by time and by how long they took; darker is more, a hatched column had none.",
        "speed": "Tokens written a second, time between tokens and time in the queue, over time.",
        "guards": "Share of requests over time that guards stopped, or found attacks or personal data in.",
        "latency": f"Histogram of answer times of {figures.model} with the 50th, 95th and 99th percentile.",
    }
