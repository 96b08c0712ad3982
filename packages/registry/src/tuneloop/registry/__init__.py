"""tuneloop.registry: what must outlive a process.

`Registry.open()` gives every store on one database. Each folder holds what belongs to one noun, its `store` (the queue
for retraining) what reads and writes it; what everybody shares stands beside this file. `versions.store` speaks to
MLflow and is imported only when used.
"""

from __future__ import annotations

from tuneloop.registry.facade import Registry

__all__ = ["Registry"]
