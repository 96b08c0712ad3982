"""Real controller processes for tests, each killed with SIGKILL at a chosen moment.

`python controller_process.py HOME DATABASE_URL` loads everything once and then forks a controller for each line `N` on
its standard input: one that is killed around its N-th writing transaction, right before it commits where N is negative,
right after where it is positive; with 0 it lives. The process id is printed; `gone PID` when it has ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tuneloop.registry.aliases.watch
import tuneloop.registry.versions.store  # noqa: F401 (MLflow takes seconds to load, once for all)
from tuneloop.registry import Registry
from tuneloop.registry.database import Database
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.settings import ControllerSettings, RegistrySettings

LEASE_S = 0.6


def die_around(number: int) -> None:
    """From here on this process is killed around its `number`-th writing transaction."""
    writing, lock, seen = Database.writing, threading.Lock(), iter(range(1, 1_000_000))

    @contextmanager
    def counted(database: Database) -> Iterator[object]:
        with lock:
            mine = next(seen)
        with writing(database) as connection:
            yield connection
            if mine == -number:
                os.kill(os.getpid(), signal.SIGKILL)
        if mine == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Database.writing = counted  # type: ignore[method-assign, assignment]


def control(home: str, database_url: str) -> None:
    """A controller, until it is killed."""
    settings = RegistrySettings(home=Path(home), database_url=database_url)
    with Registry.open(settings, upgrade=False) as registry:
        eager = ControllerSettings(every_s=0.02, aliases_every_s=0.2)
        Controller(registry, eager, lease_s=LEASE_S).run(threading.Event())


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            if number := int(line):
                die_around(number)
            try:
                control(*sys.argv[1:])
            finally:
                os._exit(1)
        print(child, flush=True)
        threading.Thread(target=lambda pid=child: _wait(pid), daemon=True).start()


def _wait(pid: int) -> None:
    os.waitpid(pid, 0)
    print(f"gone {pid}", flush=True)


if __name__ == "__main__":
    main()
