"""`optim` and `run`: how it is optimised, how long, how wide, in which precision, on how many devices."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tuneloop.train.recipe.part import Part

Strategy = Literal["ddp", "zero2", "zero3", "fsdp"]
AUTO: Literal["auto"] = "auto"


def _rows_or_auto(value: Any) -> Any:
    if value == AUTO or (type(value) is int and value >= 1):
        return value
    raise ValueError("give a number of rows, 1 or more, or auto")


MicroBatch = Annotated[int | Literal["auto"], BeforeValidator(_rows_or_auto)]


Trackers = Annotated[
    tuple[Literal["wandb"], ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]


class OptimSection(Part):
    """`optim`: AdamW and its schedule."""

    learning_rate: float | None = Field(default=None, gt=0.0, le=1.0)  # none: by method and objective
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"  # 8 bits: a quarter of its memory
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.05, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)


class EarlyStopping(Part):
    """Stop when the validation loss no longer falls; the best checkpoint is kept."""

    patience: int = Field(default=3, ge=1)  # validations without a fall
    min_delta: float = Field(default=0.0, ge=0.0)  # nats per token that count as one


class CheckpointSection(Part):
    """When the run's state is written down, so that a kill costs at most this much."""

    every_s: float = Field(default=600.0, gt=0.0)
    keep: int = Field(default=2, ge=1)


class DivergenceSection(Part):
    """What happens when the loss is no number, leaps, or the gradient grows wild."""

    action: Literal["stop", "rollback"] = "stop"  # rollback: to the last good checkpoint, with a lower rate
    loss_spike: float = Field(default=3.0, gt=1.0)  # times the median of the last steps
    max_grad_norm: float | None = Field(default=None, gt=0.0)  # before clipping
    learning_rate_factor: float = Field(default=0.5, gt=0.0, lt=1.0)
    max_rollbacks: int = Field(default=2, ge=1)


class LaunchSection(Part):
    """More processes than one, started by torchrun on this machine."""

    processes: int = Field(default=1, ge=1)  # one a device
    strategy: Strategy = "ddp"  # ddp: copies; zero2, zero3, fsdp: sharded
    cpu_offload: bool = False  # optimiser and parameters in main memory; zero2, zero3 and fsdp

    @property
    def is_plain(self) -> bool:
        """One process that holds everything itself; a model that one of any other kind trained is not trained anew."""
        return self.processes == 1 and self.strategy == "ddp"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.cpu_offload and self.strategy == "ddp":
            raise ValueError("cpu_offload is not read with strategy ddp; use zero2, zero3 or fsdp, or remove it")
        return self


class RunSection(Part):
    """`run`: exactly one of `steps` and `epochs`, and all that makes a step."""

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0.0)
    batch_size: int = Field(default=16, ge=1)  # rows per optimiser step
    micro_batch: MicroBatch = 8  # rows per forward pass; auto: the largest that fits the worst-case batch
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 where the machine is fast in it
    seed: int = Field(default=0, ge=0)
    gradient_checkpointing: bool = False  # halves activation memory or better, about 30 % slower
    packing: bool = False  # several rows in one sequence, each seeing only itself: no padding is computed
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    compile: bool = False  # torch.compile: slower to start, faster steps on a GPU
    validate_every: int | None = Field(default=None, ge=1)  # steps; none: start, middle and end
    early_stopping: EarlyStopping | None = None
    checkpoint: CheckpointSection = CheckpointSection()
    divergence: DivergenceSection = DivergenceSection()
    launch: LaunchSection = LaunchSection()
    max_restarts: int = Field(default=0, ge=0)  # how often a run that died is resumed by itself (spot machines)
    trackers: Trackers = ()  # beside MLflow

    def planned_steps(self, drawn: int) -> int:
        """Optimiser steps over what an epoch draws (see `objective.drawn`)."""
        return self.steps or math.ceil((self.epochs or 0) * math.ceil(drawn / self.batch_size))

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        processes = self.launch.processes
        shown = f"launch.processes {processes}" if self.micro_batch == AUTO else f"micro_batch {self.micro_batch}"
        if self.micro_batch != AUTO and processes > 1:
            shown += f" × launch.processes {processes}"
        if self.batch_size % (processes * (1 if self.micro_batch == AUTO else self.micro_batch)):
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of {shown}")
        return self
