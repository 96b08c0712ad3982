"""Holds vLLM on a leash: a tiny parent that ends vLLM and all its children when the agent is gone, however it went.

Run as `python -I leash.py COMMAND…` in a session of its own, with a pipe from the agent as standard input. The pipe
closes when the agent dies, kill -9 included; a signal on parent death would fire on a thread's end and miss vLLM's own
children. SIGTERM is passed on. Ends with the command's status (128 + n for a signal) after nothing of its process group
is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36
_REAP_S = 5.0


def main(command: list[str]) -> int:
    """Run the command until it ends, SIGTERM ends it, or standard input closes."""
    # Orphans of vLLM become ours, not init's: so we can wait until the last one has let go of port and memory.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the wake-up pipe tells; a default SIGTERM would end us first
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    watched = [sys.stdin.fileno(), wake_read]
    while child.poll() is None:
        ready, _, _ = select.select(watched, [], [])
        if watched[0] in ready and not os.read(watched[0], 1):
            _kill_group(child.pid)
            child.wait()
        elif wake_read in ready and signal.SIGTERM in os.read(wake_read, 512):
            child.terminate()
    _kill_group(child.pid)
    _reap()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _reap() -> None:
    """Wait until no descendant is left, so that port and memory are free; not long for one that left the group."""
    deadline = time.monotonic() + _REAP_S
    with contextlib.suppress(ChildProcessError):  # none left
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # nobody left is what we want
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
