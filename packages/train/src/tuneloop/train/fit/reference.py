"""What a policy is held to: itself as it was when training began, without a second copy of the base.

A fresh adapter changes nothing, so its reference is the base with the adapter switched off. One that goes on from an
earlier version has a frozen copy of that adapter beside it (some megabytes), under TRL's own name for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.utils import use_adapter

from tuneloop.train.choice import Choice

COPY = "ref"  # the name TRL's trainers give the copy
_PROBE = 8  # tokens


def hold_reference(model: Any) -> Choice[str]:
    """Make the reference ready, before the first step."""
    if _changes_nothing(model):
        return Choice("the base with its adapter switched off", "the adapter is fresh and changes nothing yet")
    model.add_adapter(COPY, model.peft_config["default"])
    for name, value in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", f".{COPY}.")).data.copy_(value.data)
    return Choice("a frozen copy of the adapter", "training goes on from an earlier version")


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """Let the model speak as its reference while the block runs."""
    with use_adapter(model, adapter_name=COPY if COPY in model.peft_config else None):
        yield


@contextmanager
def same_reference(model: Any) -> Iterator[None]:
    """Let TRL make a trainer inside: it copies the adapter as it is then, and refuses where a copy is there already.

    A second trainer on the same model (after full memory, or a rollback) must hold it to the first one's reference.
    """
    kept = {name: value.detach().clone() for name, value in model.named_parameters() if f".{COPY}." in name}
    release_reference(model)
    yield
    for name, value in kept.items():
        model.get_parameter(name).data.copy_(value)


def release_reference(model: Any) -> None:
    """Drop the copy, if there is one: only the trained adapter is measured and published."""
    if COPY in getattr(model, "peft_config", {}):
        model.delete_adapter(COPY)


def _changes_nothing(model: Any) -> bool:
    was_training = model.training
    model.eval()
    ids = torch.arange(1, 1 + _PROBE, device=model.device).unsqueeze(0)
    with torch.no_grad():
        on = model(input_ids=ids, use_cache=False).logits
        with model.disable_adapter():
            off = model(input_ids=ids, use_cache=False).logits
    model.train(was_training)
    return bool(torch.equal(on, off))
