"""What the agent says to its vLLM over HTTP.

`load` never sends `load_inplace`: vLLM would re-read the adapter from disk in later steps. Connection trouble is
`Unavailable` (try again), a refusal is `InvalidInput` (the adapter is at fault).
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.serve.engine.health import Pulse

_PATIENCE_S = 5.0
_LOAD_S = 120.0
IDLE_S = 4.0  # vLLM closes what is idle at 5 s
_PROGRESS = "vllm:iteration_tokens_total_sum"


class EngineClient:
    """One vLLM at `url`; use as an async context manager."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(keepalive_timeout=IDLE_S))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def models(self) -> dict[str, str]:
        """Name → path of every model vLLM knows, the base included."""
        status, body = await self._ask("GET", "/v1/models", timeout_s=_PATIENCE_S, parse=True)
        if status != 200:
            raise Unavailable(f"vLLM at {self._url} answers /v1/models with {status}: {body}")
        return {card["id"]: card.get("root") or "" for card in body["data"]}

    async def load(self, name: str, folder: Path) -> None:
        """Load an adapter under its name, for ever.

        Raises:
            InvalidInput: vLLM refuses it; says why.
            Unavailable: vLLM does not answer.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        status, said = await self._ask("POST", "/v1/load_lora_adapter", body, timeout_s=_LOAD_S)
        if status != 200:
            raise InvalidInput(f"vLLM refuses to load {name} ({status}): {_message(said)}")

    async def unload(self, name: str) -> None:
        """Let vLLM forget a name; one it does not know is forgotten already."""
        status, said = await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}, timeout_s=_LOAD_S)
        if status not in {200, 404}:
            raise Unavailable(f"vLLM does not unload {name} ({status}): {_message(said)}")

    async def one_token(self, model: str, timeout_s: float) -> None:
        """Have one token made: warms an adapter, proves that the engine moves.

        Raises:
            InvalidInput: vLLM answers with an error; says which.
            Unavailable: none came in time.
        """
        body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        status, said = await self._ask("POST", "/v1/completions", body, timeout_s=timeout_s)
        if status != 200:
            raise InvalidInput(f"vLLM gives no token of {model} ({status}): {_message(said)}")

    async def pulse(self) -> Pulse:
        """One look at health and progress; never raises, silence is an answer too."""
        try:
            health, _ = await self._ask("GET", "/health", timeout_s=_PATIENCE_S)
            _, metrics = await self._ask("GET", "/metrics", timeout_s=_PATIENCE_S)
        except Unavailable:
            return Pulse(tokens=None, healthy=False)
        return Pulse(tokens=_sum_of(metrics, _PROGRESS), healthy=health == 200)

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float, parse: bool = False
    ) -> tuple[int, Any]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, self._url + path, json=body, timeout=timeout) as response:
                return response.status, await (response.json() if parse else response.text())
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            why = f"no answer in {timeout_s:.0f} s" if isinstance(error, TimeoutError) else str(error)
            raise Unavailable(f"vLLM at {self._url}{path}: {why}") from error


def _sum_of(metrics: str, name: str) -> float:
    """The sum of a metric over its labels; 0 before its first sample."""
    return sum(
        float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith((name + "{", name + " "))
    )


def _message(text: str) -> str:
    """The one sentence in vLLM's error body."""
    _, found, rest = text.partition('"message":"')
    return (rest.partition('","')[0] if found else text)[:500]
