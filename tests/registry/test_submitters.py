"""A thousand submissions from twenty processes, some killed with a transaction open: one request for each key."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import UTC, datetime

import sqlalchemy as sa

from registry.mortal import begun, die, ended
from tests_support import retraining_request
from tuneloop.registry import Registry, database
from tuneloop.registry.settings import RegistrySettings

PROCESSES, EACH, KEYS = 20, 50, 40
AT = datetime(2026, 11, 1, 12, tzinfo=UTC)


def submit(settings: RegistrySettings, number: int, dies_at: int | None, said: str) -> None:
    """File one request after the other, and note each that was acknowledged; die with number `dies_at` uncommitted."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    database.BUSY_TIMEOUT_MS = 120_000  # of twenty writers to one file the last may wait for long on a slow disk
    with Registry.open(settings, upgrade=False) as registry:
        for turn in range(EACH):
            if turn == dies_at:
                sa.event.listen(
                    registry.database.engine, "commit", lambda _: die()
                )  # all is written, nothing is committed
            key = f"key-{(turn * 7 + number * 3) % KEYS}"
            if turn == dies_at:
                key = f"killed-{number}"  # that of a submission nobody acknowledged: it must leave nothing
            filed = registry.retraining.file(retraining_request(AT, idempotency_key=key), by=f"p{number}")
            os.write(file, f"{key} {filed.id}\n".encode())


def test_a_thousand_concurrent_and_crashing_submitters_make_one_request_a_key(
    registries: Registry, tmp_path: object
) -> None:
    dies_at = {number: 5 + number for number in range(0, PROCESSES, 4)}
    processes = [
        begun(submit, registries.settings, number, dies_at.get(number), f"{tmp_path}/said-{number}")
        for number in range(PROCESSES)
    ]
    ends = [ended(process) for process in processes]
    assert ends == [-signal.SIGKILL if number in dies_at else 0 for number in range(PROCESSES)]

    said: Counter[tuple[str, str]] = Counter()
    for number in range(PROCESSES):
        with open(f"{tmp_path}/said-{number}", encoding="utf-8") as lines:  # noqa: PTH123
            said.update((line.split()[0], line.split()[1]) for line in lines)
    assert said.total() == sum(dies_at.get(number, EACH) for number in range(PROCESSES))
    stored = {request.idempotency_key: request.id for request in registries.retraining.all()}
    assert set(said) == set(stored.items()), "everybody was told of the one request of the key"
    assert len(stored) == KEYS
    filed = Counter(entry.subject for entry in registries.audit.entries(action="retraining.file", limit=5_000))
    assert filed == Counter(stored.values()), "filed once on record"
    assert registries.audit.verify().faults == ()
