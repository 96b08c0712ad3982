"""Guards on what comes in: injection and jailbreaks, hidden text, secrets and personal data, length.

`Guards(policy).judge(text)` is pure and its time is bounded by the policy's `max_characters`: no network, no database,
and files (rules' words, the classifier's weights) are read once, when the object is made. Nothing here imports numpy;
Presidio is imported by the first text that may hold personal data.
"""

from __future__ import annotations

from tuneloop.registry.guard_policy import GuardAction, GuardPolicy
from tuneloop.serve.guards.judge import Guards
from tuneloop.serve.guards.verdict import Reason, Verdict

__all__ = ["GuardAction", "GuardPolicy", "Guards", "Reason", "Verdict"]
