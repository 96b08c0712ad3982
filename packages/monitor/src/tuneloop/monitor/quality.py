"""What answers and users' thumbs say of quality, as windows against the reference. Pure.

Shares that may not rise (thumbs down among thumbs given, answers that refuse, that are broken, that do not parse) by
Fisher's exact test, and the length of answers, which may change neither way, by permutation. Each test is exact while
reference and window are exchangeable, so the rules that call an answer refused or broken need not be right to keep
the false-alarm budget: a rule that misses half of the refusals only sees a rise of them later. The rules for refusals
read English. Of the reference, thumbs go on arriving after its windows were judged: where users thumb late *and*
rather down than up when late, the test is slow to alarm, never quick.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tuneloop.monitor.detectors import Outcome, mean_change_test
from tuneloop.registry.nouns import Feedback, RequestRecord

_READ_CHARS = 200  # of an answer: whoever refuses does so at once
_CANNOT = r"(?: (?:can(?:no|')t|can not|am (?:unable|not able) to|won't|will not)|'m (?:unable|not able) to)"
_DOES = r"(?:help|assist|answer|provide|comply|discuss|share|do that|fulfil|support|create|generate|give|engage)"
_REFUSAL = re.compile(rf"\bI{_CANNOT} (?:\w+ )?{_DOES}|\bI(?:'m| am) sorry, but\b|\bI must decline\b", re.IGNORECASE)
_LONG_ENOUGH_WORDS, _RUN, _DISTINCT = 24, 3, 0.5


def is_refusal(answer: str) -> bool:
    """Whether an answer says that it will not answer."""
    return bool(_REFUSAL.search(answer[:_READ_CHARS].replace("\u2019", "'")))


def is_broken(answer: str) -> bool:
    """Whether an answer is empty, or says the same over and over: under half of its triples of words are distinct."""
    words = answer.split()
    if not words:
        return True
    runs = [tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)]
    return len(words) >= _LONG_ENOUGH_WORDS and len(set(runs)) < _DISTINCT * len(runs)


def is_no_json(answer: str) -> bool:
    """Whether an answer does not parse as JSON, as it stands: a client's parser takes off no fence and no greeting."""
    try:
        json.loads(answer, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return True
    return False


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON, though Python reads it")


def thumbs_of(feedback: Mapping[str, Sequence[Feedback]]) -> dict[str, bool]:
    """Request id → whether the newest thumb a user gave points down."""
    given = {request_id: [item.thumb for item in items if item.thumb] for request_id, items in feedback.items()}
    return {request_id: thumbs[-1] == "down" for request_id, thumbs in given.items() if thumbs}


def log_lengths(records: Sequence[RequestRecord]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Log of the answers' lengths in tokens, or in characters where no record counted tokens; doubling adds 0.7."""
    counted = all(record.completion_tokens is not None for record in records)
    lengths = [record.completion_tokens if counted else len(record.answer or "") for record in records]
    return np.log1p(np.array(lengths, dtype=np.float64))


def share_rise_test(before: tuple[int, int], now: tuple[int, int], alpha: float) -> Outcome:
    """Whether a share rose: Fisher's exact test, one-sided; statistic and threshold are shares of the window.

    Args:
        before: of the reference, how many have it and how many there are.
        now: of the window, likewise; at least one.
        alpha: level of the test.
    """
    from scipy.stats import hypergeom  # noqa: PLC0415 (slow to import)

    (had, of), (has, among) = before, now
    among_all = hypergeom(of + among, had + has, among)
    return Outcome(has / among, float(among_all.isf(alpha)) / among, float(among_all.sf(has - 1)), alpha, 0)


def length_change_test(
    reference: Sequence[RequestRecord], window: Sequence[RequestRecord], alpha: float, rng: np.random.Generator
) -> Outcome:
    """Whether answers became longer or shorter."""
    both = log_lengths([*reference, *window])
    return mean_change_test(both[: len(reference)], both[len(reference) :], alpha, rng)
