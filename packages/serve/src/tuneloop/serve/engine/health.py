"""Whether vLLM lives, judged by progress: tokens move, or a token that the agent asks for itself arrives.

`/health` answers 200 while the engine hangs, and an engine that hung while idle never counts a running request; so an
engine that has shown no progress for half the patience is asked for one token, and is hung when none has moved for all
of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_DEAD_AFTER = 3  # answers in a row by which vLLM itself says that its engine is dead


@dataclass(frozen=True)
class Pulse:
    """One look at vLLM: tokens processed since its start (None: no answer), and whether it calls itself healthy."""

    tokens: float | None
    healthy: bool


class Verdict(StrEnum):
    """What one look at vLLM says."""

    ALIVE = "alive"
    ASK = "ask"  # no progress for a while: ask for one token
    HUNG = "hung"
    DEAD = "dead"


class HealthWatch:
    """Pulses in, verdicts out; times are seconds of one monotonic clock."""

    def __init__(self, hang_timeout_s: float, now_s: float) -> None:
        self._patience_s = hang_timeout_s
        self._tokens: float | None = None
        self._progress_at = now_s
        self._unhealthy = 0

    def observe(self, pulse: Pulse, now_s: float) -> Verdict:
        """Judge one pulse."""
        self._unhealthy = 0 if pulse.healthy or pulse.tokens is None else self._unhealthy + 1
        if self._unhealthy >= _DEAD_AFTER:
            return Verdict.DEAD
        if pulse.tokens is not None and pulse.tokens != self._tokens:
            self._tokens = pulse.tokens
            self._progress_at = now_s
        silent_s = now_s - self._progress_at
        if silent_s >= self._patience_s:
            return Verdict.HUNG
        return Verdict.ASK if silent_s >= self._patience_s / 2 else Verdict.ALIVE
