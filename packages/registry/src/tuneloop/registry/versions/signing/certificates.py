"""Signatures by a certificate that leads to a root of the team's: people come and go, the root stays.

model-signing verifies a chain as of the day its first certificate began to be valid, because a signature has no time
that could be trusted. So a certificate that has expired, and whose key may be anybody's by now, would count for ever;
here every certificate of the chain must also be valid now. Sign anew before one expires.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.signing.bundle import Claim, short, signer, verifier
from tuneloop.registry.versions.signing.keys import private_key


class CertificateSigning:
    """Signs with `signing_key` and `signing_certificate`, verifies by `trusted_roots` and `signing_identity`."""

    def __init__(self, settings: RegistrySettings, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._clock = clock

    def check(self) -> None:
        """See that what is signed here would be loaded under the same settings.

        Raises:
            InvalidInput: key and certificate cannot be used, do not belong together, or do not lead to a trusted root.
        """
        key_file, chain_file = self._own()
        key, chain = private_key(key_file), _certificates(chain_file, "signing_certificate")
        if chain[0].public_key() != key.public_key():
            raise InvalidInput(
                f"signing_certificate {chain_file} is not for signing_key {key_file}: put the certificate of that key "
                "first, and those above it after it"
            )
        try:
            self._check_chain(chain)
        except _NotTrusted as why:
            raise InvalidInput(
                f"signing_certificate {chain_file} would be refused by whoever loads: {why}; have another one made"
            ) from None

    def sign(self, folder: Path, signature: Path) -> None:
        """Write the signature of every file below a folder."""
        key, chain = self._own()
        config = signer().use_certificate_signer(private_key=key, signing_certificate=chain, certificate_chain=[chain])
        config.sign(folder, signature)

    def verify(self, folder: Path, signature: Path, claim: Claim, name: str) -> None:
        """Find out that the files are those that somebody has signed whom a trusted root certifies.

        Raises:
            InvalidInput: no trusted root certifies the signer now, or the signature is not of these files.
        """
        try:
            self._check_chain(claim.certificates)
        except _NotTrusted as why:
            raise InvalidInput(
                f"{name} was signed by {_subject(claim.certificates[0])}, which does not count here: {why}; sign the "
                f"version anew with one that does: `tuneloop sign {name} --by YOU --reason WHY`"
            ) from None
        try:
            verifier().use_certificate_verifier(certificate_chain=[self._roots()]).verify(folder, signature)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with a signature: these files do not verify)
            raise InvalidInput(
                f"{name}: its files are not what {_subject(claim.certificates[0])} signed ({short(error)}); do not "
                "serve it: see who has written to the artifact store, and publish it again from the run that trained it"
            ) from None

    def _own(self) -> tuple[Path, Path]:
        key, chain = self._settings.signing_key, self._settings.signing_certificate
        if key is None or chain is None:
            raise InvalidInput(
                "signing = 'certificate': to sign, [registry] needs signing_key and signing_certificate (PEM files)"
            )
        return key, chain

    def _roots(self) -> Path:
        assert self._settings.trusted_roots is not None, "the settings do not load without it"
        return self._settings.trusted_roots

    def _check_chain(self, chain: tuple[Any, ...]) -> None:
        """See that a chain leads to a trusted root now, that its first certificate may sign, and whose it is.

        Raises:
            _NotTrusted: it does not.
            InvalidInput: trusted_roots holds no certificates.
        """
        from OpenSSL import crypto  # noqa: PLC0415

        first, *above = (crypto.X509.from_cryptography(certificate) for certificate in chain)
        store = crypto.X509Store()
        for root in _certificates(self._roots(), "trusted_roots"):
            store.add_cert(crypto.X509.from_cryptography(root))
        store.set_time(self._clock())
        try:
            crypto.X509StoreContext(store, first, above).verify_certificate()
        except crypto.X509StoreContextError as error:
            raise _NotTrusted(f"by {self._roots()}, {error}") from None
        if not _may_sign(chain[0]):
            raise _NotTrusted("it is a certificate for something else (its key usage is not to sign code)")
        wanted, names = self._settings.signing_identity, sorted(set(_names(chain[0])))
        if wanted and wanted not in names:
            raise _NotTrusted(f"it is that of {', '.join(names) or 'nobody'}, and signing_identity is {wanted}")


class _NotTrusted(Exception):
    """Why a chain does not count."""


def _certificates(path: Path, setting: str) -> tuple[Any, ...]:
    from cryptography import x509  # noqa: PLC0415

    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{setting} {path} cannot be used: {short(error)}; it must be a PEM file") from None


def _may_sign(certificate: Any) -> bool:
    """Whether a certificate is one to sign with: that of a web server, by the same root, is not."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        return ExtendedKeyUsageOID.CODE_SIGNING in purposes
    except x509.ExtensionNotFound:
        pass
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature)
    except x509.ExtensionNotFound:
        return False


def _names(certificate: Any) -> Iterator[str]:
    """Whose a certificate is: mail addresses, URIs and host names it was made for, and its common name."""
    from cryptography import x509  # noqa: PLC0415

    try:
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for kind in (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName):
            yield from map(str, others.get_values_for_type(kind))
    except x509.ExtensionNotFound:
        pass
    yield from (str(name.value) for name in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME))


def _subject(certificate: Any) -> str:
    return f"the certificate of {certificate.subject.rfc4514_string() or 'nobody'}"
