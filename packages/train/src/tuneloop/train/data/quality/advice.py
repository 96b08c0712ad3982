"""Whether there are enough rows: the guide's figures as advice with its reason, never a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class _Range:
    least: int
    most: int | None
    few: str
    many: str


_ADAPTER = _Range(
    1_000,
    10_000,
    "an adapter learns a style from hundreds, a skill from thousands, and over-fits few rows within an epoch or two",
    "beyond it better rows pay more than further ones; a higher rank or full fine-tuning can use them",
)
_FULL = _Range(
    10_000,
    None,
    "every weight moves, so that few rows are learned by heart and other skills are forgotten; an adapter needs fewer",
    "",
)
_INSTRUCTION = _Range(
    5_000,
    50_000,
    "following instructions of many kinds needs many kinds; for one kind of question fewer do",
    "beyond it a variety of instructions counts, not their number",
)
_PREFERENCE = _Range(
    10_000,
    None,
    "a reward is a comparison, noisy in each pair, and a model finds the gaps of one that was learned from few",
    "",
)
_NAMES = {"an adapter": _ADAPTER, "full fine-tuning": _FULL, "instruction tuning": _INSTRUCTION}


def size_advice(rows: int, formats: Mapping[str, int], *, method: str = "", objective: str = "") -> list[str]:
    """What the guide says of so many rows.

    Args:
        rows: distinct rows to learn from.
        formats: format → rows.
        method: `tuning.method`; without one, what is known of any method is said.
        objective: `objective.kind`.
    """
    if formats.get("preference") or objective in {"dpo", "reward"}:
        said = [_said("preferences", _PREFERENCE, rows)]
    elif objective in {"grpo", "ppo"} or set(formats) == {"prompt"}:
        return []
    else:
        wanted = {"an adapter", "full fine-tuning"} if not method else set()
        wanted |= {"full fine-tuning" if method == "full" else "an adapter"} if method else set()
        if formats.get("instruction"):
            wanted.add("instruction tuning")
        said = [_said(name, guide, rows) for name, guide in _NAMES.items() if name in wanted]
    return [line for line in said if line]


def _said(name: str, guide: _Range, rows: int) -> str:
    span = f"{guide.least:,} to {guide.most:,}" if guide.most else f"{guide.least:,} or more"
    if rows < guide.least:
        return f"{rows:,} rows are few for {name} ({span}): {guide.few}"
    if guide.most is not None and rows > guide.most:
        return f"{rows:,} rows are many for {name} ({span}): {guide.many}"
    return ""
