"""What people do to rollouts: declare one, let a paused one go on, end one, and follow it in the foreground."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

from sqlalchemy.engine import Connection

from tuneloop.registry.errors import Conflict, InvalidInput, Refused, Unavailable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Arm, GateReport, Route, TrialSignal, version_name
from tuneloop.registry.rollouts.controller import LOOK_COST, Controller
from tuneloop.registry.rollouts.rollout import Rollout, RolloutPlan, RolloutState, Taken, new_rollout_id, worst
from tuneloop.registry.routes.claims import expect_no_experiment
from tuneloop.registry.routes.promotion import Change, set_route
from tuneloop.registry.routes.staging import check_approved
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within

S = RolloutState
LOOK_EVERY_S = 0.5
SAY_EVERY_S = 30.0  # what a rollout waits for, where nothing else is to be said
_TRIES = 5
_TAKEN_BACK = "route.rollback"  # what it is to the route, whoever asks for it


def declare(registry: Registry, model: str, version: int, plan: RolloutPlan, change: Change) -> Rollout:
    """Put a rollout on record; a controller goes on with it. A version that has a share begins at the step it reached.

    It takes the place of an open rollout of the same version, and of a paused one whose version has no share.

    Raises:
        NotFound: there is no route, or no such version.
        Refused: it is the champion already, another version has a share or a running rollout, an experiment of the
            model runs, nobody approved it, or it names a signal that no monitor judges.
        Conflict: somebody declared another at the same moment.
    """
    name, route = version_name(model, version), registry.route(model)
    _expect_no_experiment(registry, model)
    if route.champion == version:
        raise Refused(f"{name} is the champion already")
    there = registry.rollouts.open(model)
    if others := [a.version for a in route.arms[:-1] if a.weight_bp > 0 and a.version != version]:
        its_own = there is not None and others == [there.version]  # an abort takes no other share away
        raise Refused(
            f"{', '.join(version_name(model, one) for one in others)} has a share of {model}'s traffic; one rollout at "
            f"a time: finish it, or take the share away with `tuneloop {'rollout abort' if its_own else 'rollback'} "
            f"{model}`"
        )
    if there is not None and there.version != version and there.state is S.RUNNING:
        raise Refused(
            f"{there.name} is being rolled out ({there.id}, declared by {there.by}); one rollout at a time: wait for "
            f"it, or end it with `tuneloop rollout abort {model}`"
        )
    if version not in route.split:
        mlflow_within(registry, lambda: registry.versions.get(model, version), LOOKUP_TIMEOUT_S)
    check_approved(registry, model, route, (Arm(version=version, weight_bp=FULL_SHARE_BP),))
    _expect_judged(registry, route, plan)
    return registry.rollouts.declare(_beginning(registry, route, version, plan, change), instead_of=there)


def resume(registry: Registry, model: str, change: Change) -> Rollout:
    """Let a paused rollout go on from where the route stands now.

    Raises:
        InvalidInput: none is open.
        Refused: it runs already, its version is the champion, another version has a share, an experiment of the model
            runs, or nobody approves it now.
        Conflict: somebody changed it meanwhile.
    """
    paused = registry.rollouts.open(model)
    only = f"only a paused one can be resumed: `tuneloop rollout list --model {model}`"
    if paused is None:
        raise InvalidInput(f"no rollout of {model} is open; {only}")
    if paused.state is not S.PAUSED:
        raise Refused(f"{paused.id} of {paused.name} is {paused.state}; {only}")
    _expect_no_experiment(registry, model)
    route = registry.route(model)
    if route.champion == paused.version:
        raise Refused(f"{paused.name} is the champion already; end its rollout: `tuneloop rollout abort {model}`")
    if any(arm.weight_bp > 0 and arm.version != paused.version for arm in route.arms[:-1]):
        raise Refused(f"another version has a share of {model} ({route.split_text}); take it away, then resume")
    check_approved(registry, model, route, (Arm(version=paused.version, weight_bp=FULL_SHARE_BP),))
    at = _beginning(registry, route, paused.version, paused.plan, change)
    return registry.rollouts.resume(paused, at, by=change.by, reason=change.reason)


def _expect_judged(registry: Registry, route: Route, plan: RolloutPlan) -> None:
    """What no monitor reads of the champion it reads of no challenger either: such a rollout could only be paused."""
    for signal in plan.limits.signals:
        if signal in get_args(
            TrialSignal
        ):  # only challengers have those; any judgement shows that a monitor watches the model
            if not registry.episodes.scores(route.model, limit=1):
                raise Refused(
                    f"limits.signals: no monitor has judged anything of {route.model}, so none would judge {signal}; "
                    "let `tuneloop monitor` run until it has (`tuneloop drift windows`), or leave the signal out"
                )
        elif not registry.episodes.scores(route.model, version=route.champion, signal=signal, limit=1):
            raise Refused(
                f"limits.signals: the monitor has not judged {signal} of {version_name(route.model, route.champion)}, "
                "so it would not of a challenger; let a monitor run with canary_every_s above 0 until it has, or leave "
                "the signal out"
            )


def _expect_no_experiment(registry: Registry, model: str) -> None:
    """Asked first, since it is the reason for what else would be refused; and again when the rollout is let run."""
    with registry.database.reading() as connection:
        expect_no_experiment(connection, model)


def abort(
    registry: Registry, model: str, change: Change, *, expected_revision: int | None = None
) -> tuple[Rollout, Route]:
    """End the open rollout of a model and take its version's share away; needs no controller, and loads nothing.

    Shares that others have stay: a person, or an experiment, gave them. So does that of the rollout's own version where
    a running experiment names it.

    `expected_revision` is the route's as the caller saw it; None ends whatever is there.

    Returns:
        The rollout as it was when it was ended, and the route that stands now.

    Raises:
        InvalidInput: no rollout is open; a share that none gave stays.
        Conflict, Unavailable: like `set_route`.
    """
    for _ in range(_TRIES - 1):
        now = registry.route(model)
        if expected_revision is not None and now.revision != expected_revision:
            raise registry.routes.lost_race(model, expected_revision, now)
        try:
            return _abort(registry, model, change)
        except Conflict:  # a controller went on with it at this very moment: a person who ends it comes before that
            continue
    return _abort(registry, model, change)


def _abort(registry: Registry, model: str, change: Change) -> tuple[Rollout, Route]:
    there, route = registry.rollouts.open(model), registry.route(model)
    if there is None:
        raise InvalidInput(
            f"no rollout of {model} is open; `tuneloop rollback {model}` takes a canary's share away, or a promotion "
            "back"
        )

    def end(connection: Connection, written: Route) -> None:
        registry.rollouts.abort(connection, there, by=change.by, reason=change.reason, revision=written.revision)

    experiment = registry.experiments.running(model)
    tried = experiment is not None and there.version in experiment.declaration.arms
    if there.version != route.champion and route.split.get(there.version, 0) > 0 and not tried:
        split = route.split | {there.version: 0}
        split[route.champion] += route.split[there.version]
        return there, set_route(
            registry, model, split, change, expected_revision=route.revision, action=_TAKEN_BACK, follow=end
        )
    with registry.database.writing() as connection:
        end(connection, route)
    return there, route


def _beginning(registry: Registry, route: Route, version: int, plan: RolloutPlan, change: Change) -> Rollout:
    now, share_bp = registry.clock(), route.split.get(version, 0)
    step = plan.reached(share_bp)
    found = Taken(weight_bp=share_bp, revision=route.revision, at=now, found=True)
    return Rollout(
        id=new_rollout_id(),
        model=route.model,
        version=version,
        champion=route.champion,
        plan=plan,
        step=step,
        since=now,
        revision=route.revision,
        taken=() if step is None else (found,),
        by=change.by,
        reason=change.reason,
        created_at=now,
        updated_at=now,
    )


def drive(registry: Registry, rollout: Rollout, say: Callable[[str], None]) -> GateReport:
    """Go on with a rollout in the foreground until it ends or pauses, or follow whoever holds it, and say each step.

    Returns:
        The judgement that it was shipped by.

    Raises:
        Refused: it was rolled back, paused or aborted.
        Unavailable: a gateway is late to follow the last change, which is written.
    """
    controller, told = Controller(registry), _Told(say)
    try:
        while True:
            looked, late = time.monotonic(), None
            try:
                controller.look(rollout.id)
            except Conflict:  # somebody was first; what they wrote is told below
                pass
            except Unavailable as error:
                late = error
            now = registry.rollouts.get(rollout.id)
            told.tell(now)
            if now.state is not S.RUNNING:
                return _concluded(now, late)
            if late is not None:
                say(f"  {late}")
            told.wait(now, lambda: bool(registry.fleet.engines()))
            time.sleep(max(LOOK_EVERY_S, LOOK_COST * (time.monotonic() - looked)))
    except KeyboardInterrupt:
        say(
            f"{rollout.id} stays open, and a controller goes on with it; "
            f"`tuneloop rollout abort {rollout.model}` ends it"
        )
        raise
    finally:
        controller.release()


@dataclass
class _Told:
    """What of a rollout has been said."""

    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    shares: int = 0
    judged: int = 0
    said_at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.said_at_s = self.clock()

    def tell(self, now: Rollout) -> None:
        """Say the shares that are new, each followed by the judgement that it was left by."""
        for number, taken in enumerate(now.taken):
            if number >= self.shares:
                self.say(_share_line(now, taken.weight_bp, taken.revision, found=taken.found))
                self.shares, self.said_at_s = number + 1, self.clock()
            if number >= self.judged and taken.checks and number < len(now.taken) - 1:
                said = "; ".join(f"{check.name}: {check.verdict} ({check.detail})" for check in taken.checks)
                self.say(f"  {said}")
                self.judged = number + 1

    def wait(self, now: Rollout, any_engine: Callable[[], bool]) -> None:
        """Every half a minute, say what the rollout waits for."""
        if self.clock() - self.said_at_s < SAY_EVERY_S:
            return
        self.said_at_s = self.clock()
        open_checks = worst(now.checks, "inconclusive") or "the step's least time"
        nobody = "" if any_engine() else "; no engine is live: start one with `tuneloop engine` or `tuneloop up`"
        self.say(f"  waiting for {open_checks}{nobody}")


def _share_line(rollout: Rollout, share_bp: int, revision: int, *, found: bool) -> str:
    share = f"revision {revision}: {rollout.name}"
    if found:
        return f"{share} has {share_bp / 100:g} % already; judging there first"
    if share_bp == FULL_SHARE_BP:
        return f"{share} 100 %"
    return f"{share} {share_bp / 100:g} %, {version_name(rollout.model, rollout.champion)} the rest"


def _concluded(over: Rollout, late: Unavailable | None) -> GateReport:
    """The end of a rollout as whoever waits for it is told."""
    if late is not None:
        became = "promoted" if over.state is S.SHIPPED else str(over.state)
        why = f" ({over.outcome})" if over.state is S.ROLLED_BACK else ""
        raise Unavailable(f"{over.name} was {became}{why}; {late}") from late
    if over.state is S.SHIPPED:
        return over.report
    if over.state is S.PAUSED:
        share_bp = over.taken[-1].weight_bp if over.taken else 0
        raise Refused(
            f"paused at {share_bp / 100:g} %, {over.outcome}; `tuneloop rollout resume {over.model}` goes on, "
            f"`tuneloop promote {over.name}` does not wait, `tuneloop rollout abort {over.model}` takes the share away"
        )
    raise Refused(f"{over.name} was {over.state}: {over.outcome}")
