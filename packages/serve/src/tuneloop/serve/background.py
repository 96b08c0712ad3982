"""Who goes first where cores are few: what a user waits for, before what nobody waits for.

Linux has a priority and a time slice for each thread. A thread that steps back gets less of a core that others want
too; those it starts (MLflow's copying, the hashing of signatures) step back with it, on the disk as well, since the
kernel derives the one from the other. Never to the lowest there is: a thread that holds the interpreter and gets no
core holds up the others of its process, on a crowded machine for long. So a gateway's threads, which share the
interpreter with the loop that carries streams, do not step back. The loop takes shorter turns than they: nobody gets
less of a core than before, but when it wakes it has the core at once, where it would else wait for the kernel's next
tick, 4 ms away (Linux 6.12 and later; older ones take it and change nothing). An agent's fetches do step back: its loop
carries a heartbeat a second, and whose cores they would take is vLLM.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import struct
import sys
import threading

_NOT_INHERITED = 1  # SCHED_FLAG_RESET_ON_FORK
SLICE_NS = 100_000  # the shortest that Linux gives; its own is 0.7 to 3 ms, by the number of cores
_LOWEST = 19
_SET = {"x86_64": 314, "aarch64": 274}  # the number of the call sched_setattr, for which Python has no name
# Size, policy, flags, niceness, priority, slice, and two that are real time's: struct sched_attr in its first form.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
_log = logging.getLogger(__name__)


def step_back(steps: int) -> None:
    """Let others go before the calling thread and those that it starts from now on; elsewhere than on Linux, nothing.

    Args:
        steps: of niceness. Where all cores are taken, 5 leave a quarter of what another thread gets, 10 a tenth.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(_LOWEST, os.getpriority(os.PRIO_PROCESS, thread) + steps))


def take_short_turns() -> None:
    """Let the calling thread go before others as soon as it can use a core, in turns of 0.1 ms; what it starts has the
    usual ones."""
    if sys.platform != "linux" or (call := _SET.get(platform.machine())) is None:
        return
    thread = threading.get_native_id()
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    wanted = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, _NOT_INHERITED, nice, 0, SLICE_NS, 0, 0)
    system = ctypes.CDLL(None, use_errno=True)
    if system.syscall(call, thread, wanted, 0) != 0:
        why = os.strerror(ctypes.get_errno())
        _log.warning("this system lets no thread have short turns (%s): others may delay what it does by more", why)
