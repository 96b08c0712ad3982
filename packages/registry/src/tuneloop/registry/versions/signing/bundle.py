"""Signature files, and the library that makes and verifies them.

Before it is verified a file is asked by what it says it was made, and with which key. It is a Sigstore bundle, whoever
made it. Nothing of it is trusted: it only says what to verify it by.
"""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from tuneloop.registry.errors import InvalidInput

Kind = Literal["key", "certificate", "sigstore"]
_NAME_DIGITS = 12


@dataclass(frozen=True)
class Claim:
    """What a signature says of itself."""

    kind: Kind
    key: str  # the name of the key that made it; of a certificate, the one it is for
    certificates: tuple[Any, ...] = ()  # the signer's first, then those above it


def claim_of(signature: Path) -> Claim:
    """What a signature says of itself.

    Raises:
        InvalidInput: it is no signature of model-signing.
    """
    from cryptography import x509  # noqa: PLC0415 (a gateway never needs it)

    try:
        material = json.loads(signature.read_text(encoding="utf-8"))["verificationMaterial"]
        if "publicKey" in material:
            return Claim("key", str(material["publicKey"]["hint"])[:_NAME_DIGITS])
        one = material.get("certificate")
        raw = [one] if one else material["x509CertificateChain"]["certificates"]
        chain = tuple(x509.load_der_x509_certificate(b64decode(found["rawBytes"], validate=True)) for found in raw)
        logged = bool(material.get("tlogEntries"))  # in Sigstore's transparency log
        return Claim("sigstore" if one or logged else "certificate", name_of(chain[0].public_key())[0], chain)
    except Exception as error:  # noqa: BLE001 (cryptography has many errors for what is no certificate)
        raise InvalidInput(f"{signature.name} is no signature by a key: {error!r}; sign the version anew") from None


def name_of(public: Any) -> tuple[str, bytes]:
    """A public key's name, the first hexadecimal digits of its PEM text's SHA-256, and that text."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    text = bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return sha256(text).hexdigest()[:_NAME_DIGITS], text


def signer() -> Any:
    """How model-signing is told what to sign with."""
    from model_signing import signing  # noqa: PLC0415 (half a second, and a gateway never needs it)

    made: Any = signing.Config
    return made()


def verifier() -> Any:
    """How model-signing is told what to verify by."""
    from model_signing import verifying  # noqa: PLC0415

    made: Any = verifying.Config
    return made()


def short(error: Exception) -> str:
    """What an error of a library says, in one line's length."""
    return f"{type(error).__name__}: {error}"[:300]
