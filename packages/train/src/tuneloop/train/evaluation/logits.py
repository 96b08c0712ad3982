"""The NLL of chosen tokens without all of their logits at once.

Logits are by far the largest thing of an evaluation pass: 16,000 tokens of 128k words are 4 GB in bfloat16, and twice
that twice more in float32. So the blocks run once, and the output layer, as the model itself applies it (scale,
soft cap), over bounded pieces of what they made. A piece gives what the whole gives but for the order of sums: 1e-5 of
a row's NLL in float32.
"""

# ruff: noqa: N803, N806 (suffixes are shapes: B rows, T tokens, V vocabulary, N chosen tokens, H what the head reads)

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

LOGITS_AT_ONCE = 2**26  # 256 MB in float32: 1,300 tokens of 49k words, 500 of 128k


def nll_at(
    model: Any, ids_BT: torch.Tensor, targets_BT: torch.Tensor, wanted_BT: torch.Tensor, beside: Mapping[str, Any]
) -> torch.Tensor:
    """NLL (N) of the targets at the wanted positions, in float32, in their order.

    Args:
        model: a causal language model, under an adapter or not.
        ids_BT: token ids.
        targets_BT: what follows each of them.
        wanted_BT: which of these are asked for: at 49k words the output layer is a fifth of a small model.
        beside: what else the model is given, such as a mask.
    """
    targets_N = targets_BT[wanted_BT]
    at_once = max(1, LOGITS_AT_ONCE // vocabulary_of(model))
    with torch.no_grad():
        if "logits_to_keep" not in forward_parameters(model):  # a few architectures cannot leave any out
            return _nll(model(input_ids=ids_BT, **beside).logits[wanted_BT], targets_N)
        if len(targets_N) <= at_once:
            return _nll(model(input_ids=ids_BT, **beside, logits_to_keep=wanted_BT).logits, targets_N)
        blocks = _bare(model).base_model
        made = blocks(input_ids=ids_BT, **beside)
        states_NH = made.last_hidden_state[wanted_BT]
        found = []
        for states, targets in zip(states_NH.split(at_once), targets_N.split(at_once), strict=True):
            made.last_hidden_state = states[None]
            with _instead_of(blocks, made):
                found.append(_nll(model(input_ids=ids_BT[:1, :1]).logits[0], targets))
        return torch.cat(found)


def forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """Of the forward pass of the model under any adapter."""
    return inspect.signature(_bare(model).forward).parameters


def vocabulary_of(model: Any) -> int:
    """How many logits a token has."""
    return int(model.config.get_text_config().vocab_size)


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _nll(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")


@contextmanager
def _instead_of(blocks: Any, made: Any) -> Iterator[None]:
    """A pass through these blocks gives what they made already."""
    own = vars(blocks).get("forward")  # a hook that somebody put there, such as accelerate
    blocks.forward = lambda *_given, **_named: made
    try:
        yield
    finally:
        if own is None:
            del blocks.forward
        else:
            blocks.forward = own
