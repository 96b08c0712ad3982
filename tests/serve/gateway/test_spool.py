"""What was acknowledged while the database was away stays on disk until the database has it, readable or not."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve.gateway.test_database_away import spool_of
from serve.gateway.world import World, until
from tests_support import request_record
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Feedback, utc_now
from tuneloop.registry.routes.assignment import key_hash
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.spool import Spool, line_of
from tuneloop.serve.gateway.store import Store


def said(number: int) -> Feedback:
    return Feedback(id=f"fb_{number}", request_id="req_1", at=utc_now(), score=0.5)


class Kept:
    """A store on a real database, with what it counted."""

    def __init__(self, folder: Path) -> None:
        self.spooled, self.aside = 0, 0
        self.folder = folder / "spool"
        self.link = Link(RegistrySettings(home=folder / "home"))
        self.spool = Spool(self.folder, "feedback", Feedback)
        self.refuses: type[Exception] | None = None
        self.store = Store(self.link, self.spool, self._insert, spooled=self._spooled, aside=self._aside)

    def stored(self) -> set[str]:
        with self.link.registry() as registry:
            return {item.id for item in registry.traffic.feedback_for(["req_1"]).get("req_1", [])}

    @property
    def files(self) -> dict[str, bytes]:
        return {path.suffix: path.read_bytes() for path in self.folder.iterdir()}

    def _insert(self, registry: Registry, items: Sequence[Feedback]) -> set[str]:
        if self.refuses is not None and any(item.id == "fb_2" for item in items):
            raise self.refuses("nobody foresaw this")
        return registry.traffic.add_feedback(items)

    def _spooled(self, count: int) -> None:
        self.spooled += count

    def _aside(self, count: int) -> None:
        self.aside += count


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path)
    yield kept
    kept.store.close()
    kept.link.close()


UNKNOWN_FIELD = json.dumps(json.loads(line_of(said(7))) | {"mood": "sunny"}).encode() + b"\n"


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":"fb_7","requ\x00\xff\n',
        b"\n",
        UNKNOWN_FIELD,
        b"[" * 100_000 + b"\n",
        b'{"id":"fb_7","request_id":"\\ud800"}\n',
    ],
    ids=["damaged", "empty", "of another version", "nested", "half a character"],
)
def test_a_spooled_line_that_cannot_be_read_is_kept_aside_and_counted(
    kept: Kept, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept.spool.append([said(1)])
    kept.store.close()
    with next(kept.folder.iterdir()).open("ab") as file:
        file.write(line)
        file.write(line_of(said(2)))
    kept.store.replay()
    assert kept.stored() == {"fb_1", "fb_2"}
    assert kept.files == {".aside": line}
    assert kept.aside == 1
    assert any(":2 cannot be read" in record.getMessage() for record in caplog.records)


def test_a_torn_last_line_was_never_acknowledged_and_is_passed_over(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    kept.spool.append([said(1)])
    kept.store.close()
    with next(kept.folder.iterdir()).open("ab") as file:
        file.write(line_of(said(2))[:-10])
    kept.store.replay()
    assert (kept.stored(), kept.files, kept.aside) == ({"fb_1"}, {}, 0)
    assert any(":2 is torn" in record.getMessage() for record in caplog.records)


def test_what_was_set_aside_is_tried_again_after_a_start(kept: Kept, tmp_path: Path) -> None:
    kept.folder.mkdir()
    kept.spool.set_aside([line_of(said(1)), UNKNOWN_FIELD])
    kept.store.replay()
    assert (kept.stored(), kept.files, kept.aside) == ({"fb_1"}, {".aside": UNKNOWN_FIELD}, 1)
    kept.store.replay()
    assert kept.aside == 1
    kept.store.close()
    again = Kept(tmp_path)
    again.store.replay()
    assert (again.files, again.aside) == ({".aside": UNKNOWN_FIELD}, 1)
    again.link.close()


@pytest.mark.parametrize("error", [RuntimeError, OverflowError, TypeError])
def test_an_unforeseen_error_leads_to_the_spool_and_one_bad_item_holds_up_no_other(
    kept: Kept, error: type[Exception]
) -> None:
    kept.refuses = error
    assert kept.store.keep([said(1), said(2), said(3)]).refused == []
    assert kept.spooled == 3
    assert kept.files[".jsonl"].count(b"\n") == 3
    kept.store.replay()
    assert kept.stored() == {"fb_1", "fb_3"}
    assert (kept.aside, list(kept.files), kept.files[".aside"].count(b"\n")) == (1, [".aside"], 1)


@pytest.mark.parametrize("error", [None, RuntimeError], ids=["at once", "one by one"])
def test_what_was_deleted_with_its_user_is_left_out_of_a_replay_and_the_log_says_so(
    kept: Kept, error: type[Exception] | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with kept.link.registry() as registry:
        registry.traffic.add_requests([request_record(1, utc_now(), key_hash=key_hash("ada"))])
        registry.traffic.forget("ada", at=utc_now(), by="t", reason="t")
    gone = [said(number).model_copy(update={"request_id": "req-1"}) for number in (4, 5)]
    kept.spool.append([said(1), said(2), said(3), *gone])
    kept.refuses = error
    kept.store.replay()
    kept.store.close()
    refused = {"fb_2"} if error else set()
    assert kept.stored() == {"fb_1", "fb_2", "fb_3"} - refused
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert [line.partition(" of ")[0] for line in told if "items of" in line] == [
        f"{3 - len(refused)} items",
        "2 items",
    ]
    assert told[-1].endswith("are left out: deleted with their users")


def test_a_file_that_the_disk_does_not_give_stays_and_holds_up_no_other(kept: Kept) -> None:
    kept.spool.append([said(1)])
    (kept.folder / "feedback-0.jsonl").mkdir()
    kept.store.replay()
    assert kept.stored() == {"fb_1"}
    assert [path.name for path in kept.folder.iterdir()] == ["feedback-0.jsonl"]


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """A disk that is full, as far as this process can tell: what would make a file larger is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_refuses_is_told_as_refused_and_is_not_half_there(kept: Kept) -> None:
    kept.spool.append([said(1)])
    whole = kept.files[".jsonl"]
    with files_no_larger_than(len(whole) + 20), pytest.raises(OSError, match=r"only a part|too large"):
        kept.spool.append([said(2)])
    assert kept.files[".jsonl"] == whole
    kept.spool.append([said(3)])
    kept.store.replay()
    assert kept.stored() == {"fb_1", "fb_3"}


def test_what_cannot_be_set_aside_on_a_full_disk_stays_in_its_file(kept: Kept) -> None:
    kept.folder.mkdir()
    path = kept.folder / "feedback-1.jsonl"
    path.write_bytes(UNKNOWN_FIELD)
    with kept.link.registry():  # the database's own files are there before the disk is full
        pass
    with files_no_larger_than(0):
        kept.store.replay()
    assert path.read_bytes() == UNKNOWN_FIELD
    assert kept.aside == 0


def test_damaged_feedback_of_an_earlier_life_is_kept_and_shown_by_the_gateway(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    spool = world.home / "gateway" / "gw" / "spool"
    spool.mkdir(parents=True)
    (spool / "feedback-1.jsonl").write_bytes(b"damaged\n" + line_of(said(1)))
    caplog.set_level(logging.ERROR)
    gateway = world.gateway()
    until(lambda: world.registry.traffic.feedback_for(["req_1"]))
    until(lambda: spool_of(world, "feedback") == [])
    assert (spool / "feedback.aside").read_bytes() == b"damaged\n"
    assert gateway.metric("tuneloop_records_aside_total") == 1
