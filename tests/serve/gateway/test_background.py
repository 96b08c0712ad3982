"""Which threads go first; what that is worth under load, benchmarks/gateway_overhead.py and adapter_swap.py measure."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from serve.gateway.world import World
from tests_support import free_port
from tuneloop.serve.background import SLICE_NS, step_back, take_short_turns

_GET = {"x86_64": 315, "aarch64": 275}  # the number of the call sched_getattr
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
_ON_LINUX = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in _GET, reason="priorities of single threads are Linux's"
)


def slice_ns(thread: int) -> int:
    """How long a thread's turns are; 0 where this Linux gives every thread the same."""
    found = ctypes.create_string_buffer(_ATTRIBUTES.size)
    system = ctypes.CDLL(None, use_errno=True)
    if system.syscall(_GET[platform.machine()], thread, found, len(found.raw), 0) != 0:
        raise OSError(ctypes.get_errno(), "sched_getattr")
    return int(_ATTRIBUTES.unpack(found.raw)[5])


@pytest.fixture
def allowed(caplog: pytest.LogCaptureFixture) -> None:
    """Skips where the system lets nobody choose, as some sandboxes do."""
    worker = threading.Thread(target=take_short_turns)
    worker.start()
    worker.join()
    if "lets no thread have short turns" in caplog.text:
        pytest.skip(caplog.text)


def on_a_thread(seen: dict[str, int], who: str) -> None:
    thread = threading.get_native_id()
    seen[f"{who}'s turns"], seen[f"{who}'s steps"] = slice_ns(thread), os.getpriority(os.PRIO_PROCESS, thread)


@_ON_LINUX
def test_short_turns_are_a_threads_own_and_stepping_back_is_for_those_it_starts_too(allowed: None) -> None:
    seen = dict[str, int]()
    on_a_thread(seen, "anybody")

    def work() -> None:
        take_short_turns()
        on_a_thread(seen, "a short one")
        start("its child")
        step_back(5)
        on_a_thread(seen, "one behind")
        start("its child behind")

    def start(who: str) -> None:
        thread = threading.Thread(target=on_a_thread, args=(seen, who))
        thread.start()
        thread.join()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    usual, steps = seen["anybody's turns"], seen["anybody's steps"]
    short = SLICE_NS if usual else 0  # a Linux before 6.12
    assert (seen["a short one's turns"], seen["its child's turns"]) == (short, usual)
    assert (seen["a short one's steps"], seen["its child's steps"]) == (steps, steps)
    behind = min(19, steps + 5)
    assert (seen["one behind's steps"], seen["its child behind's steps"]) == (behind, behind)
    on_a_thread(seen, "anybody later")
    assert (seen["anybody later's turns"], seen["anybody later's steps"]) == (usual, steps)


@_ON_LINUX
def test_the_loop_of_a_gateway_takes_shorter_turns_than_the_threads_behind_it(world: World, allowed: None) -> None:
    with world.process(free_port()) as process:
        usual = slice_ns(0)
        others = list[int]()
        for thread in (int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                if thread != process.pid:
                    others.append(slice_ns(thread))
        assert slice_ns(process.pid) == (SLICE_NS if usual else 0)
        assert len(others) >= 4, "they store records, read routes, beat and share limits"
        assert set(others) == {usual}
