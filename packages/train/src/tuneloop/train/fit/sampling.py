"""Answers drawn from the policy's own probabilities, whatever its base says about how to sample, and cut by a stop.

Bases bring a generation config for those who serve them (a repetition penalty, min-p, tokens to suppress). generate()
fills in from it what a caller leaves open; an objective that weighs what was sampled by the policy's probabilities
would then learn from another distribution than the one it scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig


@contextmanager
def its_own_probabilities(model: Any) -> Iterator[None]:
    """While the block runs, generate() does what its caller says and nothing beside."""
    inner = _inner(model)
    kept = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = kept


@contextmanager
def asking_before_each_pass(model: Any, check: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `check` is called before each forward pass, each token of generate() included; it raises to
    stop. An answer may take longer than the notice a machine gives."""
    asking = _inner(model).register_forward_pre_hook(lambda *_: check())
    try:
        yield
    finally:
        asking.remove()


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
