"""`--profile`: a torch profiler trace of three steps, and a picture of the memory they held.

The trace opens in https://ui.perfetto.dev or chrome://tracing. Profiling slows those steps down a few times; the others
run as ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

_WAIT, _WARM_UP, _STEPS = 1, 1, 3
_MIB = 2**20


class Profile(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Writes `trace.json` and `memory.png` into a folder and says so."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._profiler: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (transformers' signature)
        self._folder.mkdir(parents=True, exist_ok=True)
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        wait, warm_up = (_WAIT, _WARM_UP) if state.max_steps >= _WAIT + _WARM_UP + _STEPS else (0, 0)
        self._profiler = torch.profiler.profile(
            activities=kinds,
            schedule=torch.profiler.schedule(wait=wait, warmup=warm_up, active=_STEPS, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=True,
        )
        self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self._profiler.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self._profiler.stop()

    def _write(self, profiler: Any) -> None:
        trace = self._folder / "trace.json"
        profiler.export_chrome_trace(str(trace))
        timeline = read_timeline(trace)
        draw(timeline, self._folder / "memory.png")
        peaks = ", ".join(f"{max(m for _, m in line):,.0f} MiB on {name}" for name, line in timeline.held.items())
        self._say(f"profile: {trace} and memory.png beside it; at most {peaks} were allocated in those steps")


@dataclass(frozen=True)
class Timeline:
    """What each device held, and when steps began; times in milliseconds from the first event."""

    held: dict[str, list[tuple[float, float]]]  # device → (ms, MiB)
    steps: list[tuple[float, str]]  # (ms, name)


def read_timeline(trace: Path) -> Timeline:
    """Memory over time, from a trace of torch's profiler (its `[memory]` events)."""
    events = json.loads(trace.read_bytes())["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: float(e["ts"]))
    steps = sorted((e for e in events if str(e.get("name")).startswith("ProfilerStep#")), key=lambda e: float(e["ts"]))
    zero = float(memory[0]["ts"]) if memory else 0.0
    held: dict[str, list[tuple[float, float]]] = {}
    for event in memory:
        values = event["args"]
        name = "the CPU" if values["Device Type"] == 0 else f"GPU {values['Device Id']}"
        held.setdefault(name, []).append(((event["ts"] - zero) / 1e3, values["Total Allocated"] / _MIB))
    return Timeline(held, [((e["ts"] - zero) / 1e3, e["name"].removeprefix("ProfilerStep#")) for e in steps])


def draw(timeline: Timeline, path: Path) -> None:
    """The picture: one line for each device, a mark where each step begins."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (only when something is drawn)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, line in timeline.held.items():
        axes.step([at for at, _ in line], [mib for _, mib in line], where="post", label=name, linewidth=1)
    for at, name in timeline.steps:
        axes.axvline(max(at, 0.0), color="0.6", linewidth=0.8, linestyle="--")
        axes.annotate(f"step {name}", (max(at, 0.0), 1.0), xycoords=("data", "axes fraction"), fontsize=8, va="bottom")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("MiB allocated by PyTorch since profiling began")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    FigureCanvasAgg(figure).print_png(str(path))
