"""From the write of a route until each of many gateways applies it: threads with a connection and a folder each."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tuneloop.registry import Registry
from tuneloop.registry.nouns import Arm, GatewayState, utc_now
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.refresh import Refresh
from tuneloop.serve.gateway.snapshot import Snapshot

POLL_S = 0.5  # a gateway's default


def measure_propagation(kind: str, url: Callable[[], str], gateways: int, changes: int) -> dict[str, float | str]:
    """From the write of a revision until every gateway applies it, change after change."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    applied: dict[int, dict[str, float]] = {}
    lock = threading.Lock()

    def gateway(name: str, folder: Path, link: Link) -> Refresh:
        def hears(view: Snapshot, _after_gap: bool) -> None:
            at, revision = time.perf_counter(), view.applied.get("bot", 0)
            with lock:
                applied.setdefault(revision, {}).setdefault(name, at)

        def beat(view: Snapshot) -> GatewayState:
            return GatewayState(
                id=name, url="http://x", applied=view.applied, in_flight={}, dropped_records=0, at=utc_now()
            )

        folder.mkdir()
        return Refresh(link, folder, POLL_S, beat, hears, lambda _part: None)

    slowest: list[float] = []
    each: list[float] = []
    confirmed: list[float] = []
    with tempfile.TemporaryDirectory(prefix="tuneloop-bench-") as home:
        settings = RegistrySettings(home=Path(home), database_url=url())
        with Registry.open(settings) as registry:
            arms = [Arm(version=1, weight_bp=10_000)]
            registry.routes.write("bot", arms, by="ada", reason="r", expected_revision=0)
            links = [Link(settings) for _ in range(gateways)]
            running = [gateway(f"g{n}", Path(home) / f"g{n}", link) for n, link in enumerate(links)]
            for one in running:
                one.start(loop)
                time.sleep(POLL_S / gateways)  # gateways do not start at one moment
            while len(applied.get(1, {})) < gateways or len(registry.fleet.gateways()) < gateways:
                time.sleep(0.1)
            for revision in range(2, changes + 2):
                time.sleep(0.1 + 0.37 * (revision % 3))
                registry.routes.write("bot", arms, by="ada", reason="r", expected_revision=revision - 1)
                wrote = time.perf_counter()
                registry.fleet.wait_applied("bot", revision, 30.0)
                confirmed.append(time.perf_counter() - wrote)
                arrived = [at - wrote for at in applied[revision].values()]
                each += arrived
                slowest.append(max(arrived))
            for one in running:
                one._stopping.set()
            for one in running:
                one.stop()
            for link in links:
                link.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    return {
        "database": kind,
        "gateways": gateways,
        "changes": changes,
        "one_gateway_median_s": median(each),
        "all_gateways_median_s": median(slowest),
        "all_gateways_max_s": max(slowest),
        "writer_knows_median_s": median(confirmed),
        "writer_knows_max_s": max(confirmed),
    }
