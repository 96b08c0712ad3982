"""What one registry's operations take, beside the call to MLflow's own client that comes nearest."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from statistics import median

from tests_support import beat_engine, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.overview import models
from tuneloop.registry.routes.promotion import Change, promote
from tuneloop.registry.routes.rolling_back import rollback

PAGE = 50
BY_NUMBER = ["version_number DESC"]
WARM = 2  # pairs that are not measured


@dataclass(frozen=True)
class Line:
    """One operation at one size on one database."""

    database: str
    versions: int
    operation: str
    ours_ms: float
    client: str
    client_ms: float | None
    ratio: float | None  # median over pairs


def timed_ms(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def pairs_of(ours: Callable[[], object], theirs: Callable[[], object], times: int) -> tuple[float, float, float]:
    """Medians of both, and of the ratio of each pair; who goes first changes, and the first pairs warm up."""
    pairs = []
    for number in range(times + WARM):
        if number % 2:
            theirs_ms, ours_ms = timed_ms(theirs), timed_ms(ours)
        else:
            ours_ms, theirs_ms = timed_ms(ours), timed_ms(theirs)
        pairs.append((ours_ms, theirs_ms))
    measured = pairs[WARM:]
    return median(a for a, _ in measured), median(b for _, b in measured), median(a / b for a, b in measured)


@dataclass(frozen=True)
class Size:
    """Every operation on one registry."""

    database: str
    registry: Registry
    versions: int
    pairs: int

    def lines(self) -> list[Line]:
        """Ours and the client's, in turn."""
        registry, client, middle = self.registry, self.registry.versions._client, self.versions // 2
        newest, alias, many = f"versions, newest {PAGE}", "get_model_version_by_alias", "search_registered_models"

        def champion() -> object:
            return client.get_model_version_by_alias("bot", "champion")

        def search(**order: list[str]) -> object:
            return client.search_model_versions("name = 'bot'", max_results=PAGE, **order)

        def connect() -> object:
            with Registry(registry.settings) as fresh:
                return fresh.versions._client

        def versions() -> object:
            return registry.versions.all("bot", newest=PAGE)

        return [
            self._line(
                "version get",
                lambda: registry.versions.get("bot", middle),
                "get_model_version",
                lambda: client.get_model_version("bot", str(middle)),
            ),
            self._line(newest, versions, "search_model_versions, by number", lambda: search(order_by=BY_NUMBER)),
            self._line(newest, versions, "search_model_versions, its order", search),
            self._line("route current", lambda: registry.routes.current("bot"), alias, champion),
            self._line("routes current, all models", registry.routes.current_all, alias, champion),
            self._line("models", lambda: models(registry), many, client.search_registered_models),
            self._line("connect", connect, many, lambda: client.search_registered_models(max_results=1)),
            self._alone("versions, every one", timed_ms(lambda: registry.versions.all("bot"))),
            self._promotions(),
            self._rollbacks(),
            self._publishing(),
        ]

    def _promotions(self) -> Line:
        """Two versions in turn, MLflow's aliases and all."""
        registry, numbers, others = self.registry, cycle((2, 1)), cycle("21")

        def ours() -> None:
            beat_engine(registry, "bot@1", "bot@2")
            promote(registry, "bot", next(numbers), Change("ada", "benchmark"))

        def theirs() -> None:
            registry.versions._client.set_registered_model_alias("bot", "baseline", next(others))

        return self._line("promote", ours, "set_registered_model_alias", theirs)

    def _rollbacks(self) -> Line:
        """Each one champion further back, of promotions made before."""
        registry, numbers, others = self.registry, cycle((2, 1)), cycle("21")
        beat_engine(registry, "bot@1", "bot@2")
        for _ in range(self.pairs + WARM + 1):
            promote(registry, "bot", next(numbers), Change("ada", "benchmark"))

        def ours() -> None:
            rollback(registry, "bot", Change("ada", "benchmark"))

        def theirs() -> None:
            registry.versions._client.set_registered_model_alias("bot", "baseline", next(others))

        return self._line("rollback", ours, "set_registered_model_alias", theirs)

    def _publishing(self) -> Line:
        """A run with a tiny file, signed, and a version of it; the client's is the version alone."""
        registry, client, numbers = self.registry, self.registry.versions._client, count()
        there = registry.versions.get("bot", 1)
        source = client.get_model_version("bot", "1").source
        with tempfile.TemporaryDirectory(prefix="tuneloop-bench-") as folder:
            return self._line(
                "publish",
                lambda: publish_version(registry, Path(folder) / str(next(numbers))),
                "create_model_version",
                lambda: client.create_model_version("bot", source, there.run_id),
            )

    def _line(self, operation: str, ours: Callable[[], object], call: str, theirs: Callable[[], object]) -> Line:
        ours_ms, theirs_ms, ratio = pairs_of(ours, theirs, self.pairs)
        return Line(self.database, self.versions, operation, ours_ms, call, theirs_ms, ratio)

    def _alone(self, operation: str, ours_ms: float) -> Line:
        return Line(self.database, self.versions, operation, ours_ms, "-", None, None)
