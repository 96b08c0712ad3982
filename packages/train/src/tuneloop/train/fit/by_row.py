"""Every row of a step weighs alike, however the step is split into passes.

Trainers whose loss is the mean over the rows of one pass are scaled by transformers with the number of passes alone:
in the last, shorter window of an epoch a row that stands alone in its pass would count as much as all the others of
another pass together, and halving the micro-batch when memory is full would change what is learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class WeighsRowsAlike:
    """Mixed in before a transformers Trainer whose loss is a mean over rows."""

    loss_is_scaled_for_ga = True  # by what follows

    def _get_num_items_in_batch(self, batch_samples: Sequence[Mapping[str, torch.Tensor]], device: Any) -> int:  # noqa: ARG002 (transformers' signature)
        """The rows of the step, where transformers counts its learned tokens."""
        return sum(_rows(batch) for batch in batch_samples)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """This pass's share of the mean over the step's rows."""
        share = 1.0 if num_items_in_batch is None else _rows(inputs) / num_items_in_batch
        found = super().compute_loss(model, inputs, return_outputs)  # type: ignore[misc]  # the Trainer that follows
        return (found[0] * share, found[1]) if return_outputs else found * share


def _rows(batch: Mapping[str, torch.Tensor]) -> int:
    return len(batch["input_ids"])
