"""Making a version of what tuneloop did not train: from a folder, or from what somebody put into MLflow.

Everything that speaks against it is found before anything is written, so what is refused leaves nothing behind. It is
looked at in a copy that nobody else can write to, so that what was looked at is what is registered. What is accepted is
digested and signed as a training's result is, and waits for a person's approval like any other. Files are registered by
one at a time; who was killed at it has left what the model's next registration, or the controller, ends (see
`left_behind`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuneloop.registry.database import faults
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound
from tuneloop.registry.exclusive import alone
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import EngineState, Version
from tuneloop.registry.nouns.versions import UNKNOWN
from tuneloop.registry.versions.adapters import (
    CONFIG,
    LARGEST_RANK,
    Base,
    Limits,
    base_shapes,
    highest_rank,
    unservable,
)
from tuneloop.registry.versions.artifacts import (
    base_digest,
    check_publishable,
    folder_digest,
    has_template,
    template_digest,
    tokenizer_digest,
)
from tuneloop.registry.versions.contents import not_as_named
from tuneloop.registry.versions.foreign import Foreign
from tuneloop.registry.versions.left_behind import BEGUN, DONE, UNDONE, Begun, note, settle, settle_others
from tuneloop.registry.versions.private import copied, private_folder
from tuneloop.registry.versions.sources import Folder, Source
from tuneloop.registry.versions.store import VersionDraft
from tuneloop.registry.versions.weights import is_whole, unloadable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Offer:
    """What somebody wants to register."""

    model: str
    called: str  # the source, in messages
    files: Foreign
    base: Path | None
    on: Base | None  # the same base, by content
    by: str

    @property
    def folder(self) -> Path:
        return self.files.folder

    def check(self, speaks_against: list[str]) -> None:
        """Refuse it with everything that speaks against it."""
        if speaks_against:
            raise InvalidInput(f"{self.called} cannot be registered: {'; '.join(speaks_against)}")


def register(
    registry: Registry,
    model: str,
    source: Source,
    *,
    base: Path | None,
    by: str,
    reason: str,
    within: Path | None = None,
) -> Version:
    """Register an adapter, or whole weights, as the next version of a model.

    Where an earlier call was killed after MLflow had the version, what is missing is added, and it is returned.

    Args:
        registry: where.
        model: its name; a new one is as good as one that has versions.
        source: where the files are.
        base: the folder of the base it was trained on; whole weights may come without.
        by: who does it; counts as its trainer where somebody else has to approve.
        reason: why.
        within: of files that MLflow keeps on this machine, only those below it are read; None: wherever they lie.

    Raises:
        InvalidInput: names everything that speaks against it.
        Conflict: the model has a version of these very files, or somebody registers them just now.
        NotFound, Unavailable: there is no such source, MLflow does not answer, or there is no room for a copy.
    """
    on = None if base is None else Base(base.resolve().name, base_digest(base), template_digest(base))
    with private_folder(registry.settings.home) as ours:
        offer = _Offer(model, source.name, _brought(registry, source, ours, within), base, on, by)
        draft = _whole(registry, offer) if is_whole(offer.folder) else _adapter(registry, offer)
        offer.check(not_as_named(offer.folder))
        digest = folder_digest(offer.folder)
        begun = Begun(model, digest)
        with alone(registry.database, begun.lock) as mine:
            if not mine:
                raise Conflict(f"{offer.called}: somebody registers these very files as {model} just now")
            settle_others(registry, begun, by=by)
            if (completed := settle(registry, model, digest, by=by)) is not None:
                return completed
            registry.versions.expect_new(model, digest)
            registry.versions.check_key()
            detail = {"source": source.name, "digest": digest, "base_digest": draft.base_digest, "reason": reason}
            note(registry, by, BEGUN, model, detail)  # first: nothing is ever brought in by nobody
            return _published(registry, draft, offer, detail)


def _brought(registry: Registry, source: Source, ours: Path, within: Path | None) -> Foreign:
    """The files in a folder of ours, which nobody else writes to."""
    if isinstance(source, Folder):
        if not source.path.is_dir():
            raise InvalidInput(f"there is no folder {source.path}")
        found = Foreign(source.path.resolve(), source.path.resolve())
    else:
        found = registry.versions.foreign(source, ours, within)
    check_publishable(found.folder, source.name)  # by its names alone: nothing is copied in vain
    if found.below is not None:
        found = replace(found, folder=copied(found.folder, ours, below=found.below, called=source.name))
        check_publishable(found.folder, source.name)
    return found


def _adapter(registry: Registry, offer: _Offer) -> VersionDraft:
    """What to say of an adapter.

    Raises:
        InvalidInput: no engine could serve it as it was trained.
    """
    folder, base, on = offer.folder, offer.base, offer.on
    if base is None or on is None:
        raise InvalidInput(f"{offer.called} is no whole model, and of an adapter must be known what it adapts: --base")
    engines = [engine for engine in registry.fleet.engines() if engine.max_loras]
    speaks = _other_base(registry, offer.model, on, engines) + _own_template(folder, on) + _own_tokenizer(folder, base)
    most = highest_rank(engines, on.digest) or LARGEST_RANK  # that any could be started for, while none lives
    offer.check(speaks + unservable(folder, Limits(on, most, base_shapes(base))))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    shape = {"rank": rank, "target_modules": tuple(sorted(config["target_modules"]))}
    return _draft(offer, on, {"kind": "adapter", "tokenizer_digest": tokenizer_digest(base)} | shape)


def _whole(registry: Registry, offer: _Offer) -> VersionDraft:
    """What to say of whole weights.

    Raises:
        InvalidInput: they cannot be loaded as they are, or are not what they are said to be.
    """
    folder, on = offer.folder, offer.on
    speaks = unloadable(folder, offer.base)
    if not has_template(folder):
        offer.check([*speaks, "it has no chat template (chat_template.jinja): save it beside the weights"])
    if on is None:
        on = Base(UNKNOWN, UNKNOWN, template_digest(folder))
    offer.check(speaks + _own_template(folder, on) + _other_base(registry, offer.model, on, []))
    return _draft(offer, on, {"kind": "full", "tokenizer_digest": tokenizer_digest(folder)})


def _other_base(registry: Registry, model: str, on: Base, engines: list[EngineState]) -> list[str]:
    """What speaks against it where the model is served, or was registered, on a base or in a form that differs."""
    standing = _standing(registry, model)
    there = {f"engine {engine.id}": (engine.base_digest, engine.template_digest) for engine in engines}
    there |= {standing.name: (standing.base_digest, standing.template_digest)} if standing else {}
    same_base = {
        name: template
        for name, (digest, template) in there.items()
        if digest == on.digest or UNKNOWN in {digest, on.digest}
    }
    if there and not same_base:
        others = ", ".join(f"{name} has {digest[:19]}…" for name, (digest, _) in there.items())
        return [
            f"its base {on.name} is {on.digest[:19]}…, and {others}; train it on that base, or start an engine with "
            "its own and register it under another name"
        ]
    if there and on.template_digest not in same_base.values():
        others = ", ".join(f"{name} has {template[:19]}…" for name, template in same_base.items())
        return [
            f"the chat template of {on.name} is {on.template_digest[:19]}…, and {others}: it would be asked in a form "
            "it never saw; give the base with the template it was trained with"
        ]
    return []


def _standing(registry: Registry, model: str) -> Version | None:
    """The version that others of the model are held against: its champion, or the newest one that MLflow has."""
    route = registry.routes.current_all().get(model)
    if route is not None:
        try:
            return registry.versions.get(model, route.champion)
        except NotFound as error:  # deleted: to register it again must not need it
            _log.warning("%s: its champion is gone, the newest version stands for it: %s", model, error)
    return next(iter(registry.versions.all(model, newest=1)), None)


def _own_template(folder: Path, on: Base) -> list[str]:
    """What speaks against the chat template that the adapter brings along, if it does."""
    if not has_template(folder) or (own := template_digest(folder)) == on.template_digest:
        return []
    return [
        f"it was saved with the chat template {own[:19]}…, and {on.name} has {on.template_digest[:19]}…: it would be "
        "asked in a form it never saw; give the base with its own template"
    ]


def _own_tokenizer(folder: Path, base: Path) -> list[str]:
    """What speaks against the tokenizer that the adapter brings along, if it does: engines give it the base's."""
    if (own := tokenizer_digest(folder)) is None or own == tokenizer_digest(base):
        return []
    return [
        f"its tokenizer is not that of {base.resolve().name}, which engines ask it with: the same words would be other "
        "tokens; give the base it was trained on, or, where that has it in another form, take the tokenizer's files out"
    ]


def _draft(offer: _Offer, on: Base, own: Mapping[str, Any]) -> VersionDraft:
    try:
        return VersionDraft(
            model=offer.model,
            base=on.name,
            base_digest=on.digest,
            template_digest=on.template_digest,
            data_digest=UNKNOWN,
            data_rows=0,
            recipe_digest=UNKNOWN,
            code_commit=offer.files.code_commit or UNKNOWN,
            trained_by=offer.by,
            metrics=offer.files.metrics,
            **own,
        )
    except ValidationError as error:
        raise InvalidInput(f"{offer.model!r} cannot be registered: {faults(error)}") from None


def _published(registry: Registry, draft: VersionDraft, offer: _Offer, detail: dict[str, str]) -> Version:
    versions, run_id, made = registry.versions, None, None
    try:
        run_id = versions.start_run(
            draft.model, name="register", params={"source": offer.called}, registers=detail["digest"]
        )
        made = versions.publish(draft, run_id=run_id, folder=offer.folder, only_new=True)
        note(registry, offer.by, DONE, made.name, detail)
        versions.end_run(run_id, "FINISHED")
    except BaseException as error:
        if made is None:  # else it is there, and the next call adds what is missing
            _undone(registry, draft.model, run_id, offer.by, detail | {"why": str(error) or type(error).__name__})
        raise
    return made


def _undone(registry: Registry, model: str, run_id: str | None, by: str, detail: dict[str, str]) -> None:
    """Say that it came to nothing; what fails at that is left to the next call, and hides nothing of why it came so."""
    try:
        if run_id is not None:
            registry.versions.end_run(run_id, "FAILED")
    except Exception:  # noqa: BLE001 (whatever it is, the first error is the one to tell)
        _log.exception("run %s could not be ended, the model's next registration ends it", run_id)
    try:
        note(registry, by, UNDONE, model, detail)
    except Exception:  # noqa: BLE001 (whatever it is, the first error is the one to tell)
        _log.exception("that %s got no version could not be put on record, the next registration does", model)
