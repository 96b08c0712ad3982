"""Gate reports and approvals: whether a version may serve, and who said so."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from tuneloop.registry import audit
from tuneloop.registry.access.roles import Role
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of, write_last
from tuneloop.registry.errors import InvalidInput, Refused, Unreadable
from tuneloop.registry.expiry import expires_at
from tuneloop.registry.nouns import Approval, GateReport, version_name
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.policies import GatePolicy, Policies
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.rollouts.store import Rollouts
from tuneloop.registry.routes.store import Routes
from tuneloop.registry.tables import approvals, gate_reports


class Gates:
    """A version may serve when its newest gate report passes or a person approved it, and nobody has revoked that.

    A report's pass counts as long as what it was judged by stands: the champion, and the gate policy.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        policies: Policies,
        routes: Routes,
        rollouts: Rollouts,
    ) -> None:
        self._db = database
        self._clock = clock
        self._policies = policies
        self._routes = routes
        self._rollouts = rollouts

    def record(self, report: GateReport, *, by: str = "gate", reason: str | None = None) -> None:
        """Store a judgement; `by` and `reason` are those of who had it judged, where somebody did."""
        name = version_name(report.model, report.version)
        with self._db.writing() as connection:
            connection.execute(sa.insert(gate_reports).values(**row_of(report, gate_reports), verdict=report.verdict))
            detail: dict[str, Any] = {"verdict": report.verdict, "champion": report.champion}
            detail |= {} if reason is None else {"reason": reason}
            audit.record(connection, at=report.at, actor=by, action="gate.judge", subject=name, detail=detail)

    def all(self, model: str, version: int) -> Rows[GateReport]:
        """Every judgement of a version, the newest first."""
        here = sa.and_(gate_reports.c.model == model, gate_reports.c.version == version)
        with self._db.reading() as connection:
            rows = connection.execute(sa.select(gate_reports).where(here).order_by(gate_reports.c.id.desc())).mappings()
            return readable(GateReport, rows)

    def latest(self, model: str, version: int) -> GateReport | None:
        """The newest judgement of a version; None when it was never judged."""
        here = sa.and_(gate_reports.c.model == model, gate_reports.c.version == version)
        with self._db.reading() as connection:
            row = (
                connection.execute(sa.select(gate_reports).where(here).order_by(gate_reports.c.id.desc()).limit(1))
                .mappings()
                .first()
            )
        return None if row is None else noun_of(GateReport, row)

    def approve(
        self,
        model: str,
        version: int,
        *,
        by: str,
        reason: str,
        ttl_s: float | None = None,
        role: Role | None = None,
        trained_by: str | None = None,
    ) -> Approval:
        """Let a person answer for a version, for `ttl_s` seconds or for good; on record.

        `role` is that of the control plane's token it comes from; None: from the command line. `trained_by` is the
        version's: where the gate policy asks for another person than that, it must be known.

        Raises:
            InvalidInput: nobody or no reason is named, or the time is none.
            Refused: the gate policy does not take this person's approval, or asks for a token's role.
        """
        if role is None and self._policies.get(model, GatePolicy).approver_role:
            raise Refused(f"{version_name(model, version)} cannot be approved here: {_by_token(model)}")
        now = self._clock()
        until = expires_at(now, ttl_s, "an approval")
        decided = Approval(
            model=model,
            version=version,
            granted=True,
            by=by,
            reason=reason,
            at=now,
            expires_at=until,
            role=role,
            trained_by=trained_by,
        )
        if (against := self._against(decided)) is not None:
            raise Refused(against)
        return self._decide(decided)

    def revoke(self, model: str, version: int, *, by: str, reason: str, role: Role | None = None) -> Approval:
        """Let a version get no more traffic, whatever its gate says, until a person approves it again; on record.

        What serves already goes on: taking it back is `rolling_back.rollback`.

        Raises:
            InvalidInput: nobody or no reason is named.
        """
        now = self._clock()
        decided = Approval(model=model, version=version, granted=False, by=by, reason=reason, at=now, role=role)
        return self._decide(decided)

    def decisions(self, model: str, version: int) -> Rows[Approval]:
        """What people decided about a version, the newest first."""
        here = sa.and_(approvals.c.model == model, approvals.c.version == version)
        with self._db.reading() as connection:
            rows = connection.execute(sa.select(approvals).where(here).order_by(approvals.c.id.desc())).mappings()
            return readable(Approval, rows)

    def approver(self, model: str, version: int) -> str | None:
        """Who approved the version: a person, `gate` when its newest report passes, or nobody.

        A person's newest decision that has not expired goes before the gate's, whose pass may be over (`_over`). Where
        the gate policy asks for a person the gate lets nothing in; where it asks for a token's role, approvals without
        one do not count, and where it asks for another person than the trainer, no other approval does.
        """
        policy = self._policies.get(model, GatePolicy)
        decided = self._newest(model, version, policy, in_force=True)
        if decided is not None:
            return decided.by if decided.granted and self._against(decided) is None else None
        report = self.latest(model, version)
        if report is None or report.verdict != "pass" or policy.person:
            return None
        return "gate" if self._over(report, policy) is None else None

    def why_not(self, model: str, version: int) -> str:
        """Why nobody approves the version, in words that follow its name."""
        policy = self._policies.get(model, GatePolicy)
        decided = self._newest(model, version, policy, in_force=True)
        if decided is not None and not decided.granted:
            return f"its approval was revoked by {decided.by}: {decided.reason}"
        if decided is not None and (against := self._against(decided)) is not None:
            return against
        report = self.latest(model, version)
        gate = f"its gate says {report.verdict}" if report else "no gate has judged it"
        if report is not None and report.verdict == "pass":
            person = f"{gate}, and the gate policy of {model} asks for a person too"
            gate = person if policy.person else self._over(report, policy) or gate
        newest = self._newest(model, version, GatePolicy(), in_force=True)
        if newest is not None and newest.granted:
            return f"the approval by {newest.by} does not count: {_by_token(model)}; and {gate}"
        expired = self._newest(model, version, policy, in_force=False)
        if expired is not None and expired.expires_at is not None:
            return f"the approval by {expired.by} expired at {expired.expires_at:%Y-%m-%d %H:%M} UTC, and {gate}"
        return gate

    def page(self, model: str, version: int, ask: Ask) -> Page[Approval]:
        """What people decided about a version, the newest first, page by page."""
        here = sa.and_(approvals.c.model == model, approvals.c.version == version)
        return page(self._db, Approval, sa.select(approvals).where(here), (approvals.c.id,), ask)

    def _over(self, report: GateReport, policy: GatePolicy) -> str | None:
        """Why a report's pass lets nothing in any more; None where it does.

        It was held against a champion by a policy, and says nothing of another. What was champion before stays free,
        so that no rollback waits for a gate; so does what is being rolled out, which was let in when that was declared.
        Which policy it was judged by is told by time: that in force when the judgement began.
        """
        model, version, found = report.model, report.version, self._routes.history(report.model, limit=1)
        if found.unreadable:
            return "its gate says pass, and whether against the present champion is not known: the route is damaged"
        route = found[0] if found else None
        again = f"judge it again: `tuneloop gate {version_name(model, version)} --judge --by YOU --reason WHY`"
        if route is not None and route.champion not in {report.champion, version}:
            held = "no champion" if report.champion is None else version_name(model, report.champion)
            now = version_name(model, route.champion)
            why = f"its gate held it against {held}, and {now} is the champion now; {again}"
        elif not self._judged_by(policy, report):
            why = f"its gate says pass by a gate policy that has been revised since; {again}"
        else:
            return None
        if route is None:
            return why
        rollouts = self._rollouts.all(model, states=frozenset({RolloutState.RUNNING}))
        if any((one.version, one.champion) == (version, route.champion) for one in rollouts):
            return None
        return None if self._routes.has_led(model, version) else why

    def _judged_by(self, policy: GatePolicy, report: GateReport) -> bool:
        """Whether a policy judges as that did which was in force when a report was begun."""
        try:
            return self._policies.get(report.model, GatePolicy, at=report.at).judging == policy.judging
        except Unreadable:  # what it asked for is not known
            return False

    def _newest(self, model: str, version: int, policy: GatePolicy, *, in_force: bool) -> Approval | None:
        query = sa.select(approvals).where(approvals.c.model == model, approvals.c.version == version)
        if in_force:
            query = query.where(sa.or_(approvals.c.expires_at.is_(None), approvals.c.expires_at > self._clock()))
        if policy.approver_role:
            query = query.where(sa.or_(approvals.c.role.is_not(None), sa.not_(approvals.c.granted)))
        with self._db.reading() as connection:
            row = connection.execute(query.order_by(approvals.c.id.desc()).limit(1)).mappings().first()
        return None if row is None else noun_of(Approval, row)

    def _against(self, approval: Approval) -> str | None:
        """Why the gate policy does not take an approval; None where it does."""
        if self._policies.get(approval.model, GatePolicy).approver == "anyone" or not approval.by_the_trainer:
            return None
        name = version_name(approval.model, approval.version)
        asked = f"the gate policy of {approval.model} asks for an approver other than the trainer"
        if approval.trained_by is None:
            return (
                f"{asked}, and who trained {name} was not noted when it was approved: approve it anew, or, where "
                f"`tuneloop show {name}` names nobody, train it again with `tuneloop train --by`"
            )
        return f"{asked}, and {approval.trained_by} trained {name}: somebody else must approve it"

    def _decide(self, decided: Approval) -> Approval:
        what = "an approval" if decided.granted else "revoking an approval"
        if not decided.by.strip() or not decided.reason.strip():
            raise InvalidInput(f"{what} needs --by and --reason: it is kept for ever")
        detail = {"reason": decided.reason}
        detail |= {"expires_at": decided.expires_at.isoformat()} if decided.expires_at else {}
        detail |= {"role": str(decided.role)} if decided.role else {}
        detail |= {"trained_by": decided.trained_by} if decided.trained_by else {}
        action = "version.approve" if decided.granted else "version.revoke"
        with self._db.writing() as connection:
            name = version_name(decided.model, decided.version)
            audit.record(connection, at=decided.at, actor=decided.by, action=action, subject=name, detail=detail)
            # After its entry, which one transaction writes at a time: the newest decision is the newest on record.
            write = sa.insert(approvals).values(**row_of(decided, approvals))
            write_last(connection, lambda: connection.execute(write))
        return decided


def _by_token(model: str) -> str:
    return (
        f"the gate policy of {model} asks for approvals through the control plane, by a token with the role approver "
        "or admin"
    )
