"""The retraining worker: claims a request under a lease, trains a challenger, gates it against the champion, registers
it.

At most one version per request, whatever crashes: a worker that claims a request anew first looks for the version an
earlier attempt may have published, and then only judges it. A run that goes wrong ends its request as failed; the
worker lives on.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, NotFound, TuneloopError, Unavailable
from tuneloop.registry.gates.declared import judge_declared, waits_for_traffic
from tuneloop.registry.nouns import GateReport, RetrainingRequest, RetrainingState, Version, version_name
from tuneloop.registry.policies import GatePolicy
from tuneloop.registry.retraining.budgets import cost_of
from tuneloop.registry.retraining.states import ENDED, NEXT_STATES
from tuneloop.train.data.rows import Row
from tuneloop.train.evaluation.judge import Rules, judge
from tuneloop.train.fit.runs import remove_ended
from tuneloop.train.publishing.folder import code_commit
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.retraining.leasing import held_lease
from tuneloop.train.screen import Screen
from tuneloop.train.settings import TrainSettings, WorkerSettings
from tuneloop.train.stopping import StopFlag, Stopped

if TYPE_CHECKING:
    from tuneloop.train.job.begin import Job

_TRIED_AGAIN = timedelta(days=7)  # so long a failed request's checkpoints wait for it


class Worker:
    """One worker process; several may share a queue."""

    def __init__(
        self, registry: Registry, settings: WorkerSettings, *, threads: int, screen: Screen, stop: StopFlag
    ) -> None:
        self.id = settings.id or f"{socket.gethostname()}-{os.getpid()}"
        self._registry = registry
        self._settings = settings
        self._threads = threads
        self._screen = screen
        self._stop = stop  # of the process; each run has a flag of its own beside it
        code_commit()  # noted now: by the time of a job the files may be another commit's than what is loaded
        self._owed: list[tuple[RetrainingRequest, str]] = []  # to be put back, when the database answers again

    def run(self) -> None:
        """Work until the process is asked to stop."""
        self._screen.say(f"worker {self.id} waits for retraining requests")
        while not self._stop.is_set:
            try:
                idle = self.run_once() is None
            except Unavailable as away:
                self._screen.say(f"the registry is away, trying again: {away}")
                idle = True
            except Stopped:
                break
            if idle:
                self._stop.wait(self._settings.poll_s)
        self._screen.say(f"worker {self.id} ends")

    def run_once(self) -> RetrainingRequest | None:
        """Claim one request and see it through; None when none is waiting.

        Raises:
            Stopped: the process was asked to stop; the request waits for another worker.
            Unavailable: a part this one leans on is away; the request waits until it is there.
        """
        self._settle()
        request = self._registry.retraining.claim(self.id, self._settings.lease_s)
        if request is None:
            return None
        self._screen.say(
            f"retraining {request.id}: {request.model}, because {request.reason} (attempt {request.attempts})"
        )
        run_stop = _Linked(self._stop)
        try:
            with held_lease(self._registry.retraining, request, self._settings.lease_s, run_stop):
                done = self._see_through(request, run_stop)
        except Conflict as lost:  # whoever holds the lease now decides about the request
            self._screen.say(f"retraining {request.id}: {lost}")
            done = self._registry.retraining.get(request.id)
        except (Stopped, Unavailable) as reason:
            self._put_back(request, str(reason))
            raise
        try:
            remove_ended(self._registry.settings.home, self._is_over)
        except (TuneloopError, OSError) as error:  # the request is done; what is left lies there until the next one is
            self._screen.say(f"what ended retrainings left is not removed: {error}")
        return done

    def _is_over(self, request_id: str) -> bool:
        """Whether nobody will go on with a request's training. A failed one a person may try again for some days;
        one that is not on record may be another database's."""
        try:
            request = self._registry.retraining.get(request_id)
        except NotFound:
            return False
        may_be_tried = request.updated_at > self._registry.clock() - _TRIED_AGAIN and NEXT_STATES[request.state]
        return request.state in ENDED and not may_be_tried

    def _put_back(self, request: RetrainingRequest, reason: str) -> None:
        try:
            self._return(request, reason)
        except Unavailable as error:
            self._screen.say(f"retraining {request.id} is put back when the database answers again: {error}")
            self._owed.append((request, reason))

    def _return(self, request: RetrainingRequest, reason: str) -> None:
        try:
            self._registry.retraining.put_back(request, by=self.id, reason=reason)
        except Unavailable:
            raise
        except TuneloopError as error:  # it is somebody else's, or what ended it was written before the answer was lost
            self._screen.say(f"retraining {request.id} is not put back: {error}")

    def _settle(self) -> None:
        """Put back what could not be while the database was away: an outage costs a request none of its attempts."""
        while self._owed:
            self._return(*self._owed[0])
            self._owed.pop(0)

    def _see_through(self, request: RetrainingRequest, stop: StopFlag) -> RetrainingRequest:
        try:
            version = self._registry.versions.for_request(request.id) or self._train(request, stop)
            if version is None:
                return self._held(request)
            report = self._report(version, request)
        except (Stopped, Conflict, Unavailable):
            raise
        except Exception as error:  # noqa: BLE001 (whatever a run dies of is its request's outcome, not the worker's end)
            kind = "" if isinstance(error, TuneloopError) else f"{type(error).__name__}: "
            return self._finish(request, RetrainingState.FAILED, f"{kind}{error}")
        passed = report.verdict == "pass" or waits_for_traffic(report)
        outcome = f"{version.name} {report.verdict}: " + "; ".join(f"{c.name} {c.verdict}" for c in report.checks)
        gates = self._registry.gates
        if report.verdict == "pass" and gates.approver(version.model, version.version) is None:
            outcome += f"; it may get no share: {gates.why_not(version.model, version.version)}"
        return self._finish(
            request, RetrainingState.GATED if passed else RetrainingState.REJECTED, outcome, version.version
        )

    def _train(self, request: RetrainingRequest, stop: StopFlag) -> Version | None:
        """The version it makes; None where a budget holds the request."""
        from tuneloop.train.job.run import run_job  # noqa: PLC0415 (an idle worker carries no torch)
        from tuneloop.train.retraining.preparing import Preparation  # noqa: PLC0415

        registry = self._registry
        registry.policies.get(request.model, GatePolicy)  # one that cannot be read is noticed now, not after hours
        job = Preparation(registry, self._screen).job(request)
        if not self._begins(request, job):
            return None
        outcome = run_job(job, registry, screen=self._screen, stop=stop, threads=self._threads)
        self._screen.say(f"\n{outcome.table()}\n")
        return outcome.version

    def _begins(self, request: RetrainingRequest, job: Job) -> bool:
        """Whether the model's budgets let it train; what it will take is noted."""
        from tuneloop.train.retraining.estimate import Here, estimate  # noqa: PLC0415 (as `run_job`)
        from tuneloop.train.tuning.models import choose_device  # noqa: PLC0415

        has_gpu = choose_device().value == "cuda"
        here = Here(self._threads, has_gpu, TrainSettings.load().prices, self._settings.usd_per_hour)
        earlier = self._registry.retraining.runs(request.model)
        rows = [row for row in job.train if isinstance(row, Row)]  # all of them: a retraining learns from answers
        wanted = estimate(job.recipe.recipe, job.base, rows, earlier, here)
        hours = "not known" if wanted.hours is None else f"{wanted.hours:.3g} hours"
        cost = None if wanted.hours is None else cost_of(wanted.hours, wanted.usd_per_hour)
        self._screen.say(f"takes {hours}{'' if cost is None else f', {cost} USD'}: {wanted.basis}")
        begun = self._registry.retraining.begin(request, wanted, by=self.id)
        return begun.state is RetrainingState.RUNNING

    def _held(self, request: RetrainingRequest) -> RetrainingRequest:
        held = self._registry.retraining.get(request.id)
        until = (
            "until a person approves it" if held.held_until is None else f"until {held.held_until:%Y-%m-%d %H:%M} UTC"
        )
        self._screen.say(f"retraining {held.id} is held {until}: {held.held}")
        return held

    def _report(self, version: Version, request: RetrainingRequest) -> GateReport:
        known = self._registry.gates.latest(version.model, version.version)
        if known is not None:
            return known
        lineage = Lineage(self._registry.versions, version)
        retrain = lineage.recipe().recipe.retrain
        at = self._registry.clock()  # a policy that is set from now on is another
        policy = self._registry.policies.get(version.model, GatePolicy)
        compared = judge(
            lineage.pairs(),
            Rules.of(retrain, policy),
            model=version.model,
            version=version.version,
            champion=request.base_version,
            at=at,
        )
        checks = (*compared.checks, *judge_declared(self._registry, version, policy))
        report = compared.model_copy(update={"checks": checks})
        self._registry.gates.record(report)
        name = version_name(request.model, request.base_version)
        for check in report.checks:
            self._screen.say(f"{version.name} against {name}: {check.name}: {check.verdict} ({check.detail})")
        return report

    def _finish(
        self, request: RetrainingRequest, state: RetrainingState, outcome: str, version: int | None = None
    ) -> RetrainingRequest:
        self._screen.say(f"retraining {request.id} is {state}: {outcome}")
        return self._registry.retraining.finish(request, state, by=self.id, outcome=outcome, result_version=version)


class _Linked(StopFlag):
    """A run's own flag that is also raised when the process is asked to stop."""

    def __init__(self, parent: StopFlag) -> None:
        super().__init__()
        self._parent = parent

    def check(self) -> None:
        """As `StopFlag.check`, for both flags."""
        self._parent.check()
        super().check()
