"""Gate reports and approvals: whether a version may serve, and who said so."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa

from tuneloop.registry import audit
from tuneloop.registry.database import Database, noun_of, row_of
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import GateReport, version_name
from tuneloop.registry.tables import approvals, gate_reports


class Gates:
    """A version may serve when its newest gate report passes or a person approved it."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def record(self, report: GateReport) -> None:
        """Store a judgement."""
        name = version_name(report.model, report.version)
        with self._db.writing() as connection:
            connection.execute(sa.insert(gate_reports).values(**row_of(report, gate_reports), verdict=report.verdict))
            detail = {"verdict": report.verdict, "champion": report.champion}
            audit.record(connection, at=report.at, actor="gate", action="gate.judge", subject=name, detail=detail)

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

    def approve(self, model: str, version: int, *, by: str, reason: str) -> None:
        """Let a person answer for a version; on record."""
        if not by.strip() or not reason.strip():
            raise InvalidInput("an approval needs --by and --reason: it is kept for ever")
        now = self._clock()
        with self._db.writing() as connection:
            said = {"by": by, "reason": reason, "at": now}
            insert = self._db.insert(approvals).values(model=model, version=version, **said)
            connection.execute(insert.on_conflict_do_update(index_elements=["model", "version"], set_=said))
            name = version_name(model, version)
            audit.record(
                connection, at=now, actor=by, action="version.approve", subject=name, detail={"reason": reason}
            )

    def approver(self, model: str, version: int) -> str | None:
        """Who approved the version: a person, `gate` when its newest report passes, or nobody."""
        here = sa.and_(approvals.c.model == model, approvals.c.version == version)
        with self._db.reading() as connection:
            found = connection.execute(sa.select(approvals.c.by).where(here)).scalar()
        if found is not None:
            return str(found)
        report = self.latest(model, version)
        return "gate" if report is not None and report.verdict == "pass" else None
