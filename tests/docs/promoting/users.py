"""Users who ask the gateway and rate what they are answered, so many of each arm: what is judged has exact counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

from serve.gateway.world import Address, until
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Route
from tuneloop.registry.routes.assignment import assign, key_hash, shadowed

MODEL = "python-helper"
SCORES = {1: (0.5, 0.8), 2: (0.6, 0.8)}  # what users think of a version's answers, in turn
SILENT = 5  # every so manieth rates nothing
_AT_ONCE = 12
_COPIES_AT_ONCE = 8  # well under the places that a gateway has for copies: what finds none is dropped
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Asked:
    """Whom a request was for, and what answered it by the response's headers."""

    id: str
    unit: str
    version: str
    revision: int


@dataclass
class Users:
    """Everybody who asks `python-helper`."""

    registry: Registry
    gateway: Address

    def ask_as(self, unit: str, *, stream: bool = False) -> Asked:
        """One request of one user."""
        got = self.gateway.chat(model=MODEL, unit=unit, stream=stream)
        assert got.status == 200, got.body
        said = got.headers
        return Asked(said["x-request-id"], unit, said["x-tuneloop-version"], int(said["x-tuneloop-revision"]))

    def ask(self, counts: Mapping[int, int], *, rate: bool = True) -> None:
        """Ask as users of each arm, version → how many; returns when everything they said is stored."""
        route = self.registry.routes.current(MODEL)
        arms = [
            [(version, number, unit) for number, unit in enumerate(_of_arm(route, version, many))]
            for version, many in counts.items()
        ]
        mixed = [one for together in itertools.zip_longest(*arms) for one in together if one is not None]

        def one(version: int, number: int, unit: str) -> tuple[str, bool]:
            asked = self.ask_as(unit)
            assert asked.version == f"{MODEL}@{version}", asked
            if not rate or number % SILENT == SILENT - 1:
                return asked.id, False
            body = {"request_id": asked.id, "score": SCORES[version][number % 2]}
            assert self.gateway.call("/v1/feedback", body).status == 201
            return asked.id, True

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            done = list(pool.map(lambda given: one(*given), mixed))
        self._stored([request for request, _ in done], [request for request, rated in done if rated])

    def ask_beside_a_shadow(self, copied: int, others: int) -> None:
        """Streamed requests of users whose requests are copied, and of some whose are not; until all is stored."""
        route = self.registry.routes.current(MODEL)
        units = islice(_where(lambda unit: shadowed(route, key_hash(unit))), copied)
        while few := list(islice(units, _COPIES_AT_ONCE)):
            for request in self._streamed(few):
                until(partial(self.registry.traffic.shadows_of, request), _PATIENCE_S, f"the copy of {request}")
        self._streamed(list(islice(_where(lambda unit: not shadowed(route, key_hash(unit))), others)))

    def _streamed(self, units: list[str]) -> list[str]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = [one.id for one in pool.map(partial(self.ask_as, stream=True), units)]
        self._stored(asked, [])
        return asked

    def wait_for(self, split: Mapping[int, int]) -> None:
        """Until the route gives these shares and the gateway applies it."""

        def applied() -> bool:
            route = self.registry.routes.current(MODEL)
            live = self.registry.fleet.gateways()
            return route.split == split and [one.applied.get(MODEL) for one in live] == [route.revision]

        until(applied, _PATIENCE_S, f"the gateway applies {split}")

    def _stored(self, requests: list[str], rated: list[str]) -> None:
        traffic = self.registry.traffic
        until(lambda: len(traffic.held(requests)) == len(requests), _PATIENCE_S, "the records are stored")
        until(lambda: len(traffic.feedback_for(rated)) == len(rated), _PATIENCE_S, "the feedback is stored")


def _where(true: Callable[[str], bool]) -> Iterator[str]:
    return (unit for unit in (f"user-{number}" for number in count(1)) if true(unit))


def _of_arm(route: Route, version: int, many: int) -> list[str]:
    return list(islice(_where(lambda unit: assign(route, unit) == version), many))
