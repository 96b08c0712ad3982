"""What tuneloop keeps of a version in MLflow: one tag, a JSON object. MLflow's own versions without it are not ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from tuneloop.registry.database import faults
from tuneloop.registry.errors import NotFound, Unreadable
from tuneloop.registry.nouns import Version

VERSION_TAG = "tuneloop.version"
_log = logging.getLogger(__name__)


def version_of(made: Any) -> Version:
    """A model version of MLflow as ours.

    Raises:
        NotFound: tuneloop did not publish it.
        Unreadable: its tag is damaged.
    """
    if VERSION_TAG not in made.tags:
        raise NotFound(f"{made.name} version {made.version} in MLflow was not published by tuneloop")
    try:
        return Version.model_validate(json.loads(made.tags[VERSION_TAG]) | {"version": int(made.version)})
    except (ValueError, TypeError) as error:
        why = faults(error) if isinstance(error, ValidationError) else str(error)
        raise Unreadable(
            f"{made.name} version {made.version}: its tag {VERSION_TAG} in MLflow cannot be read: {why}; it was "
            "changed by hand or written by another version of tuneloop"
        ) from None


def ours(page: Iterable[Any]) -> list[Version]:
    """Those of a page of MLflow's model versions that are ours; what cannot be read is logged."""
    found = []
    for made in [made for made in page if VERSION_TAG in made.tags]:
        try:
            found.append(version_of(made))
        except Unreadable as error:  # one bad version must not hide the good ones
            _log.error("left out: %s", error)
    return found
