"""Something decided for the user, and why: no automatic choice is made without telling its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What was chosen, and the reason a person would want to hear."""

    value: T
    reason: str

    def __str__(self) -> str:
        return f"{self.value} because {self.reason}"
