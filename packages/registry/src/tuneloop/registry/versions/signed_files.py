"""The files of versions: signed when they are published, fetched once, verified each time."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from tuneloop.registry.errors import InvalidInput, NotFound, Unavailable
from tuneloop.registry.files import write_atomically
from tuneloop.registry.nouns import Version
from tuneloop.registry.settings import RegistrySettings, without_password
from tuneloop.registry.versions.artifacts import check_publishable, fetched_name, folder_digest
from tuneloop.registry.versions.connected import asking
from tuneloop.registry.versions.private import private_folder
from tuneloop.registry.versions.room import expect_room, listed_bytes
from tuneloop.registry.versions.runs import Runs
from tuneloop.registry.versions.signing.policy import SIGNATURE, Signing
from tuneloop.registry.versions.sources import on_this_machine
from tuneloop.registry.versions.tag import VERSION_TAG

ARTIFACT = "model"  # the folder of a run that holds the version's files
SIGNATURES = "signature"  # and the one that holds their signature
_log = logging.getLogger(__name__)


class SignedFiles(Runs):
    """Signs, keeps and fetches versions' files."""

    def __init__(self, settings: RegistrySettings, clock: Callable[[], datetime]) -> None:
        super().__init__(settings, clock)
        self._signing = Signing(settings, clock)

    def check_key(self) -> None:
        """See that what will be published can be signed, before hours are spent on making it.

        Raises:
            InvalidInput: the key that the settings name is none to sign with.
        """
        self._signing.check_key()

    @asking
    def sign(self, version: Version) -> Version:
        """Sign a version's files, as MLflow has them now, with this machine's key; it replaces the signature it had.

        Raises:
            InvalidInput: the files are not those that were published, or there is no key to sign with.
        """
        home = self._settings.home
        with private_folder(home) as own, self._signed(self._files(version, own)) as (key, signature):
            self._client.log_artifact(version.run_id, str(signature), SIGNATURES)
        signed = version.model_copy(update={"signed_by": key})
        fields = signed.model_dump(mode="json", exclude={"version"})
        self._changes.set_model_version_tag(version.model, str(version.version), VERSION_TAG, json.dumps(fields))
        return signed

    def fetch(self, version: Version, root: Path) -> Path:
        """The version's files in `root/<digest>`, downloaded once, verified each time; they appear whole or not at all.

        Raises:
            InvalidInput: the files are not those that were published, or nobody trusted here has signed them.
            Unavailable: they cannot be fetched, or there is no room for them; nothing was.
        """
        folder = self._files(version, root)
        signature = None if version.signed_by is None else self._signature(version, root, version.signed_by)
        try:
            self._signing.verify(folder, signature, version.name)
        except InvalidInput:
            if signature is not None:
                signature.unlink(missing_ok=True)  # another may be there meanwhile: it is asked for again
            raise
        return folder

    @asking
    def verify(self, version: Version) -> None:
        """Verify a version's files and signature as `fetch` does, and as MLflow has them now: nothing kept here counts.

        Raises:
            InvalidInput: the files are not those that were published, or nobody trusted here has signed them.
            Unavailable: they cannot be fetched, or there is no room for them.
        """
        with private_folder(self._settings.home) as own:
            self.fetch(version, own)

    @asking
    def discard_files(self, run_id: str) -> None:
        """Delete what a registration that came to nothing has stored, where the artifact store lets MLflow's client.

        Only what publishing writes, in a folder of the run's own, and never what a version was made of. What cannot be
        deleted is logged and stays.
        """
        if self._client.search_model_versions(f"run_id = '{run_id}'", max_results=1):
            return
        try:
            run = self._client.get_run(run_id)
            uri = str(run.info.artifact_uri).rstrip("/")
            here = on_this_machine(uri)
            if not uri.endswith(f"/{run_id}/artifacts") or (here and (here.is_symlink() or here.parent.is_symlink())):
                _log.warning("run %s: %s is no folder of its own; nothing is deleted there", run_id, uri)
                return
            store = get_artifact_repository(uri, tracking_uri=self._settings.mlflow)
            for folder in {ARTIFACT, SIGNATURES} & {kept.path for kept in store.list_artifacts()}:
                store.delete_artifacts(folder)
        except (MlflowException, OSError, NotImplementedError) as error:
            why = without_password(str(error))
            _log.warning("run %s: what it had stored cannot be deleted: %s", run_id, why)

    @contextmanager
    def _signed(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """(the key's name, the signature of a folder), the latter for as long as the block runs."""
        with tempfile.TemporaryDirectory(prefix="tuneloop-sign-") as scratch:
            signature = Path(scratch) / SIGNATURE
            yield self._signing.sign(folder, signature), signature

    def _signature(self, version: Version, root: Path, key: str) -> Path:
        """The version's signature beside its fetched files; asks MLflow once."""
        kept = root / f"{fetched_name(version)}.{key}.sig"
        if not kept.is_file():
            try:
                with self.fetched_file(version.run_id, f"{SIGNATURES}/{SIGNATURE}") as found:
                    write_atomically(kept, found.read_bytes())
            except NotFound:
                raise InvalidInput(
                    f"{version.name} was signed by key {key}, and its signature is gone from MLflow; do not serve it: "
                    "see who has written to the artifact store, then "
                    f"`tuneloop sign {version.name} --by YOU --reason WHY`"
                ) from None
        return kept

    def _files(self, version: Version, root: Path) -> Path:
        target = root / fetched_name(version)
        if target.is_dir():
            if folder_digest(target) == version.artifact_digest:
                return target
            # Also while an engine serves it: what comes back has the same digest, so the same bytes. Whoever reads
            # meanwhile finds no file, never others.
            _log.warning("%s: %s is damaged; fetching it again", version.name, target)
            shutil.rmtree(target)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
            try:
                told = listed_bytes(partial(self._client.list_artifacts, version.run_id), ARTIFACT)
                expect_room(version.artifact_bytes if told is None else told, root, f"{version.name}: its files")
                folder = self._download(version.run_id, ARTIFACT, scratch)
            except Unavailable:
                raise
            except (MlflowException, OSError) as error:
                why = without_password(str(error))
                raise Unavailable(f"{version.name}: its files cannot be fetched from MLflow: {why}") from error
            check_publishable(folder)
            if (found := folder_digest(folder)) != version.artifact_digest:
                raise InvalidInput(
                    f"{version.name}: fetched files have digest {found}, published was {version.artifact_digest}; "
                    "do not serve it"
                )
            try:
                folder.rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process was first, with the same verified content
                    raise
        return target
