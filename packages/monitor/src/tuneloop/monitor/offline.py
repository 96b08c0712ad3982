"""`tuneloop drift check`: the monitor's own prompt-drift detector on two files, to try it on one's own text before
relying on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tuneloop.monitor.detectors import mmd_test, window_alpha
from tuneloop.monitor.features import new_words, prompt_kernel, witness
from tuneloop.registry.errors import InvalidInput

MIN_TEXTS = 10
_EXAMPLES = 5


@dataclass(frozen=True)
class DriftCheck:
    """What the detector says of two files."""

    verdict: str  # `drift` or `none`
    statistic: float
    threshold: float
    p_value: float
    alpha: float
    mean_run_length: int
    permutations: int
    n_reference: int
    n_window: int
    words: tuple[dict[str, Any], ...]
    examples: tuple[dict[str, Any], ...]  # the window's texts that drive the statistic most


def check_files(reference: Path, window: Path, mean_run_length: int) -> DriftCheck:
    """Hold the texts of one file against those of another; the same files always give the same answer.

    Raises:
        InvalidInput: a file cannot be read as `{"text": …}` lines, or is too short; names file and line.
    """
    before, now = read_texts(reference), read_texts(window)
    alpha = window_alpha(len(now), mean_run_length, streams=1)
    if alpha > 0.5:
        raise InvalidInput(
            f"--gamma {mean_run_length} is too small for a window of {len(now)} texts; give {2 * len(now)} or more"
        )
    digest = sha256("\0".join([*before, "", *now]).encode()).hexdigest()
    kernel = prompt_kernel(before + now)
    result = mmd_test(kernel, len(before), alpha, np.random.default_rng(int(digest[:16], 16)))
    pull = witness(kernel, len(before))
    order = np.argsort(-pull, kind="stable")[:_EXAMPLES]
    return DriftCheck(
        verdict="drift" if result.alarm else "none",
        statistic=result.statistic,
        threshold=result.threshold,
        p_value=result.p_value,
        alpha=alpha,
        mean_run_length=mean_run_length,
        permutations=result.permutations,
        n_reference=len(before),
        n_window=len(now),
        words=tuple(vars(word) for word in new_words(before, now)),
        examples=tuple({"line": int(i) + 1, "text": now[i], "weight": round(float(pull[i]), 4)} for i in order),
    )


def check_lines(found: DriftCheck) -> Iterator[str]:
    """What the detector says, for people."""
    yield f"verdict    {found.verdict}"
    yield f"statistic  {found.statistic:.5f} (MMD², {found.n_reference} against {found.n_window} texts)"
    once = f"one false alarm in {found.mean_run_length} texts or more"
    yield f"threshold  {found.threshold:.5f} ({once}; alpha {found.alpha:.2g})"
    yield f"p          {found.p_value:.2g} ({found.permutations} permutations)"
    for word in found.words:
        shares = f"in {word['reference']:.0%} of the reference, {word['window']:.0%} of the window"
        yield f"word       {word['word']}: {shares}"
    for example in found.examples:
        yield f"line {example['line']:<5} {example['text'][:110]}"


def read_texts(path: Path) -> list[str]:
    """The `text` of every line of a JSONL file.

    Raises:
        InvalidInput: the file, or a line of it, is not that.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold the other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}") from None
    texts = [_text(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if len(texts) < MIN_TEXTS:
        raise InvalidInput(f"{path}: {len(texts)} texts; a test needs {MIN_TEXTS} or more on each side")
    return texts


def _text(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError: nested without end
        raise InvalidInput(f"{path}:{number}: not JSON: {getattr(error, 'msg', error)}") from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(f'{path}:{number}: no text here; each line is {{"text": "…"}}')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{path}:{number}: holds half a surrogate pair, which is no text") from None
    return text
