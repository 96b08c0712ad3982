"""Signatures by Sigstore, through its own client and a real instance: who may sign, what is then loaded, what fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.small_sigstore import SmallSigstore, new_key, small_sigstore
from tests_support import publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.nouns import utc_now
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.signing.bundle import claim_of
from tuneloop.registry.versions.signing.policy import Signing

ME = "release@example.org"


@dataclass
class Signer:
    """Somebody who signs files by an instance, and what whoever loads them goes by."""

    folder: Path
    services: SmallSigstore

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def signature(self) -> Path:
        return self.folder / "model.sig"

    def settings(self, token: str | None = None, **changes: Any) -> RegistrySettings:
        """With this token, by default one of `ME`."""
        trust, path = self.folder / "trust.json", self.folder / "token"
        trust.write_text(json.dumps(self.services.trust()))
        path.write_text(f"{self.services.token(ME) if token is None else token}\n")
        fields: dict[str, Any] = {"home": self.folder / "home", "signing": "sigstore", "sigstore_token": path}
        of = {"sigstore_trust": trust, "signing_identity": ME, "signing_issuer": self.services.issuer}
        return RegistrySettings(**fields | of | changes)

    def signing(self, token: str | None = None, **changes: Any) -> Signing:
        return Signing(self.settings(token, **changes), utc_now)

    def verified_by(self, signing: Signing) -> None:
        signing.verify(self.files, self.signature, "bot@1")


@pytest.fixture
def services() -> Iterator[SmallSigstore]:
    with small_sigstore() as started:
        yield started


@pytest.fixture
def signer(tmp_path: Path, services: SmallSigstore) -> Signer:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"weights")
    return Signer(tmp_path, services)


def test_whose_signatures_count_must_be_said(tmp_path: Path) -> None:
    who = {"signing_identity": ME, "signing_issuer": "https://accounts.example.org"}
    for left_out in who:
        with pytest.raises(InvalidInput, match="signing = 'sigstore' needs signing_identity and signing_issuer"):
            RegistrySettings.load(home=tmp_path, signing="sigstore", **{k: v for k, v in who.items() if k != left_out})


def test_without_an_identity_nothing_is_begun(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"no identity token can be had \(FileNotFoundError.*get-identity-token"):
        signer.signing(sigstore_token=signer.folder / "none").check_key()
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    with pytest.raises(InvalidInput, match="there is no identity token"):
        signer.signing(sigstore_token=None).check_key()
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: "of the machine")
    signer.signing(sigstore_token=None).check_key()


def test_what_an_identity_signed_is_loaded_by_whoever_asks_for_it_even_when_the_services_are_gone(
    tmp_path: Path,
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"weights")
    with small_sigstore() as services:
        signer = Signer(tmp_path, services)
        signing = signer.signing()
        name = signing.sign(signer.files, signer.signature)
        assert (claim_of(signer.signature).kind, name) == ("sigstore", claim_of(signer.signature).key)
        assert len(services.entries) == 1, "the log has it"
    signer.verified_by(signing)
    with pytest.raises(Unavailable, match="Sigstore has not signed: NetworkError"):
        signing.sign(signer.files, signer.folder / "again.sig")
    assert not (signer.folder / "again.sig").exists()


def test_each_of_many_signatures_is_proven_in_the_log_as_it_was_then(signer: Signer) -> None:
    signing = signer.signing()
    for number in range(6):
        (signer.files / "model.safetensors").write_bytes(b"weights" * number)
        signing.sign(signer.files, signer.folder / f"{number}.sig")
    for number in range(6):
        (signer.files / "model.safetensors").write_bytes(b"weights" * number)
        signing.verify(signer.files, signer.folder / f"{number}.sig", "bot@1")
        with pytest.raises(InvalidInput, match=f"bot@1: its files are not what {ME} signed"):
            signing.verify(signer.files, signer.folder / f"{(number + 1) % 6}.sig", "bot@1")


@pytest.mark.parametrize("where", ["model.safetensors", "extra.json"])
def test_a_changed_byte_and_an_added_file_are_found(signer: Signer, where: str) -> None:
    signing = signer.signing()
    signing.sign(signer.files, signer.signature)
    (signer.files / where).write_bytes(b"weighty")
    with pytest.raises(InvalidInput, match=rf"bot@1: its files are not what {ME} signed, by http.*{where}"):
        signer.verified_by(signing)


def test_somebody_else_and_another_provider_do_not_count(signer: Signer) -> None:
    signer.signing(signer.services.token("eve@example.org")).sign(signer.files, signer.signature)
    with pytest.raises(InvalidInput, match=f"are not what {ME} signed"):
        signer.verified_by(signer.signing())
    signer.verified_by(signer.signing(signing_identity="eve@example.org"))
    with pytest.raises(InvalidInput, match=r"are not what eve@example.org signed, by https://elsewhere"):
        signer.verified_by(signer.signing(signing_identity="eve@example.org", signing_issuer="https://elsewhere"))


def forged(services: SmallSigstore) -> str:
    return services.token(ME, key=new_key())


def of_another_provider(services: SmallSigstore) -> str:
    return services.token(ME, issuer="https://elsewhere")


def expired(services: SmallSigstore) -> str:
    return services.token(ME, lives=timedelta(minutes=-1))


def no_token(_services: SmallSigstore) -> str:
    return "a.b.c"


@pytest.mark.parametrize("made", [forged, of_another_provider, expired, no_token])
def test_a_token_that_proves_nothing_signs_nothing(
    signer: Signer, services: SmallSigstore, made: Callable[[SmallSigstore], str]
) -> None:
    with pytest.raises(Unavailable, match=r"Sigstore has not signed: .*sigstore_token names a file"):
        signer.signing(made(services)).sign(signer.files, signer.signature)
    assert not signer.signature.exists()
    assert not services.entries


def test_the_token_is_read_each_time_since_it_holds_for_minutes(signer: Signer, services: SmallSigstore) -> None:
    signing = signer.signing(expired(services))
    with pytest.raises(Unavailable, match="Sigstore has not signed"):
        signing.sign(signer.files, signer.signature)
    (signer.folder / "token").write_text(services.token(ME))
    signing.sign(signer.files, signer.signature)
    signer.verified_by(signing)


def test_an_instance_that_is_not_trusted_counts_for_nothing(signer: Signer) -> None:
    signer.signing().sign(signer.files, signer.signature)
    with small_sigstore() as other:
        (signer.folder / "other.json").write_text(json.dumps(other.trust()))
        with pytest.raises(InvalidInput, match=f"are not what {ME} signed"):
            signer.verified_by(signer.signing(sigstore_trust=signer.folder / "other.json"))


def test_roots_that_cannot_be_had_are_told_from_a_signature_that_is_wrong(signer: Signer) -> None:
    signing = signer.signing()
    signing.sign(signer.files, signer.signature)
    (signer.folder / "trust.json").write_text("{}")
    with pytest.raises(Unavailable, match="bot@1 cannot be verified: Sigstore's roots cannot be had"):
        signer.verified_by(signing)


Change = Callable[[dict[str, Any], dict[str, Any]], None]


def without_its_entry(bundle: dict[str, Any], _other: dict[str, Any]) -> None:
    bundle["verificationMaterial"]["tlogEntries"] = []


def with_the_entry_of_another(bundle: dict[str, Any], other: dict[str, Any]) -> None:
    bundle["verificationMaterial"]["tlogEntries"] = other["verificationMaterial"]["tlogEntries"]


def with_the_certificate_of_another(bundle: dict[str, Any], other: dict[str, Any]) -> None:
    bundle["verificationMaterial"]["certificate"] = other["verificationMaterial"]["certificate"]


def logged_when_its_certificate_had_expired(bundle: dict[str, Any], _other: dict[str, Any]) -> None:
    [entry] = bundle["verificationMaterial"]["tlogEntries"]
    entry["integratedTime"] = str(int(entry["integratedTime"]) + 86_400)


def with_the_proof_of_another(bundle: dict[str, Any], other: dict[str, Any]) -> None:
    [entry], [of] = (some["verificationMaterial"]["tlogEntries"] for some in (bundle, other))
    entry["inclusionProof"] = of["inclusionProof"]


@pytest.mark.parametrize(
    "change",
    [
        without_its_entry,
        with_the_entry_of_another,
        with_the_certificate_of_another,
        logged_when_its_certificate_had_expired,
        with_the_proof_of_another,
    ],
)
def test_a_signature_that_is_put_together_is_refused(signer: Signer, change: Change) -> None:
    signing, other = signer.signing(), signer.folder / "other.sig"
    signing.sign(signer.files, other)
    signing.sign(signer.files, signer.signature)
    bundle = json.loads(signer.signature.read_text())
    change(bundle, json.loads(other.read_text()))
    signer.signature.write_text(json.dumps(bundle))
    with pytest.raises(InvalidInput, match=f"are not what {ME} signed"):
        signer.verified_by(signing)


def test_versions_signed_by_a_key_are_signed_anew_by_sigstore_and_then_loaded_by_the_new_policy(
    signer: Signer, registry: Registry, tmp_path: Path
) -> None:
    by_key = publish_version(registry, tmp_path / "v1")
    settings = signer.settings(home=registry.settings.home)
    with Registry.open(settings, clock=utc_now) as anew:
        with pytest.raises(InvalidInput, match="bot@1 was signed by a key, and here only what Sigstore signed"):
            anew.versions.fetch(by_key, tmp_path / "fetched")
        signed = anew.versions.sign(by_key)
        assert anew.versions.fetch(signed, tmp_path / "fetched").is_dir()
        published = publish_version(anew, tmp_path / "v2")
        assert anew.versions.fetch(published, tmp_path / "fetched").is_dir()
        with pytest.raises(InvalidInput, match="signed by Sigstore, and here only what a key signed is loaded"):
            registry.versions.fetch(published, tmp_path / "fetched")
