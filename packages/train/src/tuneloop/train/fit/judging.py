"""Who judges a run's answers: found, and refused, before anything is loaded; loaded when training begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import parse_version_name
from tuneloop.train.base import Base
from tuneloop.train.fit.reward import check_reward_folder, load_reward_model
from tuneloop.train.recipe import RecipeFile
from tuneloop.train.recipe.objective import GrpoObjective, ObjectiveSection, PpoObjective
from tuneloop.train.rewards import Judge, RewardFunction, find_rewards


@dataclass(frozen=True)
class Judging:
    """The reward functions of a recipe, and the folder of its reward model."""

    functions: Mapping[str, RewardFunction]
    model: str | None
    folder: Path | None
    base: Base

    @staticmethod
    def of(file: RecipeFile, base: Base, registry: Registry) -> Judging:
        """Find everything the recipe names; nothing where its objective rewards no answers.

        Raises:
            NotFound: a reward function or a version does not exist.
            InvalidInput: a reward model is none, or one of another base or template.
        """
        objective = file.recipe.objective
        if not isinstance(objective, GrpoObjective | PpoObjective):
            return Judging({}, None, None, base)
        functions, name = find_rewards(objective.rewards), objective.reward_model
        if name is None:
            return Judging(functions, None, None, base)
        if (file.folder / name).is_dir():
            folder = file.folder / name
        elif "@" in name:
            version = registry.versions.get(*parse_version_name(name))
            folder = registry.versions.fetch(version, registry.settings.home / "adapters")
        else:
            raise InvalidInput(
                f"objective.reward_model {name!r} is neither a folder ({file.folder / name}) nor MODEL@NUMBER"
            )
        check_reward_folder(folder, base, name)
        return Judging(functions, name, folder, base)

    @staticmethod
    def again(objective: ObjectiveSection, folder: Path | None, base: Base) -> Judging:
        """The same in another process: reward functions by their names, and the reward model's folder."""
        return Judging(find_rewards(getattr(objective, "rewards", ())), None, folder, base)

    @property
    def named(self) -> list[str]:
        """What judges, for the lineage."""
        return [*self.functions, *([self.model] if self.model is not None else [])]

    def judge(self, tokenizer: Any, *, dtype: str, device: str, attention: str) -> Judge | None:
        """Ready to judge; None where nothing is judged."""
        if self.folder is None:
            return Judge(self.functions) if self.functions else None
        model = load_reward_model(self.folder, self.base, tokenizer, dtype=dtype, device=device, attention=attention)
        return Judge(self.functions, model)
