"""Work that must not take the cores that vLLM computes on: a thread of this process that others go before.

Linux has a priority for each thread, and a thread that is started by another begins with that one's: MLflow's copying
and the hashing of signatures, which have threads of their own, come after vLLM too, on the disk as on the cores (the
kernel derives the one from the other). Not the lowest there is: a thread that holds the interpreter and gets no core
would hold up this process's heartbeat.
"""

from __future__ import annotations

import os
import sys
import threading

STEPS_BACK = 10  # of 19; where all cores are taken such a thread has a tenth of what another has
_LOWEST = 19


def step_back() -> None:
    """Let others go before the calling thread and those that it starts from now on; elsewhere than on Linux, nothing."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(_LOWEST, os.getpriority(os.PRIO_PROCESS, thread) + STEPS_BACK))
