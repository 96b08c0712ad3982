"""Signatures by certificate: who is certified by the team's root signs, for as long as the certificate holds."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from registry.certified import ME, SIGN, Authority, Holder
from tests_support import Clock, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.signing.bundle import claim_of
from tuneloop.registry.versions.signing.policy import Signing


@dataclass
class Team:
    """A root, one between, and somebody it lets sign; the files that somebody signs."""

    folder: Path
    clock: Clock
    authority: Authority
    root: Holder
    between: Holder

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def signature(self) -> Path:
        return self.folder / "model.sig"

    def settings(self, holder: Holder | None, root: Holder | None = None, **changes: Any) -> RegistrySettings:
        """Those of somebody with this certificate; None: who only verifies."""
        roots, chain, key = (self.folder / name for name in ("roots.pem", "chain.pem", "key.pem"))
        roots.write_bytes((root or self.root).pem())
        fields: dict[str, Any] = {"home": self.folder / "home", "signing": "certificate", "trusted_roots": roots}
        if holder is not None:
            chain.write_bytes(holder.pem() + self.between.pem())
            key.write_bytes(holder.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            fields |= {"signing_key": key, "signing_certificate": chain}
        return RegistrySettings(**fields | changes)

    def signing(self, holder: Holder | None, root: Holder | None = None, **changes: Any) -> Signing:
        """What somebody with this certificate signs and verifies by."""
        return Signing(self.settings(holder, root, **changes), self.clock)

    def verified_by(self, signing: Signing) -> None:
        signing.verify(self.files, self.signature, "bot@1")


@pytest.fixture
def team(tmp_path: Path, clock: Clock) -> Team:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"weights")
    authority = Authority(clock)
    root = authority.root()
    return Team(tmp_path, clock, authority, root, authority.between(root))


def test_what_a_certified_signer_signed_is_loaded_by_whoever_trusts_the_root(team: Team) -> None:
    leaf = team.authority.leaf(team.between)
    name = team.signing(leaf).sign(team.files, team.signature)
    assert (claim_of(team.signature).kind, name) == ("certificate", claim_of(team.signature).key)
    team.verified_by(team.signing(None))
    team.verified_by(team.signing(None, signing_identity=ME))
    team.verified_by(team.signing(None, signing_identity="release"))


def test_another_root_counts_for_nothing(team: Team) -> None:
    team.signing(team.authority.leaf(team.between)).sign(team.files, team.signature)
    other = team.authority.root()  # of the same name
    with pytest.raises(InvalidInput, match=r"bot@1 was signed by the certificate of CN=release, which does not count"):
        team.verified_by(team.signing(None, other))


def test_somebody_else_of_the_same_root_does_not_count_where_an_identity_is_asked_for(team: Team) -> None:
    team.signing(team.authority.leaf(team.between)).sign(team.files, team.signature)
    with pytest.raises(InvalidInput, match=rf"it is that of release, {ME}, and signing_identity is eve@example.org"):
        team.verified_by(team.signing(None, signing_identity="eve@example.org"))


def test_a_signature_counts_until_its_certificate_expires_and_one_that_has_expired_signs_nothing(team: Team) -> None:
    """model-signing alone would take it for ever: it looks at the chain as of the certificate's first day."""
    leaf = team.authority.leaf(team.between, days=30)
    signing = team.signing(leaf)
    signing.sign(team.files, team.signature)
    team.clock.advance(timedelta(days=29).total_seconds())
    team.verified_by(signing)
    team.clock.advance(timedelta(days=2).total_seconds())
    with pytest.raises(InvalidInput, match=r"bot@1 was signed by .*certificate has expired.*`tuneloop sign bot@1"):
        team.verified_by(signing)
    with pytest.raises(InvalidInput, match=r"signing_certificate .*certificate has expired"):
        signing.sign(team.files, team.folder / "again.sig")
    assert not (team.folder / "again.sig").exists()


@pytest.mark.parametrize("where", ["model.safetensors", "extra.json"])
def test_a_changed_byte_and_an_added_file_are_found(team: Team, where: str) -> None:
    signing = team.signing(team.authority.leaf(team.between))
    signing.sign(team.files, team.signature)
    (team.files / where).write_bytes(b"weighty")
    with pytest.raises(InvalidInput, match=rf"are not what the certificate of CN=release signed .*{where}"):
        team.verified_by(signing)


def test_a_good_chain_over_somebody_elses_signature_does_not_verify(team: Team) -> None:
    signing = team.signing(team.authority.leaf(team.between))
    signing.sign(team.files, team.signature)
    real = json.loads(team.signature.read_text())
    (team.files / "model.safetensors").write_bytes(b"swapped")
    team.signing(team.authority.leaf(team.between)).sign(team.files, team.signature)
    forged = json.loads(team.signature.read_text())
    team.signature.write_text(json.dumps(forged | {"verificationMaterial": real["verificationMaterial"]}))
    with pytest.raises(InvalidInput, match="are not what the certificate of CN=release signed"):
        team.verified_by(signing)


def of_a_web_server(team: Team) -> Holder:
    return team.authority.leaf(team.between, SIGN, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))


def without_a_purpose(team: Team) -> Holder:
    return team.authority.leaf(team.between, x509.SubjectKeyIdentifier(b"1"))


def by_who_may_certify_nobody(team: Team) -> Holder:
    return team.authority.leaf(team.authority.leaf(team.between))


def of_another_key(team: Team) -> Holder:
    return Holder(team.authority.leaf(team.between).certificate, team.root.key)


REFUSED: list[tuple[Callable[[Team], Holder], str]] = [
    (of_a_web_server, "would be refused by whoever loads: it is a certificate for something else"),
    (without_a_purpose, "would be refused by whoever loads: it is a certificate for something else"),
    (by_who_may_certify_nobody, "would be refused by whoever loads: by .*roots.pem"),
    (of_another_key, "is not for signing_key"),
]


@pytest.mark.parametrize(("made", "told"), REFUSED, ids=[made.__name__ for made, _ in REFUSED])
def test_a_certificate_that_nobody_would_accept_signs_nothing(
    team: Team, made: Callable[[Team], Holder], told: str
) -> None:
    signing = team.signing(made(team))
    for ask in (signing.check_key, lambda: signing.sign(team.files, team.signature)):
        with pytest.raises(InvalidInput, match=told):
            ask()
    assert not team.signature.exists()


@pytest.mark.parametrize("made", [of_a_web_server, by_who_may_certify_nobody])
def test_nor_does_a_signature_that_was_made_elsewhere_with_one(team: Team, made: Callable[[Team], Holder]) -> None:
    """The signature is a good one; its chain is put in place of that of the signer."""
    holder = made(team)
    team.signing(team.authority.leaf(team.between)).sign(team.files, team.signature)
    bundle = json.loads(team.signature.read_text())
    chain = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]
    chain[0]["rawBytes"] = b64encode(holder.certificate.public_bytes(Encoding.DER)).decode()
    team.signature.write_text(json.dumps(bundle))
    with pytest.raises(InvalidInput, match="which does not count here"):
        team.verified_by(team.signing(None))


def test_a_signature_of_another_kind_does_not_count_either_way(team: Team) -> None:
    by_key = Signing(RegistrySettings(home=team.folder / "home"), team.clock)
    by_certificate = team.signing(team.authority.leaf(team.between))
    by_key.sign(team.files, team.signature)
    with pytest.raises(InvalidInput, match=r"bot@1 was signed by a key, and here only what a certificate signed"):
        team.verified_by(by_certificate)
    by_certificate.sign(team.files, team.signature)
    with pytest.raises(InvalidInput, match=r"bot@1 was signed by a certificate, and here only what a key signed"):
        team.verified_by(by_key)


def test_settings_that_cannot_work_are_named(team: Team, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="signing = 'certificate' needs trusted_roots"):
        RegistrySettings.load(home=tmp_path, signing="certificate")
    with pytest.raises(InvalidInput, match="needs signing_key and signing_certificate"):
        team.signing(None).check_key()
    signing = team.signing(team.authority.leaf(team.between))
    (team.folder / "roots.pem").write_text("no certificate")
    with pytest.raises(InvalidInput, match=r"trusted_roots .*roots.pem cannot be used"):
        signing.check_key()


def test_versions_signed_by_a_key_are_signed_anew_by_certificate_and_then_loaded_by_the_new_policy(
    team: Team, registry: Registry, tmp_path: Path
) -> None:
    by_key = publish_version(registry, tmp_path / "v1")
    signer = team.settings(team.authority.leaf(team.between), home=registry.settings.home)
    engine = team.settings(None, home=registry.settings.home, signing_identity=ME)
    with Registry.open(engine, clock=team.clock) as loading, Registry.open(signer, clock=team.clock) as publishing:
        with pytest.raises(InvalidInput, match="bot@1 was signed by a key, and here only what a certificate signed"):
            loading.versions.fetch(by_key, tmp_path / "fetched")
        signed = publishing.versions.sign(by_key)
        assert loading.versions.fetch(signed, tmp_path / "fetched").is_dir()
        published = publish_version(publishing, tmp_path / "v2")
        assert published.signed_by == signed.signed_by
        assert loading.versions.fetch(published, tmp_path / "fetched").is_dir()
        with pytest.raises(InvalidInput, match="signed by a certificate, and here only what a key signed is loaded"):
            registry.versions.fetch(published, tmp_path / "fetched")
