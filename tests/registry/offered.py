"""What somebody offers to be registered, and what registering leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.tracking import MlflowClient
from safetensors.numpy import save_file

from tuneloop.registry import Registry
from tuneloop.registry.nouns import Version
from tuneloop.registry.versions.registering import register
from tuneloop.registry.versions.sources import MlflowVersion, Source

LAYERS = 2
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": LAYERS,
    "vocab_size": 6,
    "tie_word_embeddings": True,
}
_TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "added_tokens": []}


def make_base(folder: Path, *, width: int = 8, template: str = "{{ messages }}") -> Path:
    """The shapes of a one-layer base, in the names real ones use."""
    folder.mkdir()
    shapes = {"self_attn.q_proj": (12, width), "mlp.up_proj": (16, width)}
    save_file(
        {f"model.layers.0.{name}.weight": np.full(shape, 0.5, np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(template)
    return folder


def make_whole(folder: Path, *, seed: int = 0, shards: int = 1, template: str = "{{ messages }}") -> Path:
    """A whole model of two layers, as `save_pretrained` writes it, in so many shards."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    names = ["model.embed_tokens.weight", *(f"model.layers.{n}.self_attn.q_proj.weight" for n in range(LAYERS))]
    tensors = {name: random.normal(size=(6, 8)).astype(np.float32) for name in names}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        there = {f"model-{n + 1:05}-of-{shards:05}.safetensors": names[n::shards] for n in range(shards)}
        for shard, held in there.items():
            save_file({name: tensors[name] for name in held}, folder / shard)
        found = {"weight_map": {name: shard for shard, held in there.items() for name in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(found))
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def write_tokenizer(folder: Path) -> Path:
    """The tokenizer of three words, as older ones write it."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(_TOKENIZER))
    return path


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes one out."""
    said = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


def brought(registry: Registry, source: Source, base: Path | None, *, model: str = "bot") -> Version:
    return register(registry, model, source, base=base, by="ada", reason="trained elsewhere")


def left(registry: Registry, client: MlflowClient) -> Any:
    """All that registering could leave: runs, models, versions and audit records."""
    runs = [
        run.info.run_id
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    ]
    versions = [f"{made.name}/{made.version}" for made in client.search_model_versions()]
    models = [model.name for model in client.search_registered_models()]
    return runs, versions, models, len(registry.audit.entries(limit=100))


def their_run(client: MlflowClient, folder: Path, *, path: str = "model") -> str:
    """A run that somebody else's training made."""
    experiment = client.get_experiment_by_name("theirs")
    store = (folder.parent / "theirs").as_uri()
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("theirs", store)
    run = client.create_run(experiment_id)
    client.set_tag(run.info.run_id, "mlflow.source.git.commit", "c0ffee")
    client.log_metric(run.info.run_id, "loss", 0.25)
    client.log_artifacts(run.info.run_id, str(folder), path)
    return str(run.info.run_id)


def their_version(client: MlflowClient, run_id: str, source: str) -> MlflowVersion:
    client.create_registered_model("theirs")
    return MlflowVersion("theirs", int(client.create_model_version("theirs", source, run_id).version))
