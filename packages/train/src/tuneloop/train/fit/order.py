"""In which order rows are learned: one permutation per epoch, from the seed alone, whatever the number of processes.

accelerate hands every process equally many passes, and fills the last of them up with rows from the epoch's beginning:
those would be learned twice. Several processes get a row that teaches nothing there instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from tuneloop.train.recipe import RunSection


def order_of_epoch(rows: int, seed: int, epoch: int) -> list[int]:
    """The permutation that accelerate's seeded sampler draws too."""
    return [int(row) for row in torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch))]


def rows_of_step(step: int, rows: int, batch_size: int, seed: int) -> list[int]:
    """Which rows the optimiser saw in this step (counted from 1)."""
    epoch, window = divmod(step - 1, math.ceil(rows / batch_size))
    return order_of_epoch(rows, seed, epoch)[window * batch_size : (window + 1) * batch_size]


class EvenOrder(Sampler[int]):  # type: ignore[misc]  # torch is untyped here
    """The order of one process, with the row behind the last, which teaches nothing, as often as is needed.

    Args:
        rows: how many teach something.
        multiple: how many rows all processes take in one pass.
        seed: the run's.
    """

    def __init__(self, rows: int, multiple: int, seed: int) -> None:
        self._rows = rows
        self._filling = -rows % multiple
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """accelerate calls this before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from order_of_epoch(self._rows, self._seed, self._epoch)
        yield from [self._rows] * self._filling

    def __len__(self) -> int:
        return self._rows + self._filling


class InEvenOrder:
    """Mixed in before a transformers Trainer whose data set ends with a row that teaches nothing, where several
    processes train."""

    order: EvenOrder | None = None  # of several processes

    def share_evenly(self, rows: int, run: RunSection, micro_batch: int) -> None:
        """Draw `rows` in an order that gives every process `micro_batch` of them in each pass."""
        if run.launch.processes > 1:
            self.order = EvenOrder(rows, run.launch.processes * micro_batch, run.seed)

    def _get_train_sampler(self, *arguments: Any) -> Any:
        return self.order or super()._get_train_sampler(*arguments)  # type: ignore[misc]  # the Trainer that follows

    def get_train_dataloader(self) -> Any:
        """The loader, as long as its order is.

        accelerate cuts what it gathers in an epoch's last pass to what the data set's own length leaves for it: told
        of one row that fills up and not of all, it would drop whole processes' figures.
        """
        loader = super().get_train_dataloader()  # type: ignore[misc]  # the Trainer that follows
        if self.order is not None:
            loader.dataset.total_dataset_length = len(self.order)
        return loader
