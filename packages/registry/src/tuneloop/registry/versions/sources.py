"""Where a version that tuneloop did not train comes from: a folder, a run of MLflow's, or a version of MLflow's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tuneloop.registry.errors import InvalidInput


@dataclass(frozen=True)
class Folder:
    """A folder on this machine."""

    path: Path

    @property
    def name(self) -> str:
        """As messages and the audit log call it."""
        return f"folder {self.path.resolve()}"


@dataclass(frozen=True)
class MlflowRun:
    """A folder of a run's artifacts."""

    run_id: str
    path: str = "model"

    @property
    def name(self) -> str:
        """As messages and the audit log call it."""
        return f"MLflow run {self.run_id}: {self.path}"


@dataclass(frozen=True)
class MlflowVersion:
    """The files of a version in MLflow, or a folder below them."""

    model: str
    number: int
    path: str = "."

    @property
    def name(self) -> str:
        """As messages and the audit log call it."""
        return f"MLflow {self.model}/{self.number}" + ("" if self.path == "." else f": {self.path}")

    @classmethod
    def named(cls, text: str, path: str) -> MlflowVersion:
        """From `NAME/VERSION`.

        Raises:
            InvalidInput: it is not in that form.
        """
        model, _, number = text.rpartition("/")
        if not model or not number.isdecimal():
            raise InvalidInput(f"{text!r} is no version in MLflow; write NAME/VERSION, as in bot/3")
        return cls(model, int(number), path)


Source = Folder | MlflowRun | MlflowVersion


def on_this_machine(uri: str) -> Path | None:
    """Where a URI of artifacts lies on this machine; None for one that is fetched."""
    split = urlsplit(uri)
    if split.scheme == "file":
        return Path(unquote(split.path))
    return Path(uri) if split.scheme == "" else None
