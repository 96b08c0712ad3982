"""Supervised fine-tuning through TRL's SFTTrainer on rows that are already tokenised and masked.

TRL prepares nothing here: its data pipeline is told to skip, so the labels that were audited are those that are
learned. Packing is TRL's padding-free form: the rows of a micro-batch lie end to end in one sequence with positions
that begin anew, and attention keeps them apart (variable-length kernels with flash attention, a block mask otherwise).
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import torch
from datasets import Dataset, concatenate_datasets
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.data.labelled import LabelledStore
from tuneloop.train.data.labels import IGNORED, LabelledRow
from tuneloop.train.fit.guard import Interruptible
from tuneloop.train.fit.memory import give_memory_back, is_out_of_memory, largest_that_fits
from tuneloop.train.fit.order import InEvenOrder
from tuneloop.train.plan.memory import optimizer_bytes
from tuneloop.train.recipe import Recipe, RunSection
from tuneloop.train.recipe.run import AUTO
from tuneloop.train.screen import Screen

_SHARE_TO_USE = 0.8  # of the free main memory: the optimiser and the system want some
_SEPARATES_ROWS = ("sdpa", "eager", "flash_attention_2")  # what keeps packed rows apart


class _Trainer(Interruptible, InEvenOrder, SFTTrainer):  # type: ignore[misc]  # trl is untyped here
    """SFTTrainer whose checkpoints are whole."""


def sft_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[LabelledRow],
    run: RunSection,
    arguments: dict[str, Any],
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """A trainer over labelled rows; `arguments` are those every trainer shares.

    Raises:
        InvalidInput: packing was asked for with an attention that would let rows see each other.
    """
    if run.packing:
        require_separation(model.config)
    config = SFTConfig(
        **arguments,
        activation_checkpointing=run.gradient_checkpointing,
        padding_free=run.packing,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # rows were cut, and counted, when they were labelled
    )
    data = training_data(rows, run.launch.processes)
    trainer = _Trainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
    trainer.share_evenly(len(rows), run, config.per_device_train_batch_size)
    return trainer


def training_data(rows: Sequence[LabelledRow], processes: int) -> Dataset:
    """The rows as TRL reads them, from where they are; for several processes one more that teaches nothing."""
    data = rows.dataset if isinstance(rows, LabelledStore) else _in_memory(rows)
    if processes == 1:
        return data
    shortest = min(rows, key=lambda row: len(row.ids))
    filling = _in_memory([replace(shortest, labels=(IGNORED,) * len(shortest.ids))])
    return concatenate_datasets([data, filling.cast(data.features)])


def _in_memory(rows: Sequence[LabelledRow]) -> Dataset:
    return Dataset.from_dict({"input_ids": [list(r.ids) for r in rows], "labels": [list(r.labels) for r in rows]})


def require_separation(config: Any) -> None:
    """Refuse packing where rows would see each other.

    Raises:
        InvalidInput: the attention, or a layer of the model, mixes along the whole sequence.
    """
    used = config._attn_implementation
    if used not in _SEPARATES_ROWS:
        raise InvalidInput(f"run.packing: attention {used} would let packed rows see each other; use sdpa")
    recurrent = {kind for kind in getattr(config, "layer_types", None) or () if "attention" not in kind}
    if recurrent:
        raise InvalidInput(
            f"run.packing: layers of kind {', '.join(sorted(recurrent))} carry state from row to row; set it to false"
        )


def choose_micro_batch(model: Any, rows: Sequence[Any], recipe: Recipe, device: str, screen: Screen) -> int:
    """The recipe's micro-batch, or for `auto` the largest that fits the worst case: every row as long as the longest.

    Only labelled rows of supervised fine-tuning can be asked for `auto`; recipes with another objective give a number.

    Raises:
        TuneloopError: one row does not fit.
    """
    run = recipe.run
    if run.micro_batch != AUTO:
        return run.micro_batch
    longest = max(rows, key=lambda row: len(row.ids))
    size = largest_that_fits(
        run.batch_size // run.launch.processes, lambda size: fits(model, longest, size, recipe, device)
    )
    screen.say(f"micro-batch: {size} because it is the largest that fits with {len(longest.ids)} tokens in every row")
    return size


def fits(model: Any, longest: LabelledRow, rows: int, recipe: Recipe, device: str) -> bool:
    """Whether a forward and backward pass over `rows` times the longest row fits into memory, beside what the
    optimiser will hold from the first step on; nothing is learned. Batch and loss are TRL's own."""
    collate = DataCollatorForLanguageModeling(pad_token_id=longest.ids[0], padding_free=recipe.run.packing)
    batch = collate([{"input_ids": list(longest.ids), "labels": list(longest.labels)}] * rows)
    given = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    random_state = torch.get_rng_state()
    was_training = model.training
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    optimizer = 0 if recipe.run.launch.cpu_offload else optimizer_bytes(recipe.optim.optimizer, trained)
    held: torch.Tensor | None = None
    try:
        precision = torch.autocast(device, torch.bfloat16, enabled=recipe.run.dtype == "bfloat16")
        with _bounded(device), _checkpointed(model, recipe.run.gradient_checkpointing), _fused(model), precision:
            held = torch.empty(optimizer, dtype=torch.uint8, device=device)
            model.train()
            model(**given, use_cache=False, fused_lm_head=True).loss.backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        del held
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        torch.set_rng_state(random_state)
        give_memory_back()
    return True


@contextmanager
def _fused(model: Any) -> Iterator[None]:
    """With the head that SFTTrainer gives a model: it works in tiles, where whole logits would be most of a pass."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = vars(bare).get("forward")
    add_fused_lm_head(bare, outputs=("log_probs", "entropy", "is_top1"))
    try:
        yield
    finally:
        if own is None:
            del bare.forward
        else:
            bare.forward = own


@contextmanager
def _checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """As TRL will train it: activations computed again instead of kept, where the recipe says so."""
    if not wanted:
        yield
        return
    model.activation_checkpointing_enable()
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


@contextmanager
def _bounded(device: str) -> Iterator[None]:
    """On a CPU, let an allocation beyond the free memory fail instead of having the kernel kill the process."""
    if device != "cpu":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    free = int(_SHARE_TO_USE * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
