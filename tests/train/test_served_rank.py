"""A rank that no engine would load is told before money is spent: by the engines that live, or by what is set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from tests_support import beat_engine
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.versions import artifacts
from tuneloop.train.base import Base
from tuneloop.train.tuning.limit import rank_limit
from tuneloop.train.tuning.served import RankLimit
from tuneloop.train.verbs.plan import plan
from tuneloop.train.verbs.train import train

SET = "TUNELOOP_ENGINE_MAX_LORA_RANK"
DEFAULT = RankLimit(16, "the engine's default --max-lora-rank")


@pytest.fixture
def at_home(registry_home: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> Path:
    monkeypatch.setenv("TUNELOOP_HOME", str(registry_home))
    monkeypatch.setenv("TUNELOOP_TRAIN_THREADS", "1")
    return registry_home


@pytest.fixture
def engines_serve(registry: Registry, tiny: Base) -> Callable[[int], None]:
    """Makes engines live: two with the tiny base, the better one up to this rank, and others that do not count."""

    def beat(rank: int) -> None:
        at = registry.clock() + timedelta(hours=1)  # however slow the machine is
        beat_engine(registry, id="e1", base_digest=tiny.digest, max_lora_rank=1, at=at)
        beat_engine(registry, id="e2", base_digest=tiny.digest, max_lora_rank=rank, at=at)
        beat_engine(registry, id="e3", base_digest="sha256:another", max_lora_rank=512, at=at)
        beat_engine(registry, id="e4", base_digest=tiny.digest, max_loras=0, max_lora_rank=512, at=at)

    return beat


def of_rank(recipe: Path, rank: int) -> Path:
    recipe.write_text(recipe.read_text().replace("{rank: 4}", f"{{rank: {rank}}}"))
    return recipe


def planned(recipe: Path) -> str | None:
    done = CliRunner().invoke(plan, [str(recipe), "--device", "L40S", "--json"], catch_exceptions=False)
    why_not = json.loads(done.output)["servable"]["why_not"]
    return None if why_not is None else str(why_not)


def test_engines_are_asked_first_then_the_settings_then_it_is_the_engines_default(
    registry: Registry,
    engines_serve: Callable[[int], None],
    tiny: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rank_limit(None, lambda: tiny.digest) == DEFAULT
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuneloop.toml").write_text("[engine]\nmax_lora_rank = 64\n")
    assert rank_limit(None, lambda: tiny.digest) == RankLimit(64, "the engine's max_lora_rank, from tuneloop.toml")
    monkeypatch.setenv(SET, "8")
    assert rank_limit(registry, lambda: tiny.digest) == RankLimit(8, f"the engine's max_lora_rank, from {SET}")
    monkeypatch.delenv(SET)
    (tmp_path / "rank").write_text("8\n")
    monkeypatch.setenv(f"{SET}_FILE", str(tmp_path / "rank"))
    said_by_file = RankLimit(8, f"the engine's max_lora_rank, from {SET}_FILE")
    assert rank_limit(registry, lambda: tiny.digest) == said_by_file
    engines_serve(32)
    live = RankLimit(32, "the highest --max-lora-rank of the live engines with this base")
    assert rank_limit(registry, lambda: tiny.digest) == live
    assert rank_limit(registry, lambda: None).rank == rank_limit(registry, lambda: "sha256:mine").rank == 8


def test_a_registry_that_is_away_is_no_reason_to_fail_and_is_told(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> NoReturn:
        raise Unavailable("the database does not answer")

    monkeypatch.setattr(registry.fleet, "engines", away)
    asked = "(live engines could not be asked: the database does not answer)"
    assert rank_limit(registry, lambda: "sha256:mine") == RankLimit(16, f"{DEFAULT.said_by} {asked}")


def test_a_rank_in_the_settings_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SET, "many")
    with pytest.raises(InvalidInput, match=f"max_lora_rank, from {SET}, is 'many' and no number"):
        rank_limit(None, lambda: None)


def test_a_plan_knows_what_the_engines_serve(
    at_home: Path, tiny_recipe: Path, engines_serve: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_rank(tiny_recipe, 16)
    assert planned(tiny_recipe) is None
    monkeypatch.setenv(SET, "8")
    said = f"tuning.rank 16 is above 8, the engine's max_lora_rank, from {SET}; raise that one, or lower tuning.rank"
    assert planned(tiny_recipe) == said
    engines_serve(64)
    assert planned(tiny_recipe) is None
    engines_serve(8)
    assert str(planned(tiny_recipe)).startswith("tuning.rank 16 is above 8, the highest --max-lora-rank of the live")


def test_a_plan_begins_no_state(tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv(SET, "64")
    assert planned(of_rank(tiny_recipe, 64)) is None
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("served", [8, 64])
def test_a_run_warns_of_a_rank_above_what_engines_serve_and_so_does_the_card(
    served: int, at_home: Path, registry: Registry, tiny_recipe: Path, engines_serve: Callable[[int], None]
) -> None:
    engines_serve(served)
    text = of_rank(tiny_recipe, 32).read_text()
    tiny_recipe.write_text(text.replace("steps: 3", "steps: 1").replace("generate: 2", "generate: 0"))
    done = CliRunner().invoke(train, [str(tiny_recipe)], catch_exceptions=False)
    said = "cannot be served as it is: tuning.rank 32 is above 8, the highest --max-lora-rank of the live engines with"
    version = registry.versions.get("bot", 1)
    card = (registry.versions.fetch(version, at_home / "fetched") / "README.md").read_text()
    assert (f"warning: this version {said}" in done.output, said in card) == (served == 8, served == 8)
    assert ("cannot be served" in done.output, "cannot be served" in card) == (served == 8, served == 8)


def test_a_plan_reads_a_bases_weights_once_and_only_where_a_rank_is_to_be_served(
    at_home: Path, tiny_recipe: Path, engines_serve: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines_serve(8)
    read: list[Path] = []
    digest_of = artifacts.base_digest

    def heard(folder: Path) -> str:
        read.append(folder)
        return digest_of(folder)

    monkeypatch.setattr(artifacts, "base_digest", heard)
    text = of_rank(tiny_recipe, 16).read_text()
    two = f"{text}stages: [{{name: one}}, {{name: two, run: {{seed: 1}}}}]\n"
    tiny_recipe.write_text(two)
    done = CliRunner().invoke(plan, [str(tiny_recipe), "--device", "L40S", "--json"], catch_exceptions=False)
    why_not = [stage["servable"]["why_not"] for stage in json.loads(done.output)["stages"]]
    assert ["above 8" in why for why in why_not] == [True, True]
    assert len(read) == 1
    tiny_recipe.write_text(text.replace("{rank: 16}", "{method: ia3}"))
    assert "IA3" in str(planned(tiny_recipe))
    assert len(read) == 1


def test_a_plan_for_a_base_without_its_weights_asks_no_engine(
    at_home: Path, tiny_recipe: Path, tiny_folder: Path, tmp_path: Path, engines_serve: Callable[[int], None]
) -> None:
    engines_serve(64)
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = of_rank(tiny_recipe, 32)
    recipe.write_text(recipe.read_text().replace(str(tiny_folder), str(bare)))
    assert "above 16, the engine's default" in str(planned(recipe))


def test_a_rank_in_the_settings_that_is_none_ends_a_training_before_anything_begins(
    at_home: Path, registry: Registry, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SET, "many")
    done = CliRunner().invoke(train, [str(tiny_recipe)])
    assert "'many' and no number" in str(done.exception)
    assert not (at_home / "runs").exists()
