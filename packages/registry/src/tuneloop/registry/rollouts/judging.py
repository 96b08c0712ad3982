"""Judging the running challenger: which traffic counts, read from the database; what it shows says `canary`.

A look reads, by two queries and without its text, what became of every request since the version got its share; by a
third which answers output guards found something in, where the model has any; and the monitor's newest verdicts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tuneloop.registry.errors import Refused
from tuneloop.registry.facade import Registry
from tuneloop.registry.guard_policy import GuardPolicy
from tuneloop.registry.nouns import Check, GateReport, version_name
from tuneloop.registry.rollouts.canary import ArmSample, CheckName, Limits, judge
from tuneloop.registry.rollouts.signals import quality
from tuneloop.registry.routes.trials import trial_revisions
from tuneloop.registry.traffic import Outcome

_MISSING: dict[str, str] = {
    "guards": "the model's guard policy looks at no answers",
    "quality": "the monitor has judged no signal of the challenger on this trial",
}
_SCORES = 500  # the monitor's newest verdicts of a version: all signals of many windows


@dataclass(frozen=True)
class Trial:
    """What a challenger is judged on."""

    since: datetime  # when it got a share beside this champion (`routes.trials`): everything from then on is compared
    step_revision: int  # the first revision of its present share: this step's own samples begin there


def judgement(
    registry: Registry,
    model: str,
    version: int,
    limits: Limits,
    trial: Trial,
    *,
    min_samples: int = 30,
    named: Sequence[CheckName] | None = None,
) -> GateReport:
    """The challenger against the champion over what the split gave both in the trial, as it stands now.

    All of the trial is compared, revision by revision, but a step needs samples of its own: one without traffic shows
    nothing about its load. Where checks are `named`, those and the samples are all that is judged.
    """
    champion, now = registry.routes.current(model).champion, registry.clock()
    outcomes, opinions = registry.traffic.outcomes(model, since=trial.since, until=now)
    under: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        under.setdefault(outcome.revision or 0, []).append(outcome)
    has_guards = registry.policies.get(model, GuardPolicy).looks_at_answers
    guarded = registry.traffic.guarded(model, since=trial.since, until=now) if has_guards else frozenset()
    samples = {
        revision: (ArmSample.of(champion, those, opinions, guarded), ArmSample.of(version, those, opinions, guarded))
        for revision, those in under.items()
    }
    here = sum(challenger.answered for revision, (_, challenger) in samples.items() if revision >= trial.step_revision)
    checks = judge(tuple(samples.values()), limits, step_answered=here, min_samples=min_samples, has_guards=has_guards)
    own, theirs = (
        registry.episodes.scores(model, version=one, since=trial.since, limit=_SCORES) for one in (version, champion)
    )
    if (said := quality(own, theirs, since=trial.since, wanted=limits.signals)) is not None:
        checks = (*checks, said)
    if named is not None:
        checks = named_alone(checks, named)
    return GateReport(model=model, version=version, champion=champion, at=now, checks=checks)


def named_alone(checks: Sequence[Check], named: Sequence[CheckName]) -> tuple[Check, ...]:
    """The samples and the checks that are named; one that nothing looks at decides nothing, so it does not pass."""
    found = {check.name: check for check in checks}
    nothing = (
        Check(name=name, verdict="inconclusive", detail=f"this step asks for it, and {_MISSING[name]}")
        for name in named
        if name not in found
    )
    return (*(check for check in checks if check.name in {"samples", *named}), *nothing)


def trial_of(registry: Registry, model: str, version: int) -> Trial:
    """The running trial of a version, as `routes.trials` says what one is.

    Raises:
        Refused: it has no share beside a champion.
        Unreadable: a revision of the trial cannot be read; what went before it does not matter.
    """
    shared = trial_revisions(registry.routes.back(model), version)
    if not shared:
        raise Refused(
            f"{version_name(model, version)} has no share beside a champion; `tuneloop rollout start` gives it one"
        )
    share_bp = shared[0].split[version]
    step = list(itertools.takewhile(lambda r: r.split[version] == share_bp, shared))  # newest first, like `shared`
    return Trial(since=shared[-1].at, step_revision=step[-1].revision)
