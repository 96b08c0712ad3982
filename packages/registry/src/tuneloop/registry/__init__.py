"""tuneloop.registry: what must outlive a process.

`Registry.open()` gives every store on one database; `registry.versions` speaks to MLflow and is imported only when
used.
"""

from __future__ import annotations

from tuneloop.registry.facade import Registry

__all__ = ["Registry"]
