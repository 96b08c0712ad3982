"""FSDP on CPUs: accelerate makes copies there, without a word; this lets it shard as it does on GPUs.

It trains no faster, but what is trained, saved and resumed on GPUs is then the same code that runs on any machine.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, DistributedType, PartialState


def shard_on_cpus_too() -> None:
    """Change accelerate in this process, for as long as it lives."""
    make_state, gather = AcceleratorState.__init__, Accelerator.get_state_dict

    def init(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **values: Any) -> None:
        make_state(self, *arguments, fsdp_plugin=fsdp_plugin, **values)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    def whole(self: Accelerator, *arguments: Any, **values: Any) -> Any:
        """On a GPU the copy to main memory waits for what is gathered; here nothing is copied."""
        found = gather(self, *arguments, **values)
        return {name: tensor.wait() if hasattr(tensor, "wait") else tensor for name, tensor in found.items()}

    AcceleratorState.__init__ = init
    Accelerator.get_state_dict = whole
