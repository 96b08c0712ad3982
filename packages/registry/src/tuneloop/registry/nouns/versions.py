"""Versions."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from tuneloop.registry.nouns.base import ModelName, Noun, version_name

UNKNOWN = "unknown"  # what nobody told


class Version(Noun):
    """What was trained, and everything needed to make it again."""

    model: ModelName
    version: int = Field(ge=1)
    kind: Literal["adapter", "full"]
    base: str  # a hub id, or the base's folder name
    base_digest: str
    template_digest: str
    tokenizer_digest: str | None = None  # of the base's, or of whole weights' own; None: nobody noted it
    data_digest: str
    data_rows: int
    recipe_digest: str
    code_commit: str
    run_id: str  # the MLflow run that made it
    artifact_digest: str
    artifact_bytes: int
    rank: int | None = None  # adapters only
    target_modules: tuple[str, ...] = ()
    parent: int | None = None
    request_id: str | None = None  # the retraining request it answers
    trained_by: str | None = None  # who started the run, `worker` for a retraining; None: nobody noted it
    signed_by: str | None = Field(default=None, pattern=r"^[0-9a-f]{12}$")  # the name of the key that signed its files
    created_at: AwareDatetime
    metrics: dict[str, float] = {}  # `perplexity.<domain>`, `bleu.<domain>`, ...

    @property
    def known_rows(self) -> int | None:
        """Of its data; None where nobody said what it was trained on, as when it was registered from a folder."""
        return None if self.data_digest == UNKNOWN else self.data_rows

    @property
    def name(self) -> str:
        """`support-bot@7`."""
        return version_name(self.model, self.version)
