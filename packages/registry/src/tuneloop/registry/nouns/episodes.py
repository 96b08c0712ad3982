"""Signals, windows as the monitor judged them, and alert episodes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime

from tuneloop.registry.nouns.base import Noun

Signal = Literal[  # those a retraining policy may name
    "prompt_drift",
    "perplexity",
    "correction_perplexity",
    "thumbs_down",
    "refusals",
    "broken_answers",
    "answer_length",
    "invalid_format",
    "correction_bleu",
    "latency",
]
ServingSignal = Literal[  # what training cannot repair, or not by itself
    "served_model_change",
    "injections",
    "parity",
    "reference_bleu",
    "answer_drift",
    "tokens_per_s",
    "queue_time",
    "request_rate",
    "personal_data",
    "guard_blocks",
    "bad_corrections",
]
TrialSignal = Literal[  # what the monitor judges of a challenger against its champion at the same time
    "trial_refusals",
    "trial_broken_answers",
    "trial_answer_perplexity",
    "trial_correction_perplexity",
]
ChallengerSignal = Literal["served_model_change", TrialSignal]  # everything that it judges of a challenger


class WindowScore(Noun):
    """One signal of one version over one window, as the monitor judged it."""

    id: str
    at: AwareDatetime
    model: str
    version: int
    signal: str  # a `Signal`, a `ServingSignal` or a `TrialSignal`
    window_start: AwareDatetime
    window_end: AwareDatetime
    n: int
    statistic: float
    threshold: float
    p_value: float | None
    mean_run_length: float  # the budget: records between false alarms over all streams of the model, at least
    verdict: Literal["drift", "none", "not enough data"]
    detail: dict[str, Any] = {}
    request_ids: tuple[str, ...] = ()


class AlertEpisode(Noun):
    """One problem from first sight to all-clear."""

    id: str
    model: str
    version: int
    signal: str
    detector: str
    severity: Literal["page", "ticket"]
    state: Literal["open", "acknowledged", "resolved"]
    opened_at: AwareDatetime
    updated_at: AwareDatetime
    resolved_at: AwareDatetime | None = None
    windows: tuple[str, ...]  # ids of the window scores that belong to it, the first one opened it
    evidence: dict[str, Any]
    runbook: str
    done: tuple[str, ...] = ()  # what was done about it, in order
