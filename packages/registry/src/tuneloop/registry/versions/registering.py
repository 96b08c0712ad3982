"""Making a version of an adapter that tuneloop did not train: from a folder, or from what somebody put into MLflow.

Everything that speaks against it is found before anything is written, so what is refused leaves nothing behind. What is
accepted is digested and signed as a training's result is, and waits for a person's approval like any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from tuneloop.registry import audit
from tuneloop.registry.database import faults
from tuneloop.registry.errors import Conflict, InvalidInput
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import EngineState, Version
from tuneloop.registry.versions.adapters import CONFIG, LARGEST_RANK, Base, Limits, base_shapes, unservable
from tuneloop.registry.versions.artifacts import (
    base_digest,
    check_publishable,
    folder_digest,
    has_template,
    template_digest,
)
from tuneloop.registry.versions.foreign import Foreign
from tuneloop.registry.versions.sources import Folder, Source
from tuneloop.registry.versions.store import VersionDraft

_UNKNOWN = "unknown"  # what nobody told


def register(registry: Registry, model: str, source: Source, *, base: Path, by: str, reason: str) -> Version:
    """Register an adapter as the next version of a model.

    Args:
        registry: where.
        model: its name; a new one is as good as one that has versions.
        source: where the files are.
        base: the folder of the base it was trained on.
        by: who does it; counts as its trainer where somebody else has to approve.
        reason: why.

    Raises:
        InvalidInput: names everything that speaks against it.
        Conflict: the model has a version of these very files.
        NotFound, Unavailable: there is no such source, or MLflow does not answer.
    """
    on = Base(base.resolve().name, base_digest(base), template_digest(base))
    with _files(registry, source) as found:
        check_publishable(found.folder)
        _expect_servable(registry, model, found.folder, on, base)
        digest = folder_digest(found.folder)
        _expect_new(registry, model, digest)
        draft = _draft(model, found, on, by)
        registry.versions.check_key()
        detail = {"source": source.name, "digest": digest, "base_digest": on.digest, "reason": reason}
        _note(registry, by, "version.register", model, detail)  # first: nothing is ever brought in by nobody
        made = _published(registry, draft, found.folder, source)
        _note(registry, by, "version.registered", made.name, detail)
        return made


@contextmanager
def _files(registry: Registry, source: Source) -> Iterator[Foreign]:
    if not isinstance(source, Folder):
        with registry.versions.foreign(source) as found:
            yield found
        return
    if not source.path.is_dir():
        raise InvalidInput(f"there is no folder {source.path}")
    yield Foreign(source.path)


def _expect_servable(registry: Registry, model: str, folder: Path, on: Base, base: Path) -> None:
    engines = [engine for engine in registry.fleet.engines() if engine.max_loras]
    standing = _standing(registry, model)
    there = {f"engine {engine.id}": (engine.base_digest, engine.template_digest) for engine in engines}
    there |= {standing.name: (standing.base_digest, standing.template_digest)} if standing else {}
    same_base = {name: template for name, (digest, template) in there.items() if digest == on.digest}
    found = []
    if there and not same_base:
        others = ", ".join(f"{name} has {digest[:19]}…" for name, (digest, _) in there.items())
        found.append(
            f"its base {on.name} is {on.digest[:19]}…, and {others}; train it on that base, or start an engine with "
            "its own and register it under another name"
        )
    elif there and on.template_digest not in same_base.values():
        others = ", ".join(f"{name} has {template[:19]}…" for name, template in same_base.items())
        found.append(
            f"the chat template of {on.name} is {on.template_digest[:19]}…, and {others}: it would be asked in a form "
            "it never saw; give the base with the template it was trained with"
        )
    found += _own_template(folder, on)
    found += unservable(folder, Limits(on, _highest_rank(engines, on), base_shapes(base)))
    if found:
        raise InvalidInput(f"{folder} cannot be registered: {'; '.join(found)}")


def _standing(registry: Registry, model: str) -> Version | None:
    """The version that others of the model are held against: its champion, or its newest one."""
    route = registry.routes.current_all().get(model)
    if route is not None:
        return registry.versions.get(model, route.champion)
    return next(iter(registry.versions.all(model, newest=1)), None)


def _highest_rank(engines: list[EngineState], on: Base) -> int:
    """That some live engine of the base serves; the most that any could be started for, while none lives."""
    return max((engine.max_lora_rank for engine in engines if engine.base_digest == on.digest), default=LARGEST_RANK)


def _own_template(folder: Path, on: Base) -> list[str]:
    """What speaks against the chat template that the adapter brings along, if it does."""
    if not has_template(folder) or (own := template_digest(folder)) == on.template_digest:
        return []
    return [
        f"it was saved with the chat template {own[:19]}…, and {on.name} has {on.template_digest[:19]}…: it would be "
        "asked in a form it never saw; give the base with its own template"
    ]


def _expect_new(registry: Registry, model: str, digest: str) -> None:
    for version in registry.versions.all(model):
        if version.artifact_digest == digest:
            raise Conflict(f"{version.name} holds these very files already; nothing is registered")


def _draft(model: str, found: Foreign, on: Base, by: str) -> VersionDraft:
    config = json.loads((found.folder / CONFIG).read_text(encoding="utf-8"))
    try:
        return VersionDraft(
            model=model,
            kind="adapter",
            base=on.name,
            base_digest=on.digest,
            template_digest=on.template_digest,
            data_digest=_UNKNOWN,
            data_rows=0,
            recipe_digest=_UNKNOWN,
            code_commit=found.code_commit or _UNKNOWN,
            rank=max([config["r"], *(config.get("rank_pattern") or {}).values()]),
            target_modules=tuple(sorted(config["target_modules"])),
            trained_by=by,
            metrics=found.metrics,
        )
    except ValidationError as error:
        raise InvalidInput(f"{model!r} cannot be registered: {faults(error)}") from None


def _published(registry: Registry, draft: VersionDraft, folder: Path, source: Source) -> Version:
    versions = registry.versions
    run_id = versions.start_run(draft.model, name="register", params={"source": source.name})
    try:
        made = versions.publish(draft, run_id=run_id, folder=folder)
    except BaseException:
        versions.end_run(run_id, "FAILED")
        raise
    versions.end_run(run_id, "FINISHED")
    return made


def _note(registry: Registry, by: str, action: str, subject: str, detail: dict[str, str]) -> None:
    with registry.database.writing() as connection:
        audit.record(connection, at=registry.clock(), actor=by, action=action, subject=subject, detail=detail)
