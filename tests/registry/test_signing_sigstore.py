"""Signatures by Sigstore, as far as they go without a Sigstore: what model-signing is asked for, and what fails.

The services themselves are not here: no identity is certified and no log written to. The library is the real one,
against an instance that does not answer; where a signature has to come about, a key makes it in Sigstore's place.
"""

from __future__ import annotations

import json
from base64 import b64encode
from importlib.resources import files
from pathlib import Path
from typing import Any

import model_signing.signing
import model_signing.verifying
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from registry.certified import Authority
from tests_support import free_port
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.nouns import utc_now
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.signing.bundle import claim_of
from tuneloop.registry.versions.signing.policy import Signing

WHO = {"signing_identity": "release@example.org", "signing_issuer": "https://accounts.example.org"}


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    """An instance with the public one's roots, as the library ships them, whose services do not answer."""
    [shipped] = [entry for entry in files("sigstore._store").iterdir() if entry.name.endswith("sigstore.dev")]
    services = json.loads(shipped.joinpath("signing_config.v0.2.json").read_text())
    for urls in (value for key, value in services.items() if key.endswith("Urls")):
        for entry in urls:
            entry["url"] = f"http://127.0.0.1:{free_port()}"
    said = {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": json.loads(shipped.joinpath("trusted_root.json").read_text()),
        "signingConfig": services,
    }
    path = tmp_path / "trust.json"
    path.write_text(json.dumps(said))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def signing(tmp_path: Path, **changes: Any) -> Signing:
    token = tmp_path / "token"
    token.write_text("a.b.c\n")
    fields: dict[str, Any] = {"home": tmp_path / "home", "signing": "sigstore", "sigstore_token": token}
    return Signing(RegistrySettings(**fields | WHO | changes), utc_now)


def test_whose_signatures_count_must_be_said(tmp_path: Path) -> None:
    for left_out in WHO:
        with pytest.raises(InvalidInput, match="signing = 'sigstore' needs signing_identity and signing_issuer"):
            RegistrySettings.load(home=tmp_path, signing="sigstore", **{k: v for k, v in WHO.items() if k != left_out})


def test_without_an_identity_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"no identity token can be had \(FileNotFoundError.*get-identity-token"):
        signing(tmp_path, sigstore_token=tmp_path / "none").check_key()
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    with pytest.raises(InvalidInput, match="there is no identity token"):
        signing(tmp_path, sigstore_token=None).check_key()
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: "of the machine")
    signing(tmp_path, sigstore_token=None).check_key()


def test_a_sigstore_that_does_not_answer_is_said_not_to_and_nothing_is_signed(
    tmp_path: Path, trust: Path, model: Path
) -> None:
    with pytest.raises(Unavailable, match="Sigstore has not signed: NetworkError"):
        signing(tmp_path, sigstore_trust=trust).sign(model, tmp_path / "model.sig")
    assert not (tmp_path / "model.sig").exists()


def test_roots_that_cannot_be_had_are_told_from_a_signature_that_is_wrong(
    tmp_path: Path, trust: Path, model: Path
) -> None:
    """The signature is one that Sigstore never saw: its log entry is missing, and the real verifier says no."""
    made = signature_of_nobody(tmp_path)
    assert claim_of(made).kind == "sigstore"
    with pytest.raises(InvalidInput, match=r"bot@1: its files are not what release@example.org signed, by https"):
        signing(tmp_path, sigstore_trust=trust).verify(model, made, "bot@1")
    trust.write_text("{}")
    with pytest.raises(Unavailable, match="bot@1 cannot be verified: Sigstore's roots cannot be had"):
        signing(tmp_path, sigstore_trust=trust).verify(model, made, "bot@1")


def test_the_library_is_asked_with_the_token_the_identity_and_the_instance_of_the_settings(
    tmp_path: Path, trust: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    key = tmp_path / "key" / "signing" / "key.pem"
    Signing(RegistrySettings(home=tmp_path / "key"), utc_now).check_key()

    def use_signer(config: model_signing.signing.Config, **said: Any) -> model_signing.signing.Config:
        asked["sign"] = said
        return config.use_elliptic_key_signer(private_key=key)

    class Verifier:
        def __init__(self, **said: Any) -> None:
            asked["verify"] = said

        def verify(self, *files: Path) -> None:
            asked["files"] = files

    monkeypatch.setattr(model_signing.signing.Config, "use_sigstore_signer", use_signer)
    monkeypatch.setattr(model_signing.verifying.Config, "use_sigstore_verifier", lambda _, **said: Verifier(**said))
    asking, signature = signing(tmp_path, sigstore_trust=trust), tmp_path / "model.sig"
    asking.sign(model, signature)
    assert asked["sign"] == {"identity_token": "a.b.c", "trust_config": trust}
    with pytest.raises(InvalidInput, match="bot@1 was signed by a key, and here only what Sigstore signed is loaded"):
        asking.verify(model, signature, "bot@1")
    (tmp_path / "token").write_text("d.e.f")
    asking.sign(model, signature)
    assert asked["sign"]["identity_token"] == "d.e.f", "it holds for minutes, so it is read each time"
    assert "verify" not in asked
    nobodys = signature_of_nobody(tmp_path)
    asking.verify(model, nobodys, "bot@1")
    assert asked["verify"] == {
        "identity": WHO["signing_identity"],
        "oidc_issuer": WHO["signing_issuer"],
        "trust_config": trust,
    }
    assert asked["files"] == (model, nobodys)


def signature_of_nobody(tmp_path: Path) -> Path:
    """In the form of Sigstore's, by a certificate of nobody's, and in no log."""
    certificate = Authority(utc_now).root().certificate
    raw = b64encode(certificate.public_bytes(Encoding.DER)).decode()
    said = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"certificate": {"rawBytes": raw}, "tlogEntries": []},
        "dsseEnvelope": {"payload": "", "payloadType": "application/vnd.in-toto+json", "signatures": [{"sig": ""}]},
    }
    path = tmp_path / "nobody.sig"
    path.write_text(json.dumps(said))
    return path
