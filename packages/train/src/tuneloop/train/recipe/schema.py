"""The JSON schema of recipes, for editors: `tuneloop recipe schema`. It says what the sections say, comments included.

An editor checks keys and values with it as one types; what needs several values at once (`steps` or `epochs`) only
`load_recipe` checks. With `extends` or `stages`, nothing is required of the sections themselves.
"""

from __future__ import annotations

from typing import Any

from tuneloop.train.recipe.comments import comment_of, sections_in
from tuneloop.train.recipe.file import Recipe
from tuneloop.train.recipe.layers import EXTENDS
from tuneloop.train.recipe.part import Part
from tuneloop.train.recipe.stages import STAGES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXTENDS_MEANS = "a recipe that comes with tuneloop, by name, or a path beside this file; what stands here wins over it"
STAGES_MEANS = (
    "several objectives one after the other: each stage has a name, and its keys win over the shared sections"
)
_SHAPE_KEYS = {"method", "kind"}


def recipe_schema() -> dict[str, Any]:
    """The schema as JSON values."""
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    required_inside: dict[str, Any] = {}
    for model in all_sections(Recipe):
        described = definitions.get(model.__name__, schema if model is Recipe else None)
        if described is None:
            continue
        for name, property_ in described.get("properties", {}).items():
            if text := comment_of(model, name):
                property_["description"] = text
            if property_.get("type") == "array":  # one name may stand alone
                described["properties"][name] = _or_one(property_)
    for name, field in Recipe.model_fields.items():
        for model in sections_in(field.annotation):
            needed = definitions[model.__name__].pop("required", [])
            if kept := [key for key in needed if key in _SHAPE_KEYS]:
                definitions[model.__name__]["required"] = kept
            rest = [key for key in needed if key not in _SHAPE_KEYS]
            if rest and len(sections_in(field.annotation)) == 1:
                required_inside[name] = {"required": rest}
    stage = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    schema["properties"] = {
        EXTENDS: {"type": "string", "description": EXTENDS_MEANS},
        **schema["properties"],
        STAGES: {"type": "array", "items": stage, "minItems": 1, "description": STAGES_MEANS},
    }
    whole = {"required": schema.pop("required"), "properties": required_inside}
    return {
        "$schema": DIALECT,
        **schema,
        "if": {"not": {"anyOf": [{"required": [EXTENDS]}, {"required": [STAGES]}]}},
        "then": whole,
    }


def all_sections(model: type[Part]) -> tuple[type[Part], ...]:
    """`model` and every section below it, each once, in the order they are met."""
    found: list[type[Part]] = [model]
    for field in model.model_fields.values():
        for section in sections_in(field.annotation):
            found += [one for one in all_sections(section) if one not in found]
    return tuple(found)


def _or_one(array: dict[str, Any]) -> dict[str, Any]:
    outside: dict[str, Any] = {key: array.pop(key) for key in ("description", "default", "title") if key in array}
    return {**outside, "anyOf": [array, array.get("items", {})]}
