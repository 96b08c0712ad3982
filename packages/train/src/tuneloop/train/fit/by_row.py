"""Every row of a step weighs alike, however the step is split into passes and over processes.

Trainers whose loss is the mean over the rows of one pass are scaled by transformers with the number of passes alone:
in the last, shorter window of an epoch a row that stands alone in its pass would count as much as all the others of
another pass together, and halving the micro-batch when memory is full would change what is learned.

Several processes fill that window up with pairs that teach nothing (see `fit.order`): one token on both sides, as no
labelled pair is. To a loss of -log σ(chosen - rejected) each brings log 2 and no gradient; it is taken out again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

_OF_A_FILLING = math.log(2)  # nats: -log σ(0)
# TRL's means over the pairs of a pass to which one without a better side brings 0.
_MEANS = ("accuracy", "margin", "rewards/accuracies", "rewards/margins")


class WeighsRowsAlike:
    """Mixed in before a TRL trainer of preferences whose loss is a mean over pairs of -log σ(difference)."""

    loss_is_scaled_for_ga = True  # by what follows

    def _get_num_items_in_batch(self, batch_samples: Sequence[Mapping[str, torch.Tensor]], device: Any) -> int:
        """The rows of the step on all processes, where transformers counts its learned tokens."""
        return self._of_all(sum(_teaching(batch) for batch in batch_samples), device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """This pass's share of the mean over the step's rows, times the processes that gradients are averaged over."""
        found = super().compute_loss(model, inputs, return_outputs)  # type: ignore[misc]  # the Trainer that follows
        if num_items_in_batch is None:
            return found
        loss, rows, teaching = found[0] if return_outputs else found, _rows(inputs), _teaching(inputs)
        processes = self._processes()
        loss = loss * (processes * rows / num_items_in_batch)
        if processes > 1:
            loss = loss - processes * (rows - teaching) * _OF_A_FILLING / num_items_in_batch
            self._tell_of_those_that_teach(processes * rows, self._of_all(teaching, loss.device))
        return (loss, found[1]) if return_outputs else loss

    def _tell_of_those_that_teach(self, rows: int, teaching: int) -> None:
        """Make TRL's means over all rows of a pass means over those that teach, of which there is always one."""
        told = self._metrics["train"]  # type: ignore[attr-defined]  # the Trainer's
        for name in _MEANS if teaching < rows else ():
            if name in told:
                told[name][-1] *= rows / teaching

    def _processes(self) -> int:
        return int(self.accelerator.num_processes)  # type: ignore[attr-defined]  # the Trainer's

    def _of_all(self, count: int, device: Any) -> int:
        """The sum over all processes."""
        if self._processes() == 1:
            return count
        return int(self.accelerator.gather(torch.tensor(count, device=device)).sum())  # type: ignore[attr-defined]


def _rows(batch: Mapping[str, torch.Tensor]) -> int:
    """Both sides of each pair count."""
    return len(batch["input_ids"])


def _teaching(batch: Mapping[str, torch.Tensor]) -> int:
    return int((batch["attention_mask"].sum(dim=1) > 1).sum())
