"""Signed versions: whoever may write the database and MLflow still cannot make files that are loaded."""

from __future__ import annotations

import json
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from mlflow.tracking import MlflowClient

from tests_support import publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unreadable
from tuneloop.registry.nouns import Version, utc_now
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.artifacts import folder_digest
from tuneloop.registry.versions.signing.policy import SIGNATURE, Signing

TAG = "tuneloop.version"


@pytest.fixture
def published(registry: Registry, tmp_path: Path) -> Version:
    return publish_version(registry, tmp_path / "v1")


def stored(registry_home: Path, name: str) -> Path:
    """A file of the version as it lies in the artifact store."""
    [found] = (registry_home / "artifacts").rglob(name)
    return found


def retag(client: MlflowClient, **changes: Any) -> None:
    """What somebody who may write to MLflow can say of the version."""
    fields = json.loads(client.get_model_version("bot", "1").tags[TAG])
    client.set_model_version_tag("bot", "1", TAG, json.dumps(fields | changes))


def other_home(registry: Registry, home: Path, **changes: Any) -> Registry:
    """The same database and MLflow, from a machine with a home of its own."""
    there = registry.settings
    settings = RegistrySettings(home=home, database_url=there.database, mlflow_uri=there.mlflow, **changes)
    return Registry.open(settings)


def test_a_published_version_is_signed_by_a_key_made_on_first_use(
    registry: Registry, registry_home: Path, published: Version, tmp_path: Path
) -> None:
    key = registry_home / "signing" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [path.stem for path in (registry_home / "signing" / "trusted").iterdir()] == [published.signed_by]
    folder = registry.versions.fetch(published, tmp_path / "fetched")
    assert folder_digest(folder) == published.artifact_digest, "the signature lies beside the files"
    second = publish_version(registry, tmp_path / "v2")
    assert second.signed_by == published.signed_by


def test_what_is_fetched_already_is_verified_without_mlflow(
    registry: Registry, registry_home: Path, published: Version, tmp_path: Path
) -> None:
    folder = registry.versions.fetch(published, tmp_path / "fetched")
    shutil.rmtree(registry_home / "artifacts")
    assert registry.versions.fetch(published, tmp_path / "fetched") == folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_files_changed_in_the_store_together_with_their_digest_are_found_by_the_signature(
    registry: Registry, registry_home: Path, published: Version, client: MlflowClient, tmp_path: Path
) -> None:
    weights = stored(registry_home, "adapter_model.safetensors")
    flip(weights)
    with pytest.raises(InvalidInput, match="fetched files have digest"):
        registry.versions.fetch(published, tmp_path / "fetched")
    retag(client, artifact_digest=folder_digest(weights.parent))
    with pytest.raises(InvalidInput, match=rf"are not what key {published.signed_by} signed .*do not serve it"):
        registry.versions.fetch(registry.versions.get("bot", 1), tmp_path / "fetched")


@pytest.mark.parametrize(("name", "content"), [("extra.json", "{}"), ("adapter_config.json", None)])
def test_a_file_added_or_taken_away_is_found_too(
    registry: Registry,
    registry_home: Path,
    published: Version,
    client: MlflowClient,
    tmp_path: Path,
    name: str,
    content: str | None,
) -> None:
    folder = stored(registry_home, "adapter_model.safetensors").parent
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    retag(client, artifact_digest=folder_digest(folder))
    with pytest.raises(InvalidInput, match=f"are not what key .* signed .*{name}"):
        registry.versions.fetch(registry.versions.get("bot", 1), tmp_path / "fetched")


def test_a_signature_taken_off_is_not_overlooked_unless_the_settings_say_so(
    registry: Registry, published: Version, client: MlflowClient, tmp_path: Path
) -> None:
    retag(client, signed_by=None)
    unsigned = registry.versions.get("bot", 1)
    with pytest.raises(InvalidInput, match="bot@1 is not signed; sign it once you have looked at it"):
        registry.versions.fetch(unsigned, tmp_path / "fetched")
    with other_home(registry, tmp_path / "elsewhere", unsigned_versions="accept") as lenient:
        assert lenient.versions.fetch(unsigned, tmp_path / "fetched").is_dir()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"verificationMaterial": {"publicKey": {}}}'])
def test_a_signature_that_is_none_is_said_to_be_one(
    registry: Registry, registry_home: Path, published: Version, tmp_path: Path, content: bytes
) -> None:
    stored(registry_home, SIGNATURE).write_bytes(content)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"is no signature by a key.*sign the version anew"):
            registry.versions.fetch(published, tmp_path / "fetched")
    signed = registry.versions.sign(published)
    assert registry.versions.fetch(signed, tmp_path / "fetched").is_dir(), "nobody holds on to the bad one"


@pytest.mark.parametrize(
    "digest", ["sha256:", "sha256:../../signing", "/etc", "sha256:" + "A" * 64, "sha256:" + "0" * 65]
)
def test_what_is_no_digest_names_no_folder(
    registry: Registry, registry_home: Path, published: Version, client: MlflowClient, digest: str
) -> None:
    """Fetching deletes what does not fit its digest: whoever writes tags must not choose what that is."""
    retag(client, artifact_digest=digest)
    named = registry.versions.get("bot", 1)
    with pytest.raises(InvalidInput, match="is no digest of its files"):
        registry.versions.fetch(named, registry_home / "adapters")
    with pytest.raises(InvalidInput, match="is no digest of its files"):
        registry.versions.sign(named)
    assert (registry_home / "signing" / "key.pem").is_file()


@pytest.mark.parametrize("key", ["", "../../x", "A" * 12, "0" * 13, "0" * 12 + "\n"])
def test_what_is_no_keys_name_is_refused(
    registry: Registry, published: Version, client: MlflowClient, key: str
) -> None:
    retag(client, signed_by=key)
    with pytest.raises(Unreadable, match="signed_by"):
        registry.versions.get("bot", 1)


def test_a_signature_that_is_gone_is_said_to_be(
    registry: Registry, registry_home: Path, published: Version, tmp_path: Path
) -> None:
    stored(registry_home, SIGNATURE).unlink()
    with pytest.raises(InvalidInput, match="its signature is gone from MLflow"):
        registry.versions.fetch(published, tmp_path / "fetched")


def test_a_strangers_version_is_loaded_only_where_the_strangers_key_is_trusted(
    registry: Registry, registry_home: Path, published: Version, tmp_path: Path
) -> None:
    with other_home(registry, tmp_path / "elsewhere") as elsewhere:
        with pytest.raises(InvalidInput, match=f"signed by key {published.signed_by}, which is not trusted here"):
            elsewhere.versions.fetch(published, tmp_path / "fetched")
        trusted = tmp_path / "elsewhere" / "signing" / "trusted"
        trusted.mkdir(parents=True)
        (trusted / "junk.pem").write_text("no key")
        (trusted / "team.pem").write_bytes(
            (registry_home / "signing" / "trusted" / f"{published.signed_by}.pem").read_bytes().replace(b"\n", b"\r\n")
        )
        assert elsewhere.versions.fetch(published, tmp_path / "fetched").is_dir()


def test_a_signature_that_names_a_trusted_key_but_was_made_with_another_does_not_verify(
    registry: Registry, registry_home: Path, published: Version, tmp_path: Path
) -> None:
    signature = stored(registry_home, SIGNATURE)
    real = json.loads(signature.read_text())
    Signing(RegistrySettings(home=tmp_path / "attacker"), utc_now).sign(tmp_path / "v1", signature)
    forged = json.loads(signature.read_text())
    signature.write_text(json.dumps(forged | {"verificationMaterial": real["verificationMaterial"]}))
    with pytest.raises(InvalidInput, match="are not what key"):
        registry.versions.fetch(published, tmp_path / "fetched")


def test_signing_anew_takes_the_files_as_mlflow_has_them_not_as_they_were_fetched_before(
    registry: Registry, registry_home: Path, published: Version, client: MlflowClient, tmp_path: Path
) -> None:
    with other_home(registry, tmp_path / "elsewhere") as elsewhere:
        signed = elsewhere.versions.sign(elsewhere.versions.get("bot", 1))
        assert signed.signed_by != published.signed_by
        assert elsewhere.versions.get("bot", 1) == signed
        assert elsewhere.versions.fetch(signed, tmp_path / "fetched").is_dir()
    (registry_home / "signing" / "trusted" / f"{signed.signed_by}.pem").write_bytes(
        (tmp_path / "elsewhere" / "signing" / "trusted" / f"{signed.signed_by}.pem").read_bytes()
    )
    kept = registry.versions.fetch(signed, registry_home / "adapters")
    flip(stored(registry_home, "adapter_model.safetensors"))
    assert folder_digest(kept) == signed.artifact_digest
    with pytest.raises(InvalidInput, match="fetched files have digest"):
        registry.versions.sign(signed)
    assert registry.versions.get("bot", 1) == signed
    assert not list((registry_home / "registering").iterdir()), "what was fetched to be signed is gone again"


def private(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


WRONG_KEYS = {
    "none": None,
    "no key": b"no key",
    "rsa": private(rsa.generate_private_key(65537, 2048)),
    "a curve of coins": private(ec.generate_private_key(ec.SECP256K1())),
    "ed25519": private(ed25519.Ed25519PrivateKey.generate()),
}


@pytest.mark.parametrize("kind", WRONG_KEYS)
def test_without_a_key_that_signs_nothing_is_published(registry: Registry, tmp_path: Path, kind: str) -> None:
    key, content = tmp_path / "team.pem", WRONG_KEYS[kind]
    if content is not None:
        key.write_bytes(content)
    with other_home(registry, tmp_path / "elsewhere", signing_key=key) as elsewhere:
        for ask in (elsewhere.versions.check_key, lambda: publish_version(elsewhere, tmp_path / "v1")):
            with pytest.raises(
                InvalidInput, match=r"signing_key .*team\.pem .*must be a PEM file of an elliptic curve"
            ):
                ask()
        assert elsewhere.versions.models() == []


def test_trust_is_given_by_people_alone_once_the_key_was_made(
    registry: Registry, registry_home: Path, published: Version, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A public key that somebody took away, or never put into a folder of theirs, does not come back by itself."""
    public = registry_home / "signing" / "trusted" / f"{published.signed_by}.pem"
    text = public.read_text()
    public.unlink()
    second = publish_version(registry, tmp_path / "v2")
    assert not public.exists()
    assert text.strip() in caplog.text, "who has to trust it can copy it from there"
    with pytest.raises(InvalidInput, match="is not trusted here"):
        registry.versions.fetch(second, tmp_path / "fetched")
    shared = tmp_path / "shared"
    shared.mkdir()
    with other_home(registry, tmp_path / "elsewhere", trusted_keys=shared) as elsewhere:
        publish_version(elsewhere, tmp_path / "v3")
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize("name", [".gitignore", ".github/hook.json"])
def test_what_a_signature_leaves_out_is_not_published(registry: Registry, tmp_path: Path, name: str) -> None:
    path = tmp_path / "v1" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(InvalidInput, match=r"\.git.* \(part of a git repository\)"):
        publish_version(registry, tmp_path / "v1")


def test_of_many_first_publications_one_makes_the_key(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.json").write_text("{}")
    names: set[str] = set()

    def sign(number: int) -> Callable[[], None]:
        signing = Signing(RegistrySettings(home=tmp_path / "elsewhere"), utc_now)
        return lambda: names.add(signing.sign(tmp_path / "files", tmp_path / f"{number}.sig"))

    threads = [threading.Thread(target=sign(number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 1
    assert [path.name for path in (tmp_path / "elsewhere" / "signing").iterdir()].count("key.pem") == 1
    assert len(list((tmp_path / "elsewhere" / "signing" / "trusted").iterdir())) == 1
