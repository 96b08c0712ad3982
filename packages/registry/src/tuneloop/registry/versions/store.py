"""Versions live in MLflow (models, versions, metrics, artifacts); this module speaks to it.

Its parts are `runs`, `signed_files`, `mirroring` and, for what others put there, `foreign`. Importing it costs 2 s
(MLflow); everything else in the registry stays light. Nothing is created in MLflow before the folder has been checked,
so a refused publish leaves nothing behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from mlflow.exceptions import MlflowException

from tuneloop.registry.errors import Conflict, InvalidInput, NotFound
from tuneloop.registry.nouns import ModelName, Noun, Version, version_name
from tuneloop.registry.paging import Ask, Page, cursor_at
from tuneloop.registry.settings import without_password
from tuneloop.registry.versions.artifacts import check_publishable, folder_digest
from tuneloop.registry.versions.connected import asking
from tuneloop.registry.versions.foreign import Foreign, brought
from tuneloop.registry.versions.mirroring import Mirroring
from tuneloop.registry.versions.signed_files import ARTIFACT, SIGNATURES, SignedFiles
from tuneloop.registry.versions.sources import MlflowRun, MlflowVersion
from tuneloop.registry.versions.tag import VERSION_TAG, ours, version_of

_REQUEST_TAG = "tuneloop.request_id"
_MODEL_TAG = "tuneloop.model"
_PAGE = 1_000  # versions a call
_BY_NUMBER = ["version_number DESC"]


class VersionDraft(Noun):
    """What a trainer says of a version before it has a number."""

    model: ModelName
    kind: Literal["adapter", "full"]
    base: str
    base_digest: str
    template_digest: str
    tokenizer_digest: str | None = None
    data_digest: str
    data_rows: int
    recipe_digest: str
    code_commit: str
    rank: int | None = None
    target_modules: tuple[str, ...] = ()
    parent: int | None = None
    request_id: str | None = None
    trained_by: str | None = None
    metrics: dict[str, float] = {}


class Versions(SignedFiles, Mirroring):
    """Runs and versions over MLflow's own client; a tracking server works like the default SQLite file."""

    @asking
    def publish(self, draft: VersionDraft, *, run_id: str, folder: Path, only_new: bool = False) -> Version:
        """Store a folder as the next version of its model, with its lineage.

        Args:
            draft: what to say of it.
            run_id: of the run that made it, which keeps the files.
            folder: the files.
            only_new: refuse what the model has a version of already.

        Raises:
            InvalidInput: the folder holds something that may not be published.
            Conflict: the retraining request already has a version, or the files have.
        """
        check_publishable(folder)
        self._expect_first(draft)
        digest = folder_digest(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with self._signed(folder) as (key, signature):  # before anything is stored: without a key nothing is published
            self._client.log_artifacts(run_id, str(folder), ARTIFACT)
            self._client.log_artifact(run_id, str(signature), SIGNATURES)
        self._make_model(draft.model)
        fields = draft.model_dump(mode="json") | {
            "run_id": run_id,
            "artifact_digest": digest,
            "artifact_bytes": size,
            "signed_by": key,
            "created_at": self._clock().isoformat(),
        }
        tags = {VERSION_TAG: json.dumps(fields)} | ({_REQUEST_TAG: draft.request_id} if draft.request_id else {})
        run = self._client.get_run(run_id)
        self._expect_first(draft)  # storing takes its time: whose lease ran out meanwhile comes second
        if only_new:
            self.expect_new(draft.model, digest)
            if self._client.get_run(run_id).info.status != "RUNNING":
                raise Conflict(
                    f"registering {draft.model} was taken for broken off meanwhile, and what it had stored is deleted; "
                    "try again"
                )
        source = f"{run.info.artifact_uri}/{ARTIFACT}"
        made = self._changes.create_model_version(draft.model, source=source, run_id=run_id, tags=tags)
        return version_of(made)

    @asking
    def get(self, model: str, number: int) -> Version:
        """One version.

        Raises:
            NotFound: the model or the version does not exist; the message names those that do.
        """
        try:
            return version_of(self._client.get_model_version(model, str(number)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            known = [version.name for version in self.all(model, newest=5)]
            raise NotFound(
                f"{version_name(model, number)} does not exist; known: {', '.join(known)}"
                if known
                else f"no model named {model!r}; `tuneloop models` lists them"
            ) from None

    @asking
    def all(self, model: str, *, newest: int | None = None) -> list[Version]:
        """A model's versions, the newest first: so many of them, or every one."""
        found = list[Version]()
        for page in self._newest_first(model, min(newest or _PAGE, _PAGE)):
            found += ours(page)
            if newest is not None and len(found) >= newest:
                break
        return found[:newest]

    @asking
    def page(self, model: str, ask: Ask) -> Page[Version]:
        """Every version of a model, the newest first, page by page."""
        last, found = ask.after(VERSION_TAG, int), list[Version]()
        for page in self._newest_first(model, ask.limit + 1, last[0] if last else None):
            found += ours(page)
            if len(found) > ask.limit:
                shown = found[: ask.limit]
                return Page(shown, cursor_at(VERSION_TAG, [shown[-1].version]))
        return Page(found, None)

    @asking
    def models(self) -> list[str]:
        """The names of the registered models that hold versions of ours; others in the same MLflow are left out."""
        if self._tables is not None:
            return self._tables.tagged(_MODEL_TAG)
        names, token = [], None
        while True:
            page = self._client.search_registered_models(
                f"tags.`{_MODEL_TAG}` = '1'", max_results=100, page_token=token
            )
            names += [found.name for found in page]
            if not (token := page.token):
                return sorted(names)

    @asking
    def newest_of(self, models: Sequence[str]) -> dict[str, int]:
        """The number of the newest version of each of these models that has one of ours."""
        if self._tables is not None:
            return self._tables.newest_tagged(models, VERSION_TAG)
        newest = ((model, self.all(model, newest=1)) for model in models)
        return {model: versions[0].version for model, versions in newest if versions}

    @asking
    def for_request(self, request_id: str) -> Version | None:
        """The version a retraining request made, if it made one."""
        condition = f"tags.`{_REQUEST_TAG}` = '{_safe(request_id)}'"
        return next(iter(ours(self._client.search_model_versions(condition, _PAGE, order_by=_BY_NUMBER))), None)

    @asking
    def holding(self, model: str, digest: str) -> Version | None:
        """The newest version of a model with files of this digest."""
        return next((version for version in self.all(model) if version.artifact_digest == digest), None)

    def expect_new(self, model: str, digest: str) -> None:
        """See that no version of a model has files of this digest.

        Raises:
            Conflict: one has.
        """
        if (there := self.holding(model, digest)) is not None:
            raise Conflict(f"{there.name} holds these very files already; nothing is registered")

    @asking
    def foreign(self, source: MlflowRun | MlflowVersion, into: Path, within: Path | None = None) -> Foreign:
        """A folder that somebody put into MLflow; nothing of it has been looked at.

        Args:
            source: what is meant.
            into: an empty folder of the caller's; what another machine keeps is fetched there.
            within: outside it nothing on this machine is read; None: wherever its run says that it is.

        Raises:
            InvalidInput: it lies outside the run that is named, or outside `within`.
            NotFound: there is no such run, version or folder.
        """
        try:
            return brought(self._client, source, into, within)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise InvalidInput(
                f"{source.name}: MLflow can have no such thing: {without_password(error.message)}"
            ) from None

    def _make_model(self, model: str) -> None:
        """See that MLflow has the model, marked as holding versions of ours; it may be somebody else's.

        Where it is there, MLflow reads all its versions to say so to whoever would create it. So that comes second.
        """
        self._expect_no_prompt(model)
        try:
            self._changes.set_registered_model_tag(model, _MODEL_TAG, "1")
        except MlflowException as missing:
            if missing.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            try:
                self._client.create_registered_model(model, {_MODEL_TAG: "1"})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                self._changes.set_registered_model_tag(model, _MODEL_TAG, "1")  # somebody made it meanwhile

    def _expect_first(self, draft: VersionDraft) -> None:
        if draft.request_id is not None and (existing := self.for_request(draft.request_id)) is not None:
            raise Conflict(f"retraining {draft.request_id} already made {existing.name}; a request makes one version")

    def _newest_first(self, model: str, size: int, below: int | None = None) -> Iterator[Sequence[Any]]:
        """MLflow's versions of a model by number, the newest first, at most so many at a time.

        Each page is asked for between two numbers, the lower one by as much as could hold it: MLflow's own order and
        tokens cost what all versions hold, and PostgreSQL plans a search without a lower end as a scan of all.
        """
        name, width = f"name = '{_safe(model)}'", size
        top = below - 1 if below is not None else self._tables.newest(model) if self._tables is not None else None
        while top is None or top > 0:
            floor = max(1, top - width + 1) if top is not None else 1
            above = f" AND version_number >= {floor}" if floor > 1 else ""
            until = f" AND version_number < {below}" if below is not None else ""
            page = self._client.search_model_versions(name + above + until, size, order_by=_BY_NUMBER)
            yield page
            if len(page) == size:
                below = int(page[-1].version)
            elif floor == 1:
                return
            else:  # deleted ones have left gaps
                below, width = floor, 2 * width
            top = below - 1


def _safe(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise InvalidInput(f"{text!r} is not a name")
    return text
