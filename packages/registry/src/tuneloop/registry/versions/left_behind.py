"""What a registration that was killed has left: completed where MLflow has its version already, undone elsewhere.

A registration begins with `version.register` in the audit log and ends with `version.registered`, or with
`version.not_registered`; its run carries the digest of its files from the moment it is there. So between any two writes
it can be told what was begun, and what is missing of its end.
"""

from __future__ import annotations

from datetime import UTC, datetime

from tuneloop.registry import audit
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import AuditEntry, Version

BEGUN, DONE, UNDONE = "version.register", "version.registered", "version.not_registered"
_EVER = {"since": datetime(1970, 1, 1, tzinfo=UTC), "until": datetime(9999, 1, 1, tzinfo=UTC)}
_ALL = 100_000  # more registrations than one model ever has


def settle(registry: Registry, model: str, digest: str, *, by: str) -> Version | None:
    """End what is left of registering these files; the caller is the only one who registers them now.

    Returns:
        The version that had been made and is whole now; None: there was nothing to complete.
    """
    versions = registry.versions
    made, runs = versions.holding(model, digest), versions.registrations(model, digest)
    whole = made if made is not None and made.run_id in runs else None
    last = _last(registry, model, digest)
    completed = False
    if last is not None and whole is not None and last.action != DONE:
        note(registry, by, DONE, whole.name, last.detail | {"begun_by": last.actor, "completed": "it was broken off"})
        completed = True
    elif last is not None and last.action == BEGUN:
        note(registry, by, UNDONE, model, last.detail | {"begun_by": last.actor, "why": "it was broken off"})
    for run_id, status in runs.items():
        if whole is not None and run_id == whole.run_id:
            if status != "FINISHED":
                versions.end_run(run_id, "FINISHED")
                completed = True
        elif status == "RUNNING":
            versions.end_run(run_id, "FAILED")
    return whole if completed else None


def note(registry: Registry, by: str, action: str, subject: str, detail: dict[str, str]) -> None:
    """Put a step of a registration on record."""
    with registry.database.writing() as connection:
        audit.record(connection, at=registry.clock(), actor=by, action=action, subject=subject, detail=detail)


def _last(registry: Registry, model: str, digest: str) -> AuditEntry | None:
    """The newest step of registering these files, if there ever was one."""
    steps = registry.audit.about_model(model, (BEGUN, UNDONE), **_EVER, limit=_ALL)  # DONE begins like BEGUN
    return next((step for step in steps if step.detail.get("digest") == digest), None)
