"""`tuneloop drift check`: the monitor's own detector of text drift on two files, to try it on one's own text before
relying on it; with the slices that drive a drift, and CUSUMs over numbers of the lines that are asked for.

The same files always give the same answer. Files of any length are read in bounded memory: of more texts than
MOST_REFERENCE and MOST_WINDOW a sample is judged, which no alarm rate depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.classifier import classifier_test
from tuneloop.monitor.cusum import Cusum
from tuneloop.monitor.detectors import window_alpha
from tuneloop.monitor.distributions import RULE_OF_THUMB, Measure, compare
from tuneloop.monitor.embeddings import Embed, embeddings_of
from tuneloop.monitor.features import new_words, prompt_kernel, witness
from tuneloop.monitor.lines import Line, Sample, read_sample
from tuneloop.monitor.page_hinkley import page_hinkley
from tuneloop.monitor.slices import driving
from tuneloop.monitor.textdrift import TextDrift, text_test
from tuneloop.registry.errors import InvalidInput

MIN_TEXTS = 10  # a change of every text of fewer is not seen at the default budget
MOST_REFERENCE, MOST_WINDOW = 2_000, 1_000  # texts judged of a longer file; the monitor's own limits
TextsBy = Literal["looks", "classifier"]
StreamsBy = Literal["cusum", "page-hinkley"]
USUAL_RUN_LENGTH, WINDOWS_PER_ALARM = 10_000, 100  # the default: 10,000 texts, and never more than 1 % of checks
_Test = Callable[[Sequence[str], int, float, np.random.Generator, Embed | None], TextDrift]
_NAMES: dict[StreamsBy, str] = {"cusum": "CUSUM", "page-hinkley": "sum of Page-Hinkley's"}
_EXAMPLES = 5


@dataclass(frozen=True)
class DriftCheck:
    """What the detectors say of two files."""

    verdict: Literal["drift", "none", "not enough data"]
    statistic: float  # of the texts, in standard deviations of the permutations
    threshold: float
    p_value: float | None
    alpha: float
    mean_run_length: int
    permutations: int
    n_reference: int  # texts of the file
    n_window: int
    judged_reference: int  # of which a sample of this many was judged
    judged_window: int
    texts_by: TextsBy = "looks"  # of a classifier the statistic is the area under its ROC curve
    reason: str = ""  # why there is not enough data
    looks: dict[str, float] | None = None  # the statistics the largest was taken of
    words: tuple[dict[str, Any], ...] = ()
    examples: tuple[dict[str, Any], ...] = ()  # the window's texts that drive the statistic most
    slices: tuple[dict[str, Any], ...] = ()  # the fields' values that drive a drift
    streams: tuple[dict[str, Any], ...] = ()  # the numbers that were watched too
    columns: tuple[dict[str, Any], ...] = ()  # the fields that were compared too


def check_files(
    reference: Path,
    window: Path,
    mean_run_length: int | None = None,
    streams: Sequence[str] = (),
    columns: Sequence[str] = (),
    measure: Measure = "ks",
    embeddings: str = "",
    texts_by: TextsBy = "looks",
    streams_by: StreamsBy = "cusum",
) -> DriftCheck:
    """Hold the texts of one file against those of another, and numbers of their lines where `streams` names some.

    Args:
        reference: what is normal, as `{"text": …}` lines. window: what is new. mean_run_length: texts between false
        alarms over the texts, all streams and all columns together; by default 10,000, or a hundred windows where that
        is more.
        streams: numeric fields of every line, each watched by a CUSUM in the order of the lines (of `at`, if all have
        it). columns: fields of every line whose values are compared by `measure`, whatever their order.
        embeddings: the model that texts are read with too; see `embeddings.embeddings_of`.
        texts_by: the monitor's own looks, or a classifier. streams_by: a CUSUM, or Page-Hinkley's test.

    Raises:
        InvalidInput: a file cannot be read as such lines, naming file and line; no such model.
        Unavailable: `embeddings`, and sentence-transformers is not installed.
    """
    embed = embeddings_of(embeddings)
    before, now = read_sample(reference, MOST_REFERENCE), read_sample(window, MOST_WINDOW)
    run_length = mean_run_length or max(USUAL_RUN_LENGTH, WINDOWS_PER_ALARM * now.total)
    numbers = {
        name: (_numbers(reference, before, name), _numbers(window, now, name)) for name in dict.fromkeys(streams)
    }
    compared = {name: (_values(reference, before, name), _values(window, now, name)) for name in dict.fromkeys(columns)}
    watched_together = 1 + len(numbers) + len(compared)
    alpha = window_alpha(now.total, run_length, streams=watched_together)
    about: dict[str, Any] = {
        "alpha": alpha,
        "mean_run_length": run_length,
        "n_reference": before.total,
        "n_window": now.total,
        "judged_reference": len(before.lines),
        "judged_window": len(now.lines),
    }
    if short := [f"{path}: {n} texts" for path, n in ((reference, before.total), (window, now.total)) if n < MIN_TEXTS]:
        reason = (
            f"{' and '.join(short)}; {MIN_TEXTS} are needed on each side: of fewer no change can be told from chance"
        )
        return DriftCheck("not enough data", 0.0, 0.0, None, permutations=0, reason=reason, **about)
    if alpha > 0.5:
        least = 2 * now.total * watched_together
        raise InvalidInput(f"--gamma {run_length} is too small for a window of {now.total} texts; give {least} or more")
    texts = before.texts + now.texts
    digest = sha256("\0".join([*before.texts, "", *now.texts]).encode()).hexdigest()
    rng = np.random.default_rng(int(digest[:16], 16))
    test: _Test = _told_apart if texts_by == "classifier" else text_test
    found = test(texts, len(before.lines), alpha, rng, embed)
    if streams_by == "page-hinkley":
        watched = [_tested(name, sides, alpha, now.lines, rng) for name, sides in numbers.items()]
    else:
        most = run_length * watched_together
        watched = [_watched(name, sides, most, now.lines, rng) for name, sides in numbers.items()]
    held_apart = [compare(name, was, held, measure, alpha, rng) for name, (was, held) in compared.items()]
    drifted = (
        found.outcome.alarm or any(stream["alarms"] for stream in watched) or any(column.alarm for column in held_apart)
    )
    pull = witness(found.kernel, len(before.lines)) if found.said is None else found.said[len(before.lines) :]
    order = np.argsort(-pull, kind="stable")[:_EXAMPLES]
    return DriftCheck(
        "drift" if drifted else "none",
        found.outcome.statistic,
        found.outcome.threshold,
        found.outcome.p_value,
        permutations=found.outcome.permutations,
        looks={name: round(value, 4) for name, value in found.looks.items()},
        words=tuple(vars(word) for word in new_words(before.texts, now.texts)),
        examples=tuple(_example(now.lines[i], float(pull[i])) for i in order),
        texts_by=texts_by,
        slices=tuple(
            vars(part) for part in (driving(before.lines, now.lines, found.kernel, rng) if found.outcome.alarm else ())
        ),
        streams=tuple(watched),
        columns=tuple(vars(column) for column in held_apart),
        **about,
    )


def check_lines(found: DriftCheck) -> Iterator[str]:
    """What the detectors say, for people."""
    yield f"verdict    {found.verdict}"
    if found.reason:
        yield f"because    {found.reason}"
        return
    sizes = f"{found.n_reference} against {found.n_window} texts"
    if (found.judged_reference, found.judged_window) != (found.n_reference, found.n_window):
        sizes += f", of which {found.judged_reference} and {found.judged_window} were drawn"
    digits = 3 if found.texts_by == "classifier" else 2
    if found.texts_by == "classifier":
        yield f"statistic  {found.statistic:.{digits}f} (area under a classifier's ROC curve, 0.5 is guessing; {sizes})"
    else:
        looks = ", ".join(f"{name} {value:.1f}" for name, value in (found.looks or {}).items())
        yield f"statistic  {found.statistic:.{digits}f} (standard deviations, {sizes}; {looks})"
    once = f"one false alarm in {found.mean_run_length} texts or more"
    yield f"threshold  {found.threshold:.{digits}f} ({once}; alpha {found.alpha:.2g})"
    yield f"p          {found.p_value:.2g} ({found.permutations} permutations)"
    for stream in found.streams:
        held = f"highest {_NAMES[stream['by']]} {stream['statistic']:.1f}, threshold {stream['threshold']:.1f}"
        yield f"number     {stream['field']}: {held}"
        for alarm in stream["alarms"]:
            yield f"           {alarm['direction']} since line {alarm['since_line']}, sure at line {alarm['line']}"
    for column in found.columns:
        yield from _column_lines(column)
    for part in found.slices:
        what = "came more or less often" if part["how"] == "share" else "its own texts changed"
        counts = f"{part['reference']} in the reference, {part['window']} in the window"
        yield f"slice      {part['field']} {part['value']!r}: {what} ({counts}; p {part['p_value']:.2g})"
    for word in found.words:
        shares = f"in {word['reference']:.0%} of the reference, {word['window']:.0%} of the window"
        yield f"word       {word['word']}: {shares}"
    for example in found.examples:
        yield f"line {example['line']:<5} {example['text'][:110]}"


def _column_lines(column: Mapping[str, Any]) -> Iterator[str]:
    differs = "differs" if column["alarm"] else "does not differ"
    held = f"{column['measure'].upper()} {column['statistic']:.3f}, threshold {column['threshold']:.3f}"
    yield f"column     {column['field']}: {differs} ({held}; p {column['p_value']:.2g})"
    for part in sorted(column["bins"], key=lambda part: -abs(part["window"] - part["reference"]))[:_EXAMPLES]:
        if column["alarm"] and part["window"] != part["reference"]:
            shares = f"{part['reference']:.0%} of the reference, {part['window']:.0%} of the window"
            yield f"           {part['values']}: {shares}"
    if column["by_rule_of_thumb"] is not None:
        rule = RULE_OF_THUMB[column["measure"]]
        yield f"           the usual {rule:g} would cry wolf in {column['by_rule_of_thumb']:.0%} of such windows"


def _example(line: Line, pull: float) -> dict[str, Any]:
    return {"line": line.number, "text": line.text, "weight": round(pull, 4), "fields": line.fields}


def _numbers(path: Path, sample: Sample, name: str) -> NDArray[np.float64]:
    """A numeric field of every line, in the order of time where every line has one."""
    values: list[float] = []
    for line in _in_order(sample.lines):
        value = line.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInput(f"{path}:{line.number}: --stream {name} needs a number {name!r} on every line")
        values.append(float(value))
    return np.array(values)


def _values(path: Path, sample: Sample, name: str) -> list[str | float]:
    """A field of every line: numbers, or words."""
    values: list[str | float] = []
    for line in sample.lines:
        value = line.fields.get(name)
        if value is None:
            raise InvalidInput(f"{path}:{line.number}: --column {name} needs {name!r} on every line")
        if isinstance(value, bool):
            value = str(value).lower()
        values.append(value if isinstance(value, str) else float(value))
    return values


def _in_order(lines: Sequence[Line]) -> list[Line]:
    if all(line.at is not None for line in lines):
        return sorted(lines, key=lambda line: (line.at, line.number))
    return list(lines)


def _watched(
    name: str,
    values: tuple[NDArray[np.float64], NDArray[np.float64]],
    run_length: int,
    lines: Sequence[Line],
    rng: np.random.Generator,
) -> dict[str, Any]:
    cusum = Cusum(values[0], run_length, rng)
    places = [line.number for line in _in_order(lines)]
    alarms = [
        {"line": places[change.at], "since_line": places[change.since], "direction": change.direction}
        for change in cusum.feed(values[1])
    ]
    about = {"field": name, "by": "cusum", "statistic": cusum.highest, "threshold": cusum.threshold}
    return about | {"alarms": alarms}


def _tested(
    name: str,
    values: tuple[NDArray[np.float64], NDArray[np.float64]],
    alpha: float,
    lines: Sequence[Line],
    rng: np.random.Generator,
) -> dict[str, Any]:
    found = page_hinkley(*values, alpha, rng)
    places = [line.number for line in _in_order(lines)]
    alarms = [
        {"line": places[change.at], "since_line": places[change.since], "direction": change.direction}
        for change in (found.change,)
        if change is not None
    ]
    about = {"field": name, "by": "page-hinkley", "statistic": found.outcome.statistic}
    return about | {"threshold": found.outcome.threshold, "alarms": alarms}


def _told_apart(
    texts: Sequence[str], n_reference: int, alpha: float, rng: np.random.Generator, embed: Embed | None
) -> TextDrift:
    kernel = prompt_kernel(texts)
    features = kernel
    if embed is not None:
        vectors = embed(list(texts))
        features = (kernel + vectors @ vectors.T) / 2
    outcome, said = classifier_test(features, n_reference, alpha, rng)
    return TextDrift(outcome, {"classifier": outcome.statistic}, kernel, said)
