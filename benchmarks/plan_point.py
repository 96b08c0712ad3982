"""One measured point of `plan_accuracy.py`, in a process of its own: train a model of real shape with random weights for a
few steps through the trainer that recipes use, and print peak memory and the quickest step as JSON.

Peak memory is the kernel's own high-water mark (VmHWM) of this process, interpreter and libraries included; on a GPU it is
what torch's allocator handed out at most.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from tuneloop.train.data.labels import LabelledRow
from tuneloop.train.fit.arguments import common_arguments
from tuneloop.train.fit.sft import sft_trainer
from tuneloop.train.recipe import Recipe
from tuneloop.train.tuning import models

_MIB = 2**20


class _Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    def __init__(self) -> None:
        self.steps_s: list[float] = []
        self.cpu_s: list[float] = []
        self.peaks_mib: list[float] = []
        self.ready_mib = 0.0
        self._began = self._began_cpu = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (transformers' signature)
        self._began, self._began_cpu = time.perf_counter(), time.process_time()
        if not self.steps_s:
            self.ready_mib = _status_mib("VmRSS")

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps_s.append(time.perf_counter() - self._began)
        self.cpu_s.append(time.process_time() - self._began_cpu)
        self.peaks_mib.append(_status_mib("VmHWM"))


def _status_mib(key: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {key}")


def _gflops() -> float:
    """float32 matrix products of a transformer's shape, on the threads of the run, by CPU time: the quickest of some."""
    left, right = torch.ones(512, 1024), torch.ones(1024, 2048)
    times = []
    for _ in range(8):
        began = time.process_time()
        torch.mm(left, right)
        times.append(time.process_time() - began)
    return 2 * 512 * 1024 * 2048 / min(times) / 1e9


def _tokenizer() -> PreTrainedTokenizerFast:
    """The rows are numbers already; the trainer only asks for the padding token."""
    words = Tokenizer(WordLevel({"<end>": 0}, unk_token="<end>"))  # noqa: S106 (a token of text)
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")  # noqa: S106


def main() -> None:
    """Measure the point whose description stands in the first argument, as JSON."""
    warnings.simplefilter("ignore")
    point = json.loads(sys.argv[1])
    recipe = Recipe.model_validate(point["recipe"])
    device = models.choose_device().value
    models.prepare_process(int(point["threads"]))
    libraries = _status_mib("VmRSS")
    attention = models.choose_attention(device, recipe.run.dtype).value
    torch.manual_seed(0)
    config = AutoConfig.for_model(**point["config"])
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, recipe.run.dtype), attn_implementation=attention
    ).to(device)
    if recipe.tuning.method == "ia3":
        from peft import IA3Config, get_peft_model
        model = get_peft_model(model, IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]))
    elif recipe.tuning.method != "full":
        model = models.new_adapter(model, recipe.tuning, 0)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model_mib = _status_mib("VmRSS") - libraries
    length, clock = int(point["length"]), _Clock()
    rows = []
    for number in range(int(point["steps"]) * recipe.run.batch_size):
        ids = tuple((number * 7919 + n * 31) % (config.vocab_size - 10) + 5 for n in range(length))
        asked = length // 2 if point["half_learned"] else 0
        rows.append(LabelledRow(ids, (-100,) * asked + ids[asked:], False, 1, asked))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = common_arguments(
            recipe, int(point["steps"]), device, Path(scratch), micro_batch=int(recipe.run.micro_batch)
        )
        trainer = sft_trainer(model, _tokenizer(), rows, recipe.run, arguments, [clock])
        trainer.remove_callback(PrinterCallback)
        from peft.helpers import disable_input_dtype_casting
        from contextlib import nullcontext
        with disable_input_dtype_casting(model) if (recipe.run.dtype == "bfloat16" and recipe.tuning.method != "full") else nullcontext():
            trainer.train()
    measured = {
        "device": torch.cuda.get_device_name(0) if device == "cuda" else "cpu",
        "attention": attention,
        "checkpointing": bool(model.is_gradient_checkpointing),
        "gflops": round(_gflops(), 1),
        "parameters": parameters,
        "trained": trained,
        "libraries_mib": round(libraries, 1),
        "model_mib": round(model_mib, 1),
        "ready_mib": round(clock.ready_mib, 1),  # resident when the first step begins: libraries, model, trainer
        "peak_mib": round(torch.cuda.max_memory_allocated() / _MIB if device == "cuda" else _status_mib("VmHWM"), 1),
        "peaks_mib": [round(n, 1) for n in clock.peaks_mib],
        "step_s": round(min(clock.steps_s), 3),
        "cpu_s": round(min(clock.cpu_s), 3),  # of all threads: what a busy machine leaves comparable
        "steps_s": [round(n, 3) for n in clock.steps_s],
    }
    print("POINT " + json.dumps(measured))


if __name__ == "__main__":
    main()
