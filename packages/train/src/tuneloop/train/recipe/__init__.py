"""Recipes: strict YAML, one file a run."""

from __future__ import annotations

from tuneloop.registry.nouns import FRESH
from tuneloop.train.recipe.data import DataSection
from tuneloop.train.recipe.evaluate import VALIDATION, EvaluateSection
from tuneloop.train.recipe.file import Recipe, RecipeFile, RetrainSection, load_recipe
from tuneloop.train.recipe.objective import ObjectiveSection
from tuneloop.train.recipe.run import OptimSection, RunSection
from tuneloop.train.recipe.tuning import TuningSection

__all__ = [
    "FRESH",
    "VALIDATION",
    "DataSection",
    "EvaluateSection",
    "ObjectiveSection",
    "OptimSection",
    "Recipe",
    "RecipeFile",
    "RetrainSection",
    "RunSection",
    "TuningSection",
    "load_recipe",
]
