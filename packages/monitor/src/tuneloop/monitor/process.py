"""The monitor as a process: opens the registry, wires the parts, ends in order on SIGTERM and Ctrl-C."""

from __future__ import annotations

import logging
import random
import signal
import threading
from types import FrameType

from tuneloop.monitor.canary_baseline import Baselines
from tuneloop.monitor.canary_stream import CanaryStream
from tuneloop.monitor.canary_watch import CanaryWatch
from tuneloop.monitor.delivery.redacting import Redactor
from tuneloop.monitor.delivery.rounds import Deliverer
from tuneloop.monitor.heartbeat import Heartbeat
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.reading import engine_client
from tuneloop.monitor.reference_answers import ReferenceAnswers
from tuneloop.monitor.scorer import Scorer
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import REFERENCE_BLEU
from tuneloop.monitor.unjudged import Unjudged
from tuneloop.monitor.watch import ModelState, Monitor
from tuneloop.registry import Registry
from tuneloop.registry.logs import set_up
from tuneloop.registry.settings import RegistrySettings

log = logging.getLogger("tuneloop.monitor")


def run_monitor(settings: MonitorSettings, *, once: bool) -> list[ModelState]:
    """Run until told to stop, or make one pass and return what it found.

    Raises:
        Unavailable: the database does not answer at the start, the metrics port is taken, or embeddings are asked for
            and sentence-transformers is not installed. InvalidInput: their model cannot be read.
    """
    set_up(RegistrySettings.load().log_format)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per scored prompt says nothing
    stop = threading.Event()

    def end(number: int, _frame: FrameType | None) -> None:
        log.info("%s: ending", signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with Registry.open(begin=True) as registry, engine_client(settings.scorer_timeout_s) as client:
        scorer = Scorer(
            registry.fleet,
            client,
            concurrency=settings.scorer_concurrency,
            max_tokens=settings.scorer_max_tokens,
            stopping=stop.is_set,
        )
        metrics = Metrics()
        stream = CanaryStream(registry, settings, client, metrics, stopping=stop.is_set)
        baselines = Baselines(stream) if settings.canary_every_s else None
        canaries = CanaryWatch(stream) if settings.canary_every_s else None
        fixed = CanaryStream(registry, settings, client, metrics, stopping=stop.is_set, signal=REFERENCE_BLEU)
        references = ReferenceAnswers(fixed, client) if settings.reference_answers else None
        heartbeat = Heartbeat(settings.heartbeat_url)
        monitor = Monitor(
            registry, settings, scorer, metrics, stopping=stop.is_set, alive=heartbeat.beat, canaries=canaries
        )
        deliverer = Deliverer(registry, settings, metrics, rng=random.Random(), redact=Redactor(), stopping=stop.is_set)
        if once:
            try:
                found = monitor.run_once()
                if baselines is not None:
                    baselines.round()
                if references is not None:
                    references.round()
                return found
            finally:
                deliverer.round(to_the_end=True)
                deliverer.close()
        server = metrics.serve(settings.metrics_host, settings.metrics_port) if settings.metrics_port else None
        log.info("watching, every %.0f s", settings.every_s)
        unjudged = Unjudged(registry, settings, metrics, stop.is_set)
        beside = [
            threading.Thread(target=deliverer.run, args=(stop.wait,), name="deliveries"),
            threading.Thread(target=unjudged.run, args=(stop.wait,), name="signals not judged"),
        ]
        if baselines is not None:
            beside.append(threading.Thread(target=baselines.run, args=(stop.wait,), name="baselines"))
        if references is not None:
            beside.append(threading.Thread(target=references.run, args=(stop.wait,), name="reference answers"))
        for thread in beside:
            thread.start()
        try:
            monitor.run(stop.wait)
        finally:
            stop.set()
            for thread in beside:
                thread.join()
            deliverer.close()
            if server is not None:
                server[0].shutdown()
                server[0].server_close()
    return []
