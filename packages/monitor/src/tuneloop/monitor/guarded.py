"""What guards find in requests, as shares held against the reference's: attacks, personal data and secrets, what they
stop. Pure.

What a guard stops is served by no version and so in no window: all requests between the first and the last record of
either side are counted. A share of what is found is one of what is looked for: under another policy it is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tuneloop.monitor.comparison import Comparison, Judgement, examples_of
from tuneloop.monitor.quality import share_rise_test
from tuneloop.monitor.signals import ATTACK_GUARDS, GUARD_BLOCKS, INJECTIONS, PERSONAL_DATA
from tuneloop.registry.guard_policy import GuardPolicy
from tuneloop.registry.nouns import RequestLine
from tuneloop.registry.traffic import FOUND

PERSONAL_GUARDS = ("personal", "secrets", "output.personal", "output.secrets")
# Of each signal the guards, none for any of them, and what they did.
COUNTED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    INJECTIONS: (ATTACK_GUARDS, FOUND),
    PERSONAL_DATA: (PERSONAL_GUARDS, (*FOUND, "redact")),
    GUARD_BLOCKS: ((), ("block",)),
}
_LACKS = {
    INJECTIONS: "no guard of {model} looked for injections, in the reference or now",
    PERSONAL_DATA: "no guard of {model} looked for personal data or secrets, or not as it did for the reference",
    GUARD_BLOCKS: "{model} has no guards, or not those it had for the reference",
}


def looks_for_personal(policy: GuardPolicy) -> bool:
    """Whether personal data or secrets are looked for, in what is asked or answered."""
    return {policy.personal, policy.secrets} != {"off"} or policy.looks_at_answers


LOOKS: dict[str, Callable[[GuardPolicy], bool]] = {PERSONAL_DATA: looks_for_personal, GUARD_BLOCKS: lambda _: True}


def is_found(signal: str, record: RequestLine) -> bool:
    """Whether a request counts for one of these signals."""
    guards, actions = COUNTED[signal]
    said = [text for guard, text in record.guards.items() if not guards or guard in guards]
    return any(text.partition(": ")[0] in actions for text in said)


def finds(signal: str, held: Comparison, alpha: float) -> Judgement:
    """Whether guards find it in more of what is asked, by one of the signals in `COUNTED`. A policy that was set late
    in the reference's time has seen too little of it to say what is normal."""
    found = held.guarded.get(signal)
    lacks = {} if signal == INJECTIONS else {"not_looked_for": True}
    if found is None:
        return Judgement("not enough data", 0, None, {"reason": _LACKS[signal].format(model=held.model)} | lacks)
    (had, of), (has, among) = found.reference, found.window
    least = len(held.reference.records) // 2
    if of < least:
        reason = f"guards of {held.model} looked for it in {of} requests of the reference; {least} are needed"
        return Judgement("not enough data", 0, None, {"reason": reason} | lacks)
    result = share_rise_test((had, of), (has, among), alpha)
    detail: dict[str, Any] = {
        "unit": "share of requests",
        "shares": {"reference": round(had / of, 4), "window": round(has / among, 4)},
        "requests": {"reference": of, "window": among},
    }
    if result.alarm:
        through = [record for record in held.window.records if is_found(signal, record)]
        detail["examples"] = examples_of(through, [1.0] * len(through))
    return Judgement("drift" if result.alarm else "none", among, result, detail)
