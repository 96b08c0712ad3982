"""Ending what cannot be read: a row that was changed by hand, or written by another version of tuneloop.

Whoever ends a rollout, an experiment or a request reads it first, so a damaged one would hold its model up for ever.
Here it is ended without being understood, on record; its other columns stay as they are, for whoever looks into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from tuneloop.registry import audit
from tuneloop.registry.access.tokens import Token
from tuneloop.registry.database import DAMAGED, noun_of
from tuneloop.registry.errors import NotFound, Refused, Unreadable
from tuneloop.registry.experiments.declaration import Experiment, ExperimentState
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import ApiKey, Noun, RetrainingRequest, RetrainingState
from tuneloop.registry.retraining.queue import ENDED
from tuneloop.registry.retraining.runs import end_run
from tuneloop.registry.rollouts.rollout import OPEN, Rollout, RolloutState
from tuneloop.registry.tables import api_keys, experiments, retraining, rollouts, tokens

_FREE = {"lease_owner": None, "lease_until": None}


@dataclass(frozen=True)
class _Kind:
    noun: type[Noun]
    table: sa.Table
    key: sa.Column[Any]
    verb: str  # that ends one which can be read
    over: Mapping[str, frozenset[Any]]  # column → its values once it has ended; a time: anything but none


_KINDS = {
    "rollout": _Kind(
        Rollout, rollouts, rollouts.c.id, "rollout abort MODEL", {"state": frozenset(RolloutState) - OPEN}
    ),
    "retraining": _Kind(
        RetrainingRequest, retraining, retraining.c.id, "retraining cancel ID", {"state": frozenset(ENDED)}
    ),
    "experiment": _Kind(
        Experiment, experiments, experiments.c.id, "experiment stop ID", {"state": frozenset({ExperimentState.STOPPED})}
    ),
    "token": _Kind(Token, tokens, tokens.c.name, "token revoke NAME", {"revoked_at": frozenset()}),
    "key": _Kind(ApiKey, api_keys, api_keys.c.id, "key revoke ID", {"revoked_at": frozenset()}),
}
KINDS = tuple(_KINDS)
assert {kind.noun.__name__: name for name, kind in _KINDS.items()} == DAMAGED


def end(registry: Registry, kind: str, name: str, *, by: str, reason: str) -> str:
    """End one damaged row; returns what is wrong with it.

    Raises:
        NotFound: there is no such row.
        Refused: it can be read, or has ended.
    """
    what, now = _KINDS[kind], registry.clock()
    here = what.key == name
    with registry.database.writing() as connection:
        row = connection.execute(sa.select(what.table).where(here).with_for_update()).mappings().first()
        if row is None:
            raise NotFound(f"the database has no {kind} {name!r}; `tuneloop {kind} list` names those it cannot read")
        try:
            noun_of(what.noun, row)
        except Unreadable as error:
            damage = str(error)
        else:
            raise Refused(f"{kind} {name} can be read: `tuneloop {what.verb}` is for that")
        if _is_over(row, what.over):
            raise Refused(f"{kind} {name} cannot be read, and has ended: it holds nothing up")
        values = _ended(kind, what.table, f"{by}: {reason}", now)
        connection.execute(sa.update(what.table).where(here).values(**values))
        if kind == "retraining":
            end_run(connection, name, at=now, end=str(RetrainingState.CANCELLED))
        detail = {"damage": damage, "reason": reason}
        audit.record(connection, at=now, actor=by, action=f"{kind}.end_damaged", subject=name, detail=detail)
    return damage


def _is_over(row: RowMapping, over: Mapping[str, frozenset[Any]]) -> bool:
    return any(row[column] in values if values else row[column] is not None for column, values in over.items())


def _ended(kind: str, table: sa.Table, outcome: str, now: datetime) -> dict[str, Any]:
    fence = {"fencing_token": table.c.get("fencing_token", sa.literal(0)) + 1}  # whoever holds its lease finds it gone
    match kind:
        case "rollout":
            return {"state": RolloutState.ABORTED, "outcome": outcome, "updated_at": now} | fence | _FREE
        case "retraining":
            held = {"held": "", "held_until": None}
            return {"state": RetrainingState.CANCELLED, "outcome": outcome, "updated_at": now} | fence | held | _FREE
        case "experiment":
            return {"state": ExperimentState.STOPPED, "stopped_at": now}
        case _:
            return {"revoked_at": now}
