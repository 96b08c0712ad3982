"""How far a plan's memory and time are from what training takes: methods × batch × length × model size.

    .venv/bin/python benchmarks/plan_accuracy.py             # the error on the points kept in the repository
    .venv/bin/python benchmarks/plan_accuracy.py --measure "2 cores, AVX-512"   # what they lack of the grid on it

Models have real shapes and random weights, and are trained through the trainer recipes use. Memory on a CPU is the
kernel's high-water mark of the whole process (VmHWM), libraries included, nothing subtracted; on a GPU what torch's
allocator handed out at most. Time is the quickest step; on a CPU beside it the CPU seconds of the one thread, which a
quiet machine leaves comparable, and what that thread computes and moves a second. Points of a machine whose memory's
speed was not measured say nothing of time. Constants were fitted on these points, so that their errors are of the
model's form; machines differ by 5 % of memory. A full measurement takes 10 to 60 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tuneloop.train.plan.machine import memory_gb_s
from tuneloop.train.plan.memory import MIB
from tuneloop.train.plan.plan import Machine, make_plan
from tuneloop.train.plan.prices import Device
from tuneloop.train.plan.rows import RowFacts
from tuneloop.train.plan.shapes import shape_of_config
from tuneloop.train.recipe import Recipe

POINTS = Path(__file__).parent / "results" / "plan_points.json"
REPORT = Path(__file__).parent / "results" / "plan_accuracy.json"
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "smollm2-360m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
}
ATTENTION_ONLY = {"method": "lora", "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
LORA, FULL, IA3 = {"method": "lora"}, {"method": "full"}, {"method": "ia3"}
QLORA, INT8 = {"method": "qlora"}, {"method": "qlora", "bits": 8}


def point(
    shape: str,
    tuning: dict[str, Any],
    rows: int,
    length: int,
    *,
    dtype: str = "float32",
    checkpointing: bool = False,
    passes: int = 1,
    **others: str,
) -> dict[str, Any]:
    """What is measured, as it is kept; `others`: an `objective` that is not sft, `rows_lie` padded or packed."""
    return {
        "shape": shape,
        "tuning": tuning,
        "rows": rows,
        "length": length,
        "dtype": dtype,
        "checkpointing": checkpointing,
        "passes": passes,
        **others,
    }


GRID = [
    point("smollm2-135m", LORA, 1, 128),
    point("smollm2-135m", LORA, 1, 512),
    point("smollm2-135m", LORA, 1, 512, checkpointing=True),
    point("smollm2-135m", FULL, 1, 256),
    point("smollm2-135m", LORA, 2, 256),
    point("smollm2-135m", LORA, 1, 256),
    point("smollm2-135m", LORA, 1, 256, checkpointing=True),
    point("smollm2-135m", FULL, 1, 128, passes=2),
    point("smollm2-135m", IA3, 1, 256),
    point("smollm2-135m", {"method": "lora", "rank": 64}, 4, 128),
    point("smollm2-135m", ATTENTION_ONLY, 2, 256),
    point("smollm2-135m", LORA, 1, 64, dtype="bfloat16"),
    point("smollm2-135m", LORA, 1, 1024),
    point("smollm2-135m", {"method": "bottleneck"}, 1, 256),
    point("smollm2-360m", LORA, 1, 256),
    point("smollm2-360m", FULL, 1, 128),
    point("qwen2.5-0.5b", LORA, 1, 128),
    point("qwen2.5-0.5b", LORA, 1, 256, checkpointing=True),
    point("qwen2.5-0.5b", FULL, 1, 128),
    point("smollm2-135m", QLORA, 1, 256),
    point("smollm2-135m", INT8, 1, 256),
    point("smollm2-135m", LORA, 1, 256, objective="dpo"),
    point("smollm2-135m", LORA, 2, 256, rows_lie="padded"),
    point("smollm2-135m", LORA, 4, 128, rows_lie="packed"),
    point("smollm2-135m", {"method": "lora", "dora": True}, 1, 256),
    point("smollm2-135m", FULL, 1, 256, checkpointing=True),
    point("smollm2-135m", QLORA, 1, 512),
    point("smollm2-135m", QLORA, 1, 512, checkpointing=True),
    point("smollm2-135m", IA3, 2, 256, passes=2),
    point("smollm2-360m", {"method": "bottleneck"}, 1, 256),
]


def recipe_of(what: dict[str, Any], steps: int = 3) -> Recipe:
    """The recipe of a point."""
    return Recipe.model_validate(
        {
            "base": {"model": what["shape"]},
            "data": {"train": "train.jsonl"},
            "tuning": what["tuning"],
            "objective": {"kind": what.get("objective", "sft"), "max_length": what["length"]},
            "run": {
                "steps": steps,
                "batch_size": what["rows"] * what["passes"],
                "micro_batch": what["rows"],
                "dtype": what["dtype"],
                "gradient_checkpointing": what["checkpointing"],
                "packing": what.get("rows_lie") == "packed",
            },
            "evaluate": {"sets": {"test": "test.jsonl"}, "generate": 0},
            "publish": {"model": "measured"},
        }
    )


def measure(what: dict[str, Any]) -> dict[str, Any]:
    """Train a point in a process of its own."""
    command = [sys.executable, __file__, "--point", json.dumps(what)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    )
    if done.returncode != 0:
        raise RuntimeError(f"{what}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def train_here(what: dict[str, Any]) -> dict[str, Any]:
    """Train a point in this process, and say what it took."""
    import torch  # noqa: PLC0415 (the report needs none of this)
    from peft.helpers import disable_input_dtype_casting  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415
    from tokenizers.models import WordLevel  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        AutoConfig,
        AutoModelForCausalLM,
        PreTrainedTokenizerFast,
        PrinterCallback,
        TrainerCallback,
    )

    from tuneloop.train.data.labels import LabelledPair, LabelledRow  # noqa: PLC0415
    from tuneloop.train.fit.arguments import common_arguments  # noqa: PLC0415
    from tuneloop.train.fit.progress import Watch  # noqa: PLC0415
    from tuneloop.train.fit.trainers import trainer_for  # noqa: PLC0415
    from tuneloop.train.screen import Screen  # noqa: PLC0415
    from tuneloop.train.tuning import models  # noqa: PLC0415

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        steps_s: list[float] = []
        cpu_s: list[float] = []
        began: tuple[float, float] = (0.0, 0.0)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = (time.perf_counter(), time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.steps_s.append(time.perf_counter() - self.began[0])
            self.cpu_s.append(time.process_time() - self.began[1])

    recipe, config = recipe_of(what), AutoConfig.for_model(**SHAPES[what["shape"]])
    device = models.choose_device().value
    models.prepare_process(1)
    attention = models.choose_attention(device, what["dtype"]).value
    full = recipe.tuning.method == "full"
    dtype = torch.float32 if full else getattr(torch, what["dtype"])
    torch.manual_seed(0)
    if recipe.tuning.method == "qlora":
        model = quantised(what, recipe, device, attention)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).to(device)
    if not full:
        model = models.new_adapter(model, recipe.tuning, 0)
    steps, length = recipe.run.steps or 1, what["length"]
    padded = what.get("rows_lie") == "padded"

    def row(number: int, prompt: int = 0) -> LabelledRow:
        size = length // 2 if padded and number % 2 else length
        ids = tuple((number * 7919 + n * 31) % (config.vocab_size - 10) + 5 for n in range(size))
        return LabelledRow(ids, (-100,) * prompt + ids[prompt:], False, 1, prompt)

    numbers = range(steps * recipe.run.batch_size)
    paired = recipe.objective.kind in {"dpo", "reward"}
    rows: list[Any] = [
        LabelledPair(row(n, length // 4), row(n + 1, length // 4)) if paired else row(n) for n in numbers
    ]
    words = Tokenizer(WordLevel({"<end>": 0}, unk_token="<end>"))  # noqa: S106 (a token of text)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")  # noqa: S106
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = common_arguments(recipe, steps, device, Path(scratch), micro_batch=what["rows"])
        watch = Watch(Screen(sys.stderr), lambda _metrics, _step: None, lambda: None)
        trainer = trainer_for(model, tokenizer, rows, recipe, arguments, [clock], judge=None, watch=watch)
        trainer.remove_callback(PrinterCallback)
        amp = what["dtype"] == "bfloat16" and recipe.tuning.method == "lora"
        with disable_input_dtype_casting(model) if amp else nullcontext():
            trainer.train()
    peak = torch.cuda.max_memory_allocated() / MIB if device == "cuda" else _high_water_mib()
    return {
        "device": torch.cuda.get_device_name(0) if device == "cuda" else "cpu",
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "peak_mib": round(peak, 1),
        "step_s": round(min(clock.steps_s), 3),
        "cpu_s": round(min(clock.cpu_s), 3),
        "gflops": round(_gflops(torch), 1),
        "memory_gb_s": round(memory_gb_s(), 1),
    }


def quantised(what: dict[str, Any], recipe: Recipe, device: str, attention: str) -> Any:
    """A base of random weights, written by another process, quantised while it is read as in a run."""
    from tuneloop.train.base import Base  # noqa: PLC0415
    from tuneloop.train.recipe.tuning import QloraTuning  # noqa: PLC0415
    from tuneloop.train.tuning.quantised import load_quantised  # noqa: PLC0415

    assert isinstance(recipe.tuning, QloraTuning)
    with tempfile.TemporaryDirectory() as folder:
        write = (
            "import json, sys; from transformers import AutoConfig, AutoModelForCausalLM; "
            "config = AutoConfig.for_model(**json.loads(sys.argv[1])); "
            "AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[2])"
        )
        shape = json.dumps(SHAPES[what["shape"]])
        subprocess.run([sys.executable, "-c", write, shape, folder], check=True, capture_output=True)
        base = Base(what["shape"], Path(folder), "", "")
        return load_quantised(base, recipe.tuning, dtype=what["dtype"], device=device, attention=attention)


def _high_water_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _gflops(torch: Any) -> float:
    """float32 matrix products of a transformer's shape on one thread, by CPU time: the quickest of some."""
    left, right = torch.ones(512, 1024), torch.ones(1024, 2048)
    times = []
    for _ in range(8):
        began = time.process_time()
        torch.mm(left, right)
        times.append(time.process_time() - began)
    return float(2 * 512 * 1024 * 2048 / min(times) / 1e9)


def speeds_of(part: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """What one thread of a machine computes, in GFLOP/s, and moves, in GB/s, of all of its points; 0: not measured.

    The quickest product of all, since a slower reading is another process's doing; of copies, which differ, the median.
    """
    copies = [kept["measured"]["memory_gb_s"] for kept in part if "memory_gb_s" in kept["measured"]]
    gflops = max(kept["measured"].get("gflops", 0.0) for kept in part)
    return gflops, statistics.median(copies) if copies else 0.0


def compared(kept: dict[str, Any], gflops: float = 0.0, gb_s: float = 0.0) -> dict[str, Any]:
    """A kept point, and the plan's error on it: predicted / measured - 1; the machine's `speeds_of`, for time."""
    what, measured = kept["point"], kept["measured"]
    on_cpu = measured["device"] == "cpu"
    tflops = (gflops or 1.0) / 1000
    device = Device(memory_gib=1024, tflops_bf16=tflops, tflops_fp32=tflops, bandwidth_gb_s=gb_s or 1.0, watts=1)
    one_thread = Machine(measured["device"], "cpu" if on_cpu else "cuda", device)
    shape = shape_of_config(SHAPES[what["shape"]], what["shape"])
    plan = make_plan(recipe_of(what), shape, rows_of(what), one_thread)
    predicted = (plan.memory.total - (0 if on_cpu else plan.memory.overhead)) / MIB
    found = {"predicted_mib": round(predicted, 1), "memory_error": round(predicted / measured["peak_mib"] - 1, 4)}
    if on_cpu and gflops and gb_s and what["dtype"] == "float32":
        seconds = plan.step.estimate
        found |= {"predicted_s": round(seconds, 2), "time_error": round(seconds / measured["cpu_s"] - 1, 4)}
    return {**what, **measured, **found}


def rows_of(what: dict[str, Any]) -> RowFacts:
    """The rows of a point; every second is half as long where they are padded."""
    length = what["length"]
    lengths = tuple(length // 2 if what.get("rows_lie") == "padded" and n % 2 else length for n in range(16))
    return RowFacts(len(lengths), length, sum(lengths) / len(lengths), lengths, 1.0, "made up")


def named(line: dict[str, Any]) -> str:
    """The method, and what else is unusual."""
    tuning = line["tuning"]
    kind = "int8" if tuning.get("bits") == 8 else "dora" if tuning.get("dora") else tuning["method"]
    return " ".join([kind, *(line[name] for name in ("objective", "rows_lie") if name in line)])


def report(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Print the table; the errors by machine, for the file."""
    machines = sorted({kept["measured"]["machine"] for kept in points})
    parts = {machine: [kept for kept in points if kept["measured"]["machine"] == machine] for machine in machines}
    errors, lines = {}, []
    for machine, part in parts.items():
        speeds = speeds_of(part)
        found = [compared(kept, *speeds) for kept in part]
        print(
            f"{machine}\n{'model':13} {'method':18} rows length  dtype     ckpt passes  "
            "measured MiB  predicted  error    CPU s  error"
        )
        for line in found:
            timed = f"{line['cpu_s']:7.1f} {line['time_error']:+6.0%}" if "time_error" in line else ""
            print(
                f"{line['shape']:13} {named(line):18} {line['rows']:4} {line['length']:6}  {line['dtype']:8}"
                f"  {'yes' if line['checkpointing'] else 'no':4} {line['passes']:6}"
                f" {line['peak_mib']:13.0f} {line['predicted_mib']:10.0f} {line['memory_error']:+6.1%}  {timed}"
            )
        memory = [line["memory_error"] for line in found]
        timed_errors = [line["time_error"] for line in found if "time_error" in line]
        errors[machine] = {
            "points": len(memory),
            "memory_lowest": min(memory),
            "memory_highest": max(memory),
            "timed_points": len(timed_errors),
            "time_lowest": min(timed_errors, default=None),
            "time_highest": max(timed_errors, default=None),
        }
        print(errors[machine])
        lines += found
    return {"errors": errors, "points": lines}


def main() -> None:
    """Measure, or report on what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", metavar="MACHINE", help="measure what the kept points lack of the grid on it")
    parser.add_argument("--only", help="measure only lacking points whose name holds this, such as `135m qlora`")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point is not None:
        print(json.dumps(train_here(options.point)))
        return
    if options.measure:
        found = json.loads(POINTS.read_text(encoding="utf-8")) if POINTS.is_file() else []
        there = [kept["point"] for kept in found if kept["measured"]["machine"] == options.measure]
        lacking = [one for one in GRID if one not in there]
        for what in [one for one in lacking if (options.only or "") in f"{one['shape']} {named(one)}"]:
            found.append({"point": what, "measured": measure(what) | {"machine": options.measure}})
            print(json.dumps(found[-1]), flush=True)
            POINTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    result = report(json.loads(POINTS.read_text(encoding="utf-8")))
    REPORT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
