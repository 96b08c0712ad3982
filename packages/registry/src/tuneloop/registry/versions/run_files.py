"""What a run keeps beside its version, as far as the registry reads it; `tuneloop.train.publishing` writes it, and
`tuneloop bias check` what it found.

Nothing here is asked for on the way of a request: MLflow may be away, or an older run may lack a file.
"""

from __future__ import annotations

import json
from typing import Any

from tuneloop.registry.errors import NotFound, Unreadable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Version

DATA = "lineage/data.json"  # data sets with digests and counts, what was found in them, what was dropped
ENVIRONMENT = "lineage/environment.json"  # Python, platform, and every installed distribution
CARD = "model/README.md"
BIAS = "bias/bias.json"  # what the newest check for bias found, by attribute


def kept_json(registry: Registry, version: Version, name: str) -> dict[str, Any]:
    """A JSON file of the version's run; empty where the run keeps none of that name.

    Raises:
        Unreadable: it is damaged.
        Unavailable: MLflow does not answer.
    """
    try:
        with registry.versions.fetched_file(version.run_id, name) as path:
            loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except NotFound:
        return {}
    except ValueError as error:
        raise Unreadable(f"MLflow run {version.run_id}: {name} is damaged: {error}") from None
    return loaded


def model_card(registry: Registry, version: Version) -> str:
    """The card that publishing wrote.

    Raises:
        NotFound: it has none.
        Unreadable: it is no text.
        Unavailable: MLflow does not answer.
    """
    try:
        with registry.versions.fetched_file(version.run_id, CARD) as path:
            return path.read_text(encoding="utf-8")
    except NotFound:
        raise NotFound(
            f"{version.name} was published without a model card; `tuneloop show {version.name}` tells what is known"
        ) from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"MLflow run {version.run_id}: {CARD} is damaged: {error}") from None
