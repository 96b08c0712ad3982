"""tuneloop.registry: what must outlive a process.

`Registry.open()` gives every store on one database. Each folder holds what belongs to one noun, its `store` (the queue
for retraining) what reads and writes it; what everybody shares stands beside this file. `versions.store` speaks to
MLflow and is imported only when used. So are the stores: whoever wants nouns and errors alone, as each process of a fit
does, does not pay for a database (0.3 s).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneloop.registry.facade import Registry

__all__ = ["Registry"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tuneloop.registry import facade  # noqa: PLC0415 (see above)

    return facade.Registry
