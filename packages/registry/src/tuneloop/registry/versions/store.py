"""Versions live in MLflow (models, versions, metrics, artifacts); this module speaks to it.

Its parts are `runs`, `signed_files`, `mirroring` and, for what others put there, `foreign`. Importing it costs 2 s
(MLflow); everything else in the registry stays light. Nothing is created in MLflow before the folder has been checked,
so a refused publish leaves nothing behind.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

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
        try:
            self._client.create_registered_model(draft.model, {_MODEL_TAG: "1"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            self._client.set_registered_model_tag(draft.model, _MODEL_TAG, "1")  # it may be somebody else's
        fields = draft.model_dump(mode="json") | {
            "run_id": run_id,
            "artifact_digest": digest,
            "artifact_bytes": size,
            "signed_by": key,
            "created_at": self._clock().isoformat(),
        }
        tags = {VERSION_TAG: json.dumps(fields)} | ({_REQUEST_TAG: draft.request_id} if draft.request_id else {})
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{ARTIFACT}"
        self._expect_first(draft)  # storing takes its time: whose lease ran out meanwhile comes second
        if only_new:
            self.expect_new(draft.model, digest)
        made = self._client.create_model_version(draft.model, source=source, run_id=run_id, tags=tags)
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
        return self._search(f"name = '{_safe(model)}'", newest)

    @asking
    def page(self, model: str, ask: Ask) -> Page[Version]:
        """Every version of a model, the newest first, page by page."""
        last, found = ask.after(VERSION_TAG, int), list[Version]()
        while True:
            below = f" AND version_number < {last[0]}" if last else ""
            condition, wanted = f"name = '{_safe(model)}'{below}", ask.limit + 1 - len(found)
            made = self._client.search_model_versions(condition, wanted, order_by=["version_number DESC"])
            found += ours(made)
            if len(found) > ask.limit:
                shown = found[: ask.limit]
                return Page(shown, cursor_at(VERSION_TAG, [shown[-1].version]))
            if len(made) < wanted:
                return Page(found, None)
            last = [int(made[-1].version)]

    @asking
    def models(self) -> list[str]:
        """The names of the registered models that hold versions of ours; others in the same MLflow are left out."""
        names, token = [], None
        while True:
            page = self._client.search_registered_models(
                f"tags.`{_MODEL_TAG}` = '1'", max_results=100, page_token=token
            )
            names += [found.name for found in page]
            if not (token := page.token):
                return sorted(names)

    @asking
    def for_request(self, request_id: str) -> Version | None:
        """The version a retraining request made, if it made one."""
        return next(iter(self._search(f"tags.`{_REQUEST_TAG}` = '{_safe(request_id)}'")), None)

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

    def _expect_first(self, draft: VersionDraft) -> None:
        if draft.request_id is not None and (existing := self.for_request(draft.request_id)) is not None:
            raise Conflict(f"retraining {draft.request_id} already made {existing.name}; a request makes one version")

    def _search(self, condition: str, newest: int | None = None) -> list[Version]:
        """By number, the newest first: in MLflow's own order, and by its tokens, each page costs what they all hold."""
        found, below, size = list[Version](), "", min(newest or _PAGE, _PAGE)
        while True:
            page = self._client.search_model_versions(condition + below, size, order_by=["version_number DESC"])
            found += ours(page)
            if not page.token or (newest is not None and len(found) >= newest):
                return found[:newest]
            below = f" and version_number < {page[-1].version}"


def _safe(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise InvalidInput(f"{text!r} is not a name")
    return text
