"""`stages`: several objectives one after the other, as one recipe; each goes on from what earlier ones made.

    stages:
      - {name: sft, data: {train: answers.jsonl}}
      - {name: reward, data: {train: preferences.jsonl}, objective: {kind: reward}, …}
      - {name: ppo, base: {adapter: sft}, objective: {kind: ppo, reward_model: reward, …}, …}

A stage is the recipe's own sections with its keys put over them as a recipe's over those it extends, key by key, and of
`run.steps` and `run.epochs` the stage's. `objective` and `tuning` are taken as a whole, because each of their kinds has
keys of its own, and `evaluate.sets`, because each objective is measured on rows of its own. Each stage is published as
MODEL-NAME, the last one as MODEL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tuneloop.train.recipe.layers import Layers, merged

if TYPE_CHECKING:
    from tuneloop.train.recipe.file import Recipe

STAGES = "stages"
_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,30}$")
_WHOLE = (("objective",), ("tuning",), ("evaluate", "sets"))


@dataclass(frozen=True)
class Stage:
    """One of them: a whole recipe, in which earlier stages still stand by their names."""

    name: str
    recipe: Recipe
    values: Mapping[str, Any]

    @property
    def needs(self) -> tuple[str, ...]:
        """The earlier stages it names."""
        named = (self.recipe.base.adapter, getattr(self.recipe.objective, "reward_model", None))
        return tuple(name for name in named if name is not None and "@" not in name and _NAME.match(name))

    def text(self, made: Mapping[str, str]) -> str:
        """The stage as a recipe that stands alone, with each earlier stage's version (`made`) for its name."""
        values = {section: dict(keys) for section, keys in self.values.items()}
        for section, key in (("base", "adapter"), ("objective", "reward_model")):
            keys = values.get(section, {})
            if keys.get(key) in made:
                keys[key] = made[keys[key]]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def split(document: Layers) -> list[tuple[str, dict[str, Any]]]:
    """Name and values of every stage, in order; what is wrong with the list itself goes to the document's errors."""
    shared = {key: value for key, value in document.values.items() if key != STAGES}
    listed = document.values[STAGES]
    if not isinstance(listed, list) or not listed:
        document.complain((STAGES,), "is no list of stages; give each a name and what is different in it")
        return []
    found: list[tuple[str, dict[str, Any]]] = []
    for index, given in enumerate(listed):
        place = (STAGES, index)
        if not isinstance(given, dict):
            document.complain(place, "is no mapping; give a name and what is different in this stage")
            continue
        name = given.get("name")
        if not isinstance(name, str) or not _NAME.match(name) or name in dict(found):
            document.complain((*place, "name"), f"give each stage a name of its own, such as sft (given: {name!r})")
            continue
        own = {key: value for key, value in given.items() if key != "name"}
        values = merged(shared, own, whole=_WHOLE)
        publish = values.get("publish")
        if index < len(listed) - 1 and "publish" not in own and isinstance(publish, dict) and "model" in publish:
            values["publish"] = {**publish, "model": f"{publish['model']}-{name}"}
        found.append((name, values))
    return found


def check_needs(document: Layers, stages: list[Stage], root: Path | None) -> None:
    """Every stage that another names must stand before it, and be of the kind that is asked for.

    Args:
        document: gets the errors.
        stages: in their order.
        root: the recipe's folder, in which a reward model may be a folder; None where files are not looked at.
    """
    earlier: dict[str, Stage] = {}
    for index, stage in enumerate(stages):
        with document.within((STAGES, index)):
            adapter, reward = stage.recipe.base.adapter, getattr(stage.recipe.objective, "reward_model", None)
            known = ", ".join(earlier) or "none"
            if adapter is not None and "@" not in adapter:
                _check(document, "base", "adapter", earlier.get(adapter), known, wants_reward=False)
            folder = root is None or (reward is not None and (root / reward).is_dir())
            if reward is not None and "@" not in reward and (reward in earlier or not folder):
                _check(document, "objective", "reward_model", earlier.get(reward), known, wants_reward=True)
        earlier[stage.name] = stage


def _check(document: Layers, section: str, key: str, named: Stage | None, known: str, *, wants_reward: bool) -> None:
    if named is None:
        document.complain((section, key), f"is neither an earlier stage (there are: {known}) nor MODEL@NUMBER")
    elif (named.recipe.objective.kind == "reward") is not wants_reward:
        kind = named.recipe.objective.kind
        wanted = "a stage with objective reward" if wants_reward else "a stage that makes a model that speaks"
        document.complain((section, key), f"stage {named.name} has objective {kind}; name {wanted}")
