"""Certificates of a small authority, made around the time of a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding


def usage(*, signs: bool = False, certifies: bool = False) -> x509.KeyUsage:
    """What a key may do: sign data, or certificates."""
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
    )


SIGN = usage(signs=True)
ME = "release@example.org"


@dataclass(frozen=True)
class Holder:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


class Authority:
    """Makes certificates around the time of a clock."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock

    def root(self, name: str = "root", *more: x509.ExtensionType) -> Holder:
        return self._made(name, None, x509.BasicConstraints(ca=True, path_length=None), *more, days=3_650)

    def between(self, root: Holder) -> Holder:
        return self._made("between", root, x509.BasicConstraints(ca=True, path_length=0), days=1_000)

    def leaf(self, above: Holder, *more: x509.ExtensionType, days: int = 30, name: str = "release") -> Holder:
        named = x509.SubjectAlternativeName([x509.RFC822Name(ME)])
        return self._made(
            name, above, x509.BasicConstraints(ca=False, path_length=None), named, *(more or (SIGN,)), days=days
        )

    def _made(self, name: str, above: Holder | None, *extensions: x509.ExtensionType, days: int) -> Holder:
        key, now = ec.generate_private_key(ec.SECP256R1()), self._clock()
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(above.certificate.subject if above else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=days))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return Holder(builder.sign(above.key if above else key, SHA256()), key)
