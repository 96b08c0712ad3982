"""The rollouts on record: declared once, gone on with under a lease, ended once.

One is open per model at most. Every write of a controller is fenced: with a lease that ran out, or after somebody
paused, resumed or ended the rollout, it is refused and nothing it belongs to is written either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.database import Database, Rows, noun_of, readable, row_of
from tuneloop.registry.errors import Conflict, NotFound
from tuneloop.registry.nouns import Check, GateReport, Route, kept
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.rollouts.rollout import OPEN, Rollout, RolloutState, Taken
from tuneloop.registry.routes.claims import claim_for_rollout
from tuneloop.registry.tables import audit as entries
from tuneloop.registry.tables import rollouts

S = RolloutState
LATELY_S = 3_600.0
_TAKEN_OVER = "rollout.take_over"
_ACTOR = "controller"
_AHEAD = 4  # leases: so much may the clocks of two machines differ
_FREE = {"lease_owner": None, "lease_until": None}
_LEASE = {"lease_owner", "lease_until", "fencing_token"}


class Rollouts:
    """Declaring, claiming, going on with and ending rollouts."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def get(self, rollout_id: str) -> Rollout:
        """One rollout.

        Raises:
            NotFound: there is none of that id.
        """
        with self._db.reading() as connection:
            row = connection.execute(sa.select(rollouts).where(rollouts.c.id == rollout_id)).mappings().first()
        if row is None:
            raise NotFound(f"no rollout {rollout_id!r}; `tuneloop rollout list` shows them")
        return noun_of(Rollout, row)

    def all(self, model: str | None = None, *, states: Collection[RolloutState] = frozenset(S)) -> Rows[Rollout]:
        """Rollouts in these states, the newest first."""
        query = sa.select(rollouts).where(rollouts.c.state.in_(states))
        if model is not None:
            query = query.where(rollouts.c.model == model)
        with self._db.reading() as connection:
            rows = connection.execute(query.order_by(rollouts.c.created_at.desc(), rollouts.c.id)).mappings()
            return readable(Rollout, rows)

    def page(self, ask: Ask, model: str | None = None) -> Page[Rollout]:
        """The same, page by page."""
        query = sa.select(rollouts) if model is None else sa.select(rollouts).where(rollouts.c.model == model)
        return page(self._db, Rollout, query, (rollouts.c.created_at, rollouts.c.id), ask)

    def open(self, model: str) -> Rollout | None:
        """The rollout of a model that runs or is paused."""
        return next(iter(self.all(model, states=OPEN).whole()), None)

    def declare(self, rollout: Rollout, *, instead_of: Rollout | None = None) -> Rollout:
        """Put a new rollout on record, in place of one that is open.

        Raises:
            Refused: an experiment of the model runs.
            Conflict: somebody else declared, or changed the one it takes the place of, at the same moment.
        """
        with self._db.writing() as connection:
            claim_for_rollout(self._db, connection, rollout.model)
            if instead_of is not None:
                ended = f"{rollout.by} declared {rollout.id} of {rollout.name} in its place"
                self._change(connection, instead_of, OPEN, state=S.ABORTED, outcome=ended, **_FREE)
            try:
                connection.execute(sa.insert(rollouts).values(**row_of(rollout, rollouts)))
            except sa.exc.IntegrityError:
                raise Conflict(
                    f"somebody else declared a rollout of {rollout.model} just now; `tuneloop rollout status "
                    f"{rollout.model}` shows it"
                ) from None
            detail = {
                "rollout": rollout.id,
                "plan": kept(rollout.plan),
                "revision": rollout.revision,
                "instead_of": instead_of.id if instead_of else None,
            }
            self._note(connection, rollout, "declare", rollout.by, rollout.reason, detail)
        return rollout

    def claim(self, rollout_id: str, owner: str, lease_s: float) -> Rollout | None:
        """Take or keep the lease of a running rollout; None where another holds it, or it does not run.

        Writes only where the lease changes hands or half of it is over. One that ends later than any could was written
        by a clock that was ahead: it holds nobody off.
        """
        found, now = self.get(rollout_id), self._clock()
        if found.state is not S.RUNNING:
            return None
        left = found.lease_until - now if found.lease_until is not None else timedelta(seconds=-1)
        stands = timedelta(0) <= left <= timedelta(seconds=_AHEAD * lease_s)
        mine = found.lease_owner == owner and left > timedelta(0)
        if mine and stands and left > timedelta(seconds=lease_s / 2):
            return found
        if not mine and stands and found.lease_owner is not None:
            return None
        token = found.fencing_token + (0 if mine else 1)
        until = now + timedelta(seconds=lease_s)
        try:
            with self._db.writing() as connection:
                held = {"lease_owner": owner, "lease_until": until, "fencing_token": token}
                claimed = self._change(connection, found, {S.RUNNING}, **held)
                if found.lease_owner not in {None, owner}:  # who ends in order lets go of it
                    why = f"{found.lease_owner} did not let go of its lease"
                    detail: dict[str, object] = {
                        "rollout": found.id,
                        "owner": owner,
                        "lease_until": str(found.lease_until),
                    }
                    self._note(connection, found, "take_over", _ACTOR, why, detail)
                return claimed
        except Conflict:  # another was first
            return None

    def taken_over(self, rollout: Rollout) -> int:
        """How often, within `LATELY_S`, a controller took over its lease from one that had not let go of it."""
        since = self._clock() - timedelta(seconds=LATELY_S)
        here = sa.and_(entries.c.subject == rollout.name, entries.c.action == _TAKEN_OVER, entries.c.at > since)
        about = here & (entries.c.detail["rollout"].as_string() == rollout.id)
        with self._db.reading() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(entries).where(about)).scalar() or 0)

    def renew(self, held: Rollout, lease_s: float) -> None:
        """Keep the lease while something takes long.

        Raises:
            Conflict: it was lost.
        """
        with self._db.writing() as connection:
            until = self._clock() + timedelta(seconds=lease_s)
            self._change(connection, held, {S.RUNNING}, lease_until=until)

    def release(self, held: Rollout) -> None:
        """Let the next controller go on at once; a lease that is lost already is none to release.

        Since when nobody holds it stays to be seen.
        """
        try:
            with self._db.writing() as connection:
                self._change(connection, held, {S.RUNNING}, lease_owner=None, lease_until=self._clock())
        except Conflict:
            return

    def keep(self, held: Rollout, report: GateReport) -> None:
        """Keep a judgement that decided nothing, for whoever looks.

        Raises:
            Conflict: the lease was lost.
        """
        with self._db.writing() as connection:
            self._change(connection, held, {S.RUNNING}, checks=_plain(report.checks))

    def step(
        self, connection: Connection, held: Rollout, step: int, route: Route, report: GateReport | None
    ) -> Rollout:
        """The step that a route's revision gives, in the transaction that writes it."""
        share_bp = route.split[held.version]
        taken = Taken(weight_bp=share_bp, revision=route.revision, at=route.at)
        return self._change(
            connection,
            held,
            {S.RUNNING},
            step=step,
            since=route.at,
            revision=route.revision,
            taken=_plain((*_judged(held, report), taken)),
            checks=_plain(report.checks if report else ()),
        )

    def follow(self, held: Rollout, route: Route) -> Rollout:
        """Go on from a newer revision that leaves everybody where the rollout had put them.

        Raises:
            Conflict: the lease was lost.
        """
        with self._db.writing() as connection:
            return self._change(connection, held, {S.RUNNING}, revision=route.revision)

    def end(
        self,
        connection: Connection,
        rollout: Rollout,
        state: RolloutState,
        outcome: str,
        *,
        report: GateReport | None = None,
        route: Route | None = None,
    ) -> Rollout:
        """Pause or end a running rollout with its verdict on record, in the caller's transaction.

        `route` is the revision that it ends with, where one does.
        """
        values: dict[str, object] = {"state": state, "outcome": outcome, **_FREE}
        values["fencing_token"] = rollout.fencing_token + 1
        taken = _judged(rollout, report)
        if route is not None:
            values["revision"] = route.revision
            share_bp = route.split.get(rollout.version, 0)
            taken = (*taken, Taken(weight_bp=share_bp, revision=route.revision, at=route.at))
        if report is not None:
            values["checks"] = _plain(report.checks)
        values["taken"] = _plain(taken)
        ended = self._change(connection, rollout, {S.RUNNING}, **values)
        detail: dict[str, object] = {
            "rollout": rollout.id,
            "outcome": "promoted" if state is S.SHIPPED else str(state),
            "verdict": report.verdict if report else None,
            "checks": _plain(report.checks if report else ()),
        }
        self._note(connection, rollout, "verdict", rollout.by, outcome, detail)
        return ended

    def resume(self, paused: Rollout, at: Rollout, *, by: str, reason: str) -> Rollout:
        """Let a paused rollout run on from where the route stands now: `at` is it as it begins anew.

        Raises:
            Refused: an experiment of the model runs.
            Conflict: somebody changed it meanwhile.
        """
        with self._db.writing() as connection:
            claim_for_rollout(self._db, connection, paused.model)
            resumed = self._change(
                connection,
                paused,
                {S.PAUSED},
                state=S.RUNNING,
                outcome="",
                champion=at.champion,
                step=at.step,
                since=at.since,
                revision=at.revision,
                taken=_plain((*paused.taken, *at.taken)),
                fencing_token=paused.fencing_token + 1,
                **_FREE,
            )
            detail = {"rollout": paused.id, "revision": at.revision}
            self._note(connection, paused, "resume", by, reason, detail)
        return resumed

    def abort(self, connection: Connection, rollout: Rollout, *, by: str, reason: str, revision: int) -> Rollout:
        """End an open rollout because a person says so, in the caller's transaction."""
        ended = self._change(
            connection,
            rollout,
            OPEN,
            state=S.ABORTED,
            outcome=f"{by}: {reason}",
            revision=revision,
            fencing_token=rollout.fencing_token + 1,
            **_FREE,
        )
        self._note(connection, rollout, "abort", by, reason, {"rollout": rollout.id, "revision": revision})
        return ended

    def _change(
        self, connection: Connection, seen: Rollout, states: Collection[RolloutState], **values: object
    ) -> Rollout:
        """The fence: nothing is written to what is no longer as it was seen. A lease alone changes no rollout."""
        here = sa.and_(
            rollouts.c.id == seen.id, rollouts.c.fencing_token == seen.fencing_token, rollouts.c.state.in_(states)
        )
        if not values.keys() <= _LEASE:
            values["updated_at"] = self._clock()
        done = connection.execute(sa.update(rollouts).where(here).values(**values)).rowcount
        row = connection.execute(sa.select(rollouts).where(rollouts.c.id == seen.id)).mappings().one()
        if done == 0:
            what = (
                f"it is {row['state']} ({row['outcome']})" if row["outcome"] else "another controller went on with it"
            )
            raise Conflict(f"rollout {seen.id} of {seen.name}: {what}; nothing was changed")
        return noun_of(Rollout, row)

    def _note(
        self, connection: Connection, rollout: Rollout, what: str, by: str, reason: str, detail: dict[str, object]
    ) -> None:
        audit.record(
            connection,
            at=self._clock(),
            actor=by,
            action=f"rollout.{what}",
            subject=rollout.name,
            detail={**detail, "reason": reason},
        )


def _judged(held: Rollout, report: GateReport | None) -> tuple[Taken, ...]:
    """The shares so far, the last one with the judgement that it is left by."""
    if report is None or not held.taken:
        return held.taken
    *before, last = held.taken
    return (*before, last.model_copy(update={"checks": report.checks}))


def _plain(items: tuple[Taken, ...] | tuple[Check, ...]) -> list[dict[str, object]]:
    return [kept(item) for item in items]
