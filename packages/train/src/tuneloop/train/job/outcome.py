"""What a run made: the version, and every figure of it, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tuneloop.registry.nouns import Interval, Version
from tuneloop.train.evaluation.compare import Comparison, shown_table
from tuneloop.train.evaluation.measure import SetScore
from tuneloop.train.evaluation.preference import PreferenceScore, preference_table
from tuneloop.train.examples import Audit
from tuneloop.train.fit.progress import FitResult


@dataclass(frozen=True)
class Outcome:
    """The version and what was seen on the way."""

    version: Version
    audit: Audit
    fitted: FitResult
    before: Mapping[str, SetScore]
    after: Mapping[str, SetScore]
    differences: Mapping[str, Interval]  # of NLL, set by set
    comparisons: Mapping[str, Comparison]
    preferences: Mapping[str, tuple[PreferenceScore, PreferenceScore]]  # before and after
    remarks: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Every figure of the run, for `--json`."""
        return {
            "version": self.version,
            "audit": self.audit.as_json(),
            "fit": asdict(self.fitted),
            "before": {name: score.metrics(name) for name, score in self.before.items()},
            "after": {name: score.metrics(name) for name, score in self.after.items()},
            "differences": dict(self.differences),
            "intervals": {name: found.interval_metrics() for name, found in self.comparisons.items()},
            "preferences": {
                name: {"before": was.accuracy, "after": now.accuracy} for name, (was, now) in self.preferences.items()
            },
            "remarks": list(self.remarks),
        }

    def table(self) -> str:
        """Before and after, set by set, and what a reader should know of it."""
        parts = [shown_table(list(self.comparisons.values()))] if self.comparisons else []
        parts += [preference_table(self.preferences)] if self.preferences else []
        parts += ["\n".join(f"note: {remark}" for remark in self.remarks)] if self.remarks else []
        return "\n\n".join(parts)
