"""Whose a model's split is: a running experiment's, a running rollout's, or nobody's; never both.

Either asks whether the other runs in the very transaction that lets it run, and such transactions take turns.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry.database import Database
from tuneloop.registry.errors import Refused
from tuneloop.registry.exclusive import in_turn
from tuneloop.registry.nouns import version_name
from tuneloop.registry.tables import experiments, rollouts


def claim_for_rollout(database: Database, connection: Connection, model: str) -> None:
    """Before a rollout is let run, in that transaction.

    Raises:
        Refused: an experiment of the model runs.
    """
    in_turn(database, connection, f"split of {model}")
    expect_no_experiment(connection, model)


def claim_for_experiment(database: Database, connection: Connection, model: str) -> None:
    """Before an experiment is let run, or its split is written, in that transaction.

    Raises:
        Refused: a rollout of the model runs.
    """
    in_turn(database, connection, f"split of {model}")
    expect_no_rollout(connection, model)


def expect_no_experiment(connection: Connection, model: str) -> None:
    """Its split is part of what an experiment declared: a rollout would change it with every step.

    Raises:
        Refused: one of the model runs.
    """
    here = sa.and_(experiments.c.model == model, experiments.c.state == "running")
    running = connection.execute(sa.select(experiments.c.id).where(here)).scalar()
    if running is not None:
        raise Refused(
            f"experiment {running} of {model} is running, and a rollout would change its split: let it end, or "
            f"`tuneloop experiment stop {running} --by YOU --reason WHY`"
        )


def expect_no_rollout(connection: Connection, model: str) -> None:
    """A rollout goes on from the split that it wrote: an experiment would change that.

    Raises:
        Refused: one of the model runs.
    """
    here = sa.and_(rollouts.c.model == model, rollouts.c.state == "running")
    running = connection.execute(sa.select(rollouts.c.id, rollouts.c.version).where(here)).first()
    if running is not None:
        raise Refused(
            f"{version_name(model, running.version)} is being rolled out ({running.id}), and an experiment would "
            f"change its split: wait, or end it with `tuneloop rollout abort {model}`"
        )
