"""The dashboards against Grafana's own types: its SDK, made from the schemas, reads them and loses nothing.

A field that Grafana does not know is dropped when it is read, so what comes back differs from what was written; a value
of another type than the schema says is found by its annotations. The SDK is of the newest Grafana it is published for.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.deployed import dashboards

OF_THE_SOURCE = {"titleFormat"}  # of annotations: read by the Prometheus data source, whose part the SDK does not have
BOARDS = dashboards()


@pytest.fixture(scope="module", autouse=True)
def _kinds_of_panels() -> None:
    register_default_plugins()


def read(board: dict[str, Any]) -> Dashboard:
    return Dashboard.from_json(json.loads(json.dumps(board)))


def lost(written: object, back: object, path: str = "") -> Iterator[str]:
    """What was written and did not come back."""
    if isinstance(written, dict) and isinstance(back, dict):
        for name, value in written.items():
            if name not in back:
                if name not in OF_THE_SOURCE:
                    yield f"{path}/{name}"
            else:
                yield from lost(value, back[name], f"{path}/{name}")
    elif isinstance(written, list) and isinstance(back, list):
        for place, pair in enumerate(zip(written, back, strict=True)):
            yield from lost(*pair, f"{path}/{place}")
    elif written != back:
        yield f"{path}: {written!r} became {back!r}"


def mistyped(value: object, wanted: Any, path: str) -> Iterator[str]:
    """What is not of the type that the schema says."""
    kind, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if kind in (typing.Union, types.UnionType):
        found = [[*mistyped(value, one, path)] for one in parts if one is not types.NoneType]
        if value is not None and [] not in found:  # of kinds that it may be, the one it comes nearest to
            yield from max(found, key=lambda texts: texts[0].partition(":")[0].count("/"))
        return
    if kind is typing.Literal:
        fits = value in parts
    elif isinstance(wanted, type) and issubclass(wanted, Enum):  # the SDK keeps some as their values
        fits = isinstance(value, wanted) or value in {one.value for one in wanted}
    elif wanted is float or wanted is int:
        fits = isinstance(value, int | wanted) and not isinstance(value, bool)
    else:
        fits = wanted is object or isinstance(value, kind or wanted)
    if not fits:
        yield f"{path}: {value!r} is no {wanted}"
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from mistyped(item, parts[0] if kind is list else object, f"{path}/{place}")
    else:
        yield from mistyped_in(value, path)


def mistyped_in(thing: object, path: str) -> Iterator[str]:
    """The same, of every field of one of the SDK's objects."""
    if isinstance(thing, Enum) or not type(thing).__module__.startswith("grafana_foundation_sdk"):
        return
    for name, wanted in typing.get_type_hints(type(thing)).items():
        yield from mistyped(getattr(thing, name), wanted, f"{path}/{name}")


@pytest.mark.parametrize("name", BOARDS)
def test_grafana_knows_every_field_of_a_dashboard_and_its_type(name: str) -> None:
    found = read(BOARDS[name])
    assert [*lost(BOARDS[name], json.loads(JSONEncoder().encode(found)))] == []
    assert [*mistyped_in(found, name)] == []


def test_a_field_that_grafana_does_not_know_and_a_value_of_another_type_are_found() -> None:
    board = json.loads(json.dumps(BOARDS["capacity.json"]))
    panel = board["panels"][1]
    panel["colour"] = "red"
    panel["options"]["legend"]["where"] = "left"
    panel["gridPos"]["w"] = "wide"
    panel["fieldConfig"]["defaults"]["custom"]["lineWidth"] = "thick"
    found = read(board)
    assert [*lost(board, json.loads(JSONEncoder().encode(found)))] == [
        "/panels/1/options/legend/where",
        "/panels/1/colour",
    ]
    wrong = [text.partition(":")[0] for text in mistyped_in(found, "")]
    assert wrong == ["/panels/1/grid_pos/w", "/panels/1/field_config/defaults/custom/line_width"]
