"""What becomes of records that wait: how far the database has come is known, and text goes before a record does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from serve.gateway.test_shadows import original
from serve.gateway.test_spool import files_no_larger_than
from serve.gateway.world import until
from tuneloop.registry import Registry
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import RequestRecord
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.gateway import records
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.metrics import Metrics
from tuneloop.serve.gateway.records import Recorder
from tuneloop.serve.gateway.settings import GatewaySettings


class Held:
    """A recorder whose database answers when the test lets it; its clocks stand still."""

    def __init__(self, home: Path, folder: Path, **settings: object) -> None:
        self.now = 100.0
        self.answers = threading.Event()
        self.away = False
        self.link = Link(RegistrySettings(home=home), open_registry=self._open, clock=lambda: self.now)
        fields = {"id": "gw", "record_text": "none"} | settings
        self.recorder = Recorder(
            GatewaySettings.model_validate(fields), self.link, folder, Metrics(), clock=lambda: self.now
        )

    def _open(self, settings: RegistrySettings) -> Registry:
        assert self.answers.wait(20)
        if self.away:
            raise Unavailable("away")
        return Registry.open(settings)

    def stored(self) -> list[RequestRecord]:
        with self.link.registry() as registry:
            return list(registry.traffic.window("bot"))

    def stop(self) -> None:
        self.answers.set()
        self.recorder.stop(20.0)
        self.link.close()


@pytest.fixture
def held(registry_home: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Held]:
    found = Held(registry_home, tmp_path / "spool", **getattr(request, "param", {}))
    yield found
    found.stop()


def test_nothing_counts_as_stored_before_it_is_in_the_database(held: Held) -> None:
    recorder = held.recorder
    recorder.add(original())
    held.now = 110.0
    recorder.start()
    until(lambda: recorder.pending == 1)
    held.now = 120.0
    recorder.add(original())
    assert recorder.stored_until_s == 100.0
    held.answers.set()
    until(lambda: recorder.stored_until_s == 120.0)
    assert len(held.stored()) == 2


def test_what_is_on_disk_is_not_stored_until_it_is_brought_in(held: Held) -> None:
    recorder = held.recorder
    held.away = True
    held.answers.set()
    recorder.add(original())
    held.now = 110.0
    recorder.start()
    until(lambda: recorder.pending == 0 and held.link.down)
    held.now = 120.0
    recorder.add(original())
    until(lambda: recorder.pending == 0)
    assert recorder.stored_until_s == 100.0
    held.away = False
    held.now = 200.0
    assert held.stored() == []
    until(lambda: recorder.stored_until_s == 200.0)
    assert len(held.stored()) == 2


def test_records_that_neither_database_nor_a_full_disk_takes_are_counted_and_told_once(
    held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = held.recorder
    held.away = True
    held.answers.set()
    with files_no_larger_than(0):
        recorder.start()
        for _ in range(3):  # one after the other: each is lost by itself
            recorder.add(original())
            until(lambda: recorder.pending == 0)
    recorder.add(original())
    until(lambda: recorder.pending == 0)
    held.away = False
    held.now = 200.0
    assert held.stored() == []
    until(lambda: recorder.stored_until_s == 200.0)
    assert (len(held.stored()), recorder.dropped) == (1, 3)
    told = [line.message for line in caplog.records if "being lost" in line.message]
    assert len(told) == 1
    assert "neither database nor disk takes them" in told[0]


@pytest.mark.parametrize("held", [{"record_text": "redacted", "record_queue": 8}], indirect=True)
def test_text_goes_before_a_record_is_lost(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = held.recorder
    monkeypatch.setattr(records, "BATCH", 1)
    assert recorder._redactor is not None
    recorder._redactor.stop()  # what is given to it now is stored with `failed`, at once
    waiting = [original() for _ in range(9)]
    for exchange in waiting:
        exchange.messages = (("user", "hello"),)
        recorder.add(exchange)
    assert [bool(exchange.messages) for exchange in waiting[:8]] == [True] * 4 + [False] * 4
    assert recorder.dropped == 1, "the ninth has no place, with or without text"
    held.answers.set()
    recorder.start()
    until(lambda: len(held.stored()) == 8)
    told = {record.id: record.guards["redaction"] for record in held.stored()}
    skipped, failed = ["skipped"] * 2, ["failed"] * 2
    assert [told[exchange.id] for exchange in waiting[:8]] == skipped + failed + ["skipped"] * 4


def test_what_comes_while_records_are_stored_waits_for_others(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction takes as long for one record as for many."""
    monkeypatch.setattr(records, "PAUSE_S", 60.0)
    recorder, batches = held.recorder, list[int]()
    store = recorder._store

    def counted(batch: Sequence[Exchange]) -> None:
        batches.append(len(batch))
        store(batch)

    monkeypatch.setattr(recorder, "_store", counted)
    recorder.add(original())
    recorder.start()
    until(lambda: batches == [1])
    for _ in range(3):
        recorder.add(original())
    held.answers.set()
    until(lambda: recorder.pending == 3)
    time.sleep(0.2)
    assert batches == [1]
    recorder.stop(20.0)
    assert batches == [1, 3]
    assert len(held.stored()) == 4
