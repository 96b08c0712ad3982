"""A tiny real Llama (0.8M random parameters) behind SmolLM2's tokenizer and template: for plumbing, not content."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from train.launching import Trained, run_in, write_recipe
from tuneloop.train.base import Base, read_base

TOPICS = ("tides", "rivers", "glaciers", "volcanoes", "deserts", "forests", "meadows", "canyons", "islands", "lagoons")
VERBS = ("rise", "fall", "turn", "spread", "shrink", "freeze", "burn", "settle")


def rows(start: int, count: int) -> list[dict[str, str]]:
    """Instruction rows whose questions and answers all differ well."""
    made = []
    for number in range(start, start + count):
        topic, verb = TOPICS[number % len(TOPICS)], VERBS[number // len(TOPICS) % len(VERBS)]
        code = f"{number * 7919 % 99991:05d}"
        made.append(
            {
                "instruction": f"Case {code}: when do the {topic} {verb}?",
                "output": f"The {topic} {verb} after signal {code[::-1]} on day {number * 31 % 97}.",
            }
        )
    return made


def write_jsonl(path: Path, values: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tiny model gains nothing from a second thread, and loses much when another process wants that core."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def only_what_a_test_makes_is_collected() -> Iterator[None]:
    """Each fit collects garbage, and going through all that was ever imported takes longer than the fit."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def make_rows() -> Callable[[int, int], list[dict[str, str]]]:
    return rows


@pytest.fixture(scope="session")
def tiny_folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _llama(tmp_path_factory.mktemp("bases") / "tiny", smollm2, layers=2)


@pytest.fixture(scope="session")
def shallow(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny model with one layer of its two: half of it to compile."""
    return read_base(_llama(tmp_path_factory.mktemp("bases") / "shallow", smollm2, layers=1))


def _llama(folder: Path, smollm2: Path, *, layers: int) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,  # far from flat, so that prompts, positions and training make a difference
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(smollm2 / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Base:
    return read_base(tiny_folder)


@pytest.fixture(scope="session")
def recipe_in(tiny_folder: Path) -> Callable[[Path], Path]:
    """Writes a recipe that trains the tiny model in seconds, with its data, into a folder."""

    def write(folder: Path) -> Path:
        write_jsonl(folder / "train.jsonl", rows(0, 40))
        write_jsonl(folder / "test.jsonl", rows(60, 12))
        write_jsonl(folder / "validation.jsonl", rows(74, 4))
        (folder / "recipe.yaml").write_text(
            f"""base: {{model: {tiny_folder}}}
data: {{train: train.jsonl, validation: validation.jsonl}}
tuning: {{rank: 4}}
objective: {{max_length: 96}}
optim: {{learning_rate: 5e-3}}
run: {{steps: 3, batch_size: 4, micro_batch: 2, dtype: float32}}
evaluate: {{sets: {{old: test.jsonl}}, generate: 2, max_new_tokens: 4}}
publish: {{model: bot}}
retrain: {{steps: 4, replay_rows: 16, margin: 0.5, min_rows: 2}}
"""
        )
        return folder / "recipe.yaml"

    return write


@pytest.fixture(scope="session")
def several_in(recipe_in: Callable[[Path], Path]) -> Callable[..., Path]:
    """Writes the recipe that tests of several processes share, with other keys in `run`, into a folder."""

    def write(folder: Path, keys: str, tuning: str = "{rank: 4}") -> Path:
        recipe = recipe_in(folder)
        return write_recipe(recipe, lambda path, count: write_jsonl(path, rows(0, count)), keys, tuning)

    return write


@pytest.fixture(scope="session")
def train_with(
    tmp_path_factory: pytest.TempPathFactory, several_in: Callable[..., Path], empty_state: Path
) -> Callable[..., Trained]:
    """Trains by that recipe, each kind of run once a session."""

    @cache
    def run(keys: str, tuning: str = "{rank: 4}") -> Trained:
        folder = tmp_path_factory.mktemp("launch")
        return run_in(folder / "home", empty_state, several_in(folder / "recipe", keys, tuning))

    return run


@pytest.fixture
def tiny_recipe(tmp_path: Path, recipe_in: Callable[[Path], Path]) -> Path:
    return recipe_in(tmp_path / "recipe")
