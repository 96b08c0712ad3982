"""`tuneloop status · trace · requests · feedback · forget · audit · db upgrade·end`."""

from __future__ import annotations

import dataclasses

import click

from tuneloop.registry import overview
from tuneloop.registry.database import DAMAGED
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import RequestRecord
from tuneloop.registry.paging import MOST_PER_PAGE, Ask
from tuneloop.registry.printing import (
    MOST_ROWS,
    by_option,
    emit,
    json_option,
    newest_option,
    reason_option,
    table,
    tell_unreadable,
)
from tuneloop.registry.trace import trace as trace_back


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show routes, engines, gateways, alerts, retraining and rollouts."""
    with Registry.open() as registry:
        now, unreadable_routes = overview.status(registry)
        parts = [
            table(
                ["MODEL", "REVISION", "SPLIT (BP)", "BY"],
                [
                    *([r.model, r.revision, r.split_text, r.by] for r in now.routes),
                    *([model, None, "cannot be read", None] for model in unreadable_routes),
                ],
            ),
            table(
                ["ENGINE", "STATE", "BASE", "ADAPTERS", "DETAIL"],
                [
                    [e.id, e.state, e.base, " ".join(f"{name}:{state}" for name, state in e.adapters.items()), e.detail]
                    for e in now.engines
                ],
            ),
            table(
                ["GATEWAY", "APPLIES", "IN FLIGHT", "DROPPED RECORDS"],
                [
                    [
                        g.id,
                        " ".join(f"{m}:{r}" for m, r in g.applied.items()),
                        sum(g.in_flight.values()),
                        g.dropped_records,
                    ]
                    for g in now.gateways
                ],
            ),
            table(
                ["ALERT", "MODEL", "SIGNAL", "SINCE (UTC)"],
                [[a.id, a.model, a.signal, f"{a.opened_at:%Y-%m-%d %H:%M:%S}"] for a in now.alerts],
            ),
            table(["RETRAINING", "MODEL", "STATE", "ROWS"], [[r.id, r.model, r.state, r.rows] for r in now.retraining]),
        ]
        if now.rollouts:  # a paused one waits for a person
            rows = [[r.id, r.name, r.state, r.outcome] for r in now.rollouts]
            parts.append(table(["ROLLOUT", "VERSION", "STATE", "WHY"], rows))
        parts += [f"cannot be read: {row}" for row in now.unreadable if row not in unreadable_routes.values()]
        emit(now, as_json, "\n\n".join(parts))


@click.command()
@click.argument("request_id")
@json_option
def trace(request_id: str, as_json: bool) -> None:
    """Walk one answer back to the version, data and alert behind it."""
    with Registry.open() as registry:
        steps = trace_back(registry, request_id)
        text = "\n".join(
            f"{'  ' * i}{'└─ ' if i else ''}{step.kind} {step.id}\n{'  ' * i}   {step.summary}"
            for i, step in enumerate(steps)
        )
        emit(steps, as_json, text)


@click.command()
@click.argument("model")
@newest_option
@click.option("--sampled", is_flag=True, help="Only what guards marked for people to read, with what was said.")
@json_option
def requests(model: str, newest: int, sampled: bool, as_json: bool) -> None:
    """List a model's requests in order of time, without their text unless it is kept for people to read."""
    with Registry.open() as registry:
        if sampled:
            marked = registry.traffic.window(model, newest=newest, sampled=True)
            if not marked:
                registry.check_model(model)
            emit(list(marked), as_json, "\n".join(map(_to_read, marked)) or "nothing is marked for people to read")
            return
        found = registry.traffic.newest(model, newest)
        tell_unreadable(found.unreadable)
        if not found:
            registry.check_model(model)
        rows = [
            [
                r.id,
                f"{r.at:%H:%M:%S}",
                r.revision,
                r.assigned_version,
                r.served_version,
                r.status,
                f"{r.total_ms:.0f}",
                r.error,
            ]
            for r in found
        ]
        headers = ["REQUEST", "AT (UTC)", "REVISION", "ASSIGNED", "SERVED", "STATUS", "MS", "ERROR"]
        emit(list(found), as_json, table(headers, rows))


def _to_read(record: RequestRecord) -> str:
    """One request as people read it: what guards found, and what was said, as far as it is on record."""
    verdicts = "; ".join(f"{guard} {verdict}" for guard, verdict in record.guards.items())
    turns = [f"  {turn.role}: {turn.content}" for turn in record.messages]
    answer = [f"  answer: {record.answer}"] if record.answer is not None else []
    return "\n".join([f"{record.id} {record.at:%Y-%m-%d %H:%M:%S} {verdicts}", *turns, *answer])


@click.command()
@click.argument("model")
@click.option("--newest", type=click.IntRange(1, MOST_PER_PAGE), default=50, show_default=True, help="So many.")
@json_option
def feedback(model: str, newest: int, as_json: bool) -> None:
    """List what users said of a model's answers, the newest first."""
    with Registry.open() as registry:
        page = registry.traffic.feedback_of(model, Ask(newest))
        tell_unreadable(page.unreadable)
        found = page.items
        if not found:
            registry.check_model(model)
        rows = [
            [
                f.request_id,
                f"{f.at:%Y-%m-%d %H:%M:%S}",
                f.score,
                f.thumb,
                f.label,
                (f.correction or f.comment or "")[:80],
            ]
            for f in found
        ]
        headers = ["REQUEST", "AT (UTC)", "SCORE", "THUMB", "LABEL", "CORRECTION OR COMMENT"]
        none = f"nobody has said anything of {model}'s answers yet; `POST /v1/feedback` does"
        emit(list(found), as_json, table(headers, rows) if found else none)


@click.command()
@click.argument("user")
@click.option("--model", help="Only what this model was asked.")
@click.option("--hashed", is_flag=True, help="USER is the hash that records keep.")
@by_option
@reason_option
@json_option
def forget(user: str, model: str | None, hashed: bool, by: str, reason: str, as_json: bool) -> None:
    """Delete a user's requests, with their text, and the feedback on them; USER is the sticky key they came with."""
    with Registry.open() as registry:
        if model is not None:
            registry.check_model(model)
        found = registry.traffic.forget(user, by=by, reason=reason, at=registry.clock(), model=model, hashed=hashed)
        text = (
            f"deleted of user {found.key_hash}: {found.requests} requests, {found.copies} copies of shadows, "
            f"{found.feedback} feedback"
        )
        emit(found, as_json, text)


@click.command()
@click.argument("subject", required=False)
@click.option("--limit", type=click.IntRange(1, MOST_ROWS), default=50, show_default=True)
@click.option("--verify", is_flag=True, help="Check instead that no entry was changed, removed or inserted.")
@click.option(
    "--noted", metavar="HASH", help="With --verify: the hash an earlier --verify told; it must still be there."
)
@json_option
def audit(subject: str | None, limit: int, verify: bool, noted: str | None, as_json: bool) -> None:
    """List who did what, the newest first, or verify that nobody altered it.

    SUBJECT is the name of a model, version, request or episode.
    """
    if noted is not None and not verify:
        raise click.UsageError("--noted goes with --verify")
    if subject is not None and verify:
        raise click.UsageError("--verify reads the whole log; leave SUBJECT out")
    with Registry.open() as registry:
        if verify:
            _verify_audit(registry, noted, as_json)
            return
        found = registry.audit.entries(subject, limit)
        tell_unreadable(found.unreadable)
        rows = [
            [
                e.id,
                f"{e.at:%Y-%m-%d %H:%M:%S}",
                e.actor,
                e.action,
                e.subject,
                e.detail.get("note", e.detail.get("reason")),
            ]
            for e in found
        ]
        emit(found, as_json, table(["ID", "AT (UTC)", "ACTOR", "ACTION", "SUBJECT", "REASON"], rows))


def _verify_audit(registry: Registry, noted: str | None, as_json: bool) -> None:
    found = registry.audit.verify(noted)
    whole = (
        f"{found.entries} entries, each as it was written, none missing; the hash of the newest, {found.newest}:\n"
        f"{found.hash}\n"
        "note it where nobody who writes the database can write; --verify --noted HASH proves later that nothing up to "
        "it was written anew"
    )
    if found.noted is not None:
        whole = f"the noted hash is that of entry {found.noted}: up to it nothing was written anew\n{whole}"
    nothing = f"the audit log of {registry.database.shown} is empty, as it was left"
    emit(dataclasses.asdict(found), as_json, "\n".join(found.faults) or (whole if found.entries else nothing))
    if found.faults:
        places = "one place" if len(found.faults) == 1 else f"{len(found.faults)} places"
        raise Unreadable(
            f"the audit log of {registry.database.shown} does not verify, in {places}; compare it with a "
            "copy of the database from before"
        )


@click.group()
def db() -> None:
    """Look after the database."""


@db.command("end")
@click.argument("kind", type=click.Choice(sorted(DAMAGED.values())))
@click.argument("name", metavar="ID")
@by_option
@reason_option
def db_end(kind: str, name: str, by: str, reason: str) -> None:
    """End what cannot be read: a row that was changed by hand or written by another version of tuneloop.

    The row stays for whoever looks into it; it holds nothing up any more. A rollout's or an experiment's route stays as
    it is.
    """
    from tuneloop.registry.damaged import end

    with Registry.open() as registry:
        damage = end(registry, kind, name, by=by, reason=reason)
    click.echo(f"{kind} {name} is ended. It could not be read: {damage.partition('; or end it')[0]}")
    if kind in {"rollout", "experiment"}:
        click.echo("the model's route is as it was: `tuneloop route show MODEL`, `tuneloop rollback MODEL`")


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema to the newest revision; safe to repeat."""
    with Registry.open(upgrade=False, begin=True) as registry:
        registry.database.upgrade()
        click.echo(f"{registry.database.shown} is at the newest schema")
