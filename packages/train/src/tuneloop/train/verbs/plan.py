"""`tuneloop plan`: what a recipe will need and cost, before anything is loaded or rented."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuneloop.registry.printing import emit, json_option

if TYPE_CHECKING:
    from tuneloop.train.plan.prices import PriceTable
    from tuneloop.train.plan.rows import RowFacts
    from tuneloop.train.plan.shapes import PlannedBase
    from tuneloop.train.recipe import Recipe
    from tuneloop.train.recipe.tuning import TuningSection
    from tuneloop.train.tuning.served import RankLimit

_ASSUMED_ROWS = 10_000
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("recipe", required=False)
@click.option("--device", help="A device of the price table (A100-80G, H100, …), or `this` machine, the default.")
@click.option("--provider", help="Only this provider's offers (aws, azure, gcp).")
@click.option("--prices", type=_PATH, help="A table of devices and prices instead of tuneloop's own.")
@click.option("--rows", type=click.IntRange(min=1), help="Plan for so many rows of full length; reads no data.")
@click.option("--compare", "compares", is_flag=True, help="Draw the fine-tuning guide's cost table from the model.")
@json_option
def plan(
    recipe: str | None,
    device: str | None,
    provider: str | None,
    prices: Path | None,
    rows: int | None,
    compares: bool,
    as_json: bool,
) -> None:
    """Say what a recipe needs and costs: memory, time, energy, money, servability; nothing is loaded."""
    from tuneloop.train.plan import compare
    from tuneloop.train.plan.prices import TABLE, load_prices
    from tuneloop.train.settings import TrainSettings

    table = load_prices(prices or TrainSettings.load().prices or TABLE)
    if compares:
        if recipe is not None:
            raise click.UsageError("--compare plans the guide's models; leave RECIPE out")
        lines = compare.compare(table, device or "A100-80G")
        emit(compare.as_json(lines), as_json, compare.shown(lines))
        return
    if recipe is None:
        raise click.UsageError("name a RECIPE (a file, or one of `tuneloop recipe list`), or give --compare")
    _plan(recipe, table, device or "this", provider, rows, as_json)


def _plan(recipe: str, table: PriceTable, device: str, provider: str | None, rows: int | None, as_json: bool) -> None:
    from tuneloop.registry.settings import RegistrySettings
    from tuneloop.train.plan.advice import advise
    from tuneloop.train.plan.machine import machine_called
    from tuneloop.train.plan.plan import as_json as plan_json
    from tuneloop.train.plan.plan import make_plan
    from tuneloop.train.plan.shapes import planned_base
    from tuneloop.train.plan.show import shown
    from tuneloop.train.plan.together import together
    from tuneloop.train.recipe.named import recipe_at
    from tuneloop.train.recipe.objective import unservable
    from tuneloop.train.settings import TrainSettings
    from tuneloop.train.tuning.architectures import unserved
    from tuneloop.train.tuning.served import servable

    file, is_named = recipe_at(recipe)
    home = RegistrySettings.load().home
    threads = TrainSettings.load().threads
    machine = machine_called(device, table, provider, threads)
    kinds = table.devices if machine.kind == "cuda" else ()
    others = tuple(machine_called(name, table, provider, threads) for name in kinds)
    assumed = rows or (_ASSUMED_ROWS if is_named else None)
    told, plans, digest = [], [], cache(_digest)
    for name, one in [(stage.name, stage.recipe) for stage in file.stages] or [("", file.recipe)]:
        base = planned_base(one.base.model, home / "bases", relative_to=file.folder)
        made = make_plan(one, base.shape, _facts(one, file.folder, base, assumed), machine)
        advice = advise(made, others)
        why_not = servable(one.tuning, _limit(one.tuning, partial(digest, base.folder))) or unservable(one.objective)
        why_not = why_not or unserved(base.architecture, one.tuning)
        values = plan_json(made, why_not, [found.as_json() for found in advice])
        told.append((name, values, shown(made, why_not, advice, base.source)))
        plans.append(made)
    if not file.stages:
        emit(told[0][1], as_json, told[0][2])
        return
    all_of_it = together(plans)
    emit(
        {"stages": [{"name": name, **values} for name, values, _ in told], "together": all_of_it.as_json()},
        as_json,
        "\n\n".join([*(f"stage {name}\n\n{text}" for name, _, text in told), all_of_it.shown()]),
    )


def _limit(tuning: TuningSection, digest: Callable[[], str | None]) -> RankLimit:
    """Of live engines where there is a state; a plan begins none. Only of a rank are they asked."""
    from tuneloop.registry import Registry
    from tuneloop.registry.errors import NotFound
    from tuneloop.train.recipe.tuning import LowRankTuning
    from tuneloop.train.tuning.limit import rank_limit

    try:
        registry = Registry.open(upgrade=False) if isinstance(tuning, LowRankTuning) else None
    except NotFound:
        registry = None
    if registry is None:
        return rank_limit(None, digest)
    with registry:
        return rank_limit(registry, digest)


def _digest(folder: Path | None) -> str | None:
    """Of a base; None where its weights are not on this machine. All of them are read."""
    from tuneloop.registry.errors import InvalidInput
    from tuneloop.registry.versions.artifacts import base_digest

    try:
        return base_digest(folder) if folder else None
    except InvalidInput:
        return None


def _facts(recipe: Recipe, folder: Path, base: PlannedBase, rows: int | None) -> RowFacts:
    from tuneloop.train.data.sources import Places
    from tuneloop.train.plan.material import facts_of_material
    from tuneloop.train.plan.rows import assumed, facts_of, require_files
    from tuneloop.train.recipe import VALIDATION
    from tuneloop.train.recipe.objective import SftObjective

    objective = recipe.objective
    longest, watched = objective.max_length, recipe.data.validation
    places = Places(folder, streaming=recipe.data.streaming, inputs=objective.template == "instruction")
    if rows is None and isinstance(objective, SftObjective):
        return facts_of(
            recipe.data.train,
            places,
            base.folder,
            longest,
            objective.template,
            measured=recipe.evaluate.sets | ({VALIDATION: watched} if watched is not None else {}),
            quality=recipe.data.quality,
        )
    if rows is None:
        require_files(recipe.data.train)
        return facts_of_material(recipe, places, base.folder)
    return assumed(rows, longest, "assumed, every row of full length")
