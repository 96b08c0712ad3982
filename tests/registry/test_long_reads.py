"""Reading a long trial: however long it takes to understand what was read, no session waits in a transaction meanwhile.

A PostgreSQL ends such a session after `idle_in_transaction_session_timeout`. Here it does so at once, whenever a row of
traffic is validated: that takes longer than any timeout, on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import RowMapping

from postgres_cluster import PostgresCluster
from tests_support import Clock, request_record
from tuneloop.registry import Registry, database
from tuneloop.registry.database import NounT, noun_of
from tuneloop.registry.nouns import Arm, Feedback, RequestRecord
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.judging import judgement, trial_of
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.traffic import Opinion, Outcome

SPLIT = (Arm(version=2, weight_bp=5_000), Arm(version=1, weight_bp=5_000))
_TIMED_OUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
  WHERE datname = current_database() AND state = 'idle in transaction' AND pid <> pg_backend_pid()
"""


@pytest.fixture
def impatient(
    postgres: PostgresCluster, registry_home: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    """A registry on a PostgreSQL that ends whoever validates within a transaction; a trial of ten requests is in it."""
    with postgres.lent_database() as url:
        settings = RegistrySettings(home=registry_home, database_url=url)
        server = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)

        def validated(kind: type[NounT], row: Mapping[str, Any] | RowMapping) -> NounT:
            if kind in {Outcome, Opinion, RequestRecord}:  # of which there may be many
                server.execute(_TIMED_OUT)
            return noun_of(kind, row)

        with server, Registry.open(settings, clock=clock) as registry:
            registry.routes.write("bot", SPLIT, by="ada", reason="r", expected_revision=0)
            clock.advance(1)
            arms = [{"assigned_version": 1 + n % 2, "served_version": 1 + n % 2} for n in range(10)]
            records = [request_record(n, clock(), revision=1, **arm) for n, arm in enumerate(arms)]
            said = [
                Feedback(id=f"f{r.id}", request_id=r.id, at=clock(), thumb="up", api_key=r.api_key) for r in records
            ]
            registry.traffic.add_requests(records)
            registry.traffic.add_feedback(said)
            clock.advance(1)
            monkeypatch.setattr(database, "noun_of", validated)
            yield registry


def test_a_trial_is_judged_however_slowly_what_was_read_of_it_is_validated(impatient: Registry, clock: Clock) -> None:
    report = judgement(impatient, "bot", 2, Limits(), trial_of(impatient, "bot", 2), min_samples=5)
    assert report.checks[0].detail == "5 answered on this step, at least 5 asked for"
    outcomes, opinions = impatient.traffic.outcomes("bot", since=clock() - timedelta(days=1), until=clock())
    assert ([o.id for o in outcomes], len(opinions)) == ([f"req-{n}" for n in range(10)], 10)


def test_a_window_is_read_however_slowly_its_records_are_validated(impatient: Registry) -> None:
    assert [r.id for r in impatient.traffic.window("bot", newest=3)] == ["req-7", "req-8", "req-9"]
