"""Signatures of versions' files, by the OpenSSF's model-signing: who holds the key made them, and no byte has changed.

The key (ECDSA on P-256) is made at the first publication, in the home's `signing` folder; its public half joins the
`trusted` folder beside it, where every public key that may have signed a version lies. The database and MLflow hold no
key: whoever can write both still cannot make files that an engine loads.
"""

from __future__ import annotations

import json
import os
import tempfile
from base64 import b64decode
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import OWNER_ONLY, sync, write_atomically
from tuneloop.registry.settings import RegistrySettings

SIGNATURE = "model.sig"
_NAME_DIGITS = 12


class Signing:
    """Signs with this machine's key, verifies by the keys that are trusted here."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._folder = settings.home / "signing"

    @property
    def trusted(self) -> Path:
        """The folder of the public keys (`*.pem`) whose signatures count."""
        return self._settings.trusted_keys or self._folder / "trusted"

    @cached_property
    def _model_signing(self) -> Any:
        import model_signing  # noqa: PLC0415 (half a second, and a gateway never needs it)

        return model_signing

    def sign(self, folder: Path, signature: Path) -> str:
        """Write the signature of every file below a folder; returns the name of the key, as `verify` says it.

        Raises:
            InvalidInput: the key that the settings name cannot be read, or the default one cannot be made.
        """
        key = self._key()
        try:
            config = self._model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
            config.sign(folder, signature)
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInput(
                f"signing_key {key} cannot sign: {error}; it is an unencrypted PEM file of an elliptic curve's key"
            ) from None
        return key_of(signature)

    def verify(self, folder: Path, signature: Path | None, name: str) -> None:
        """Find out that the files are those somebody trusted here has signed.

        Args:
            folder: the files.
            signature: the signature file; None when the version has none.
            name: of the version, for the message.

        Raises:
            InvalidInput: there is no signature, nobody trusted here made it, or it is not of these files.
        """
        if signature is None:
            if self._settings.unsigned_versions == "refuse":
                raise InvalidInput(
                    f"{name} is not signed; sign it once you have looked at it: `tuneloop sign {name} --by YOU "
                    "--reason WHY`, or set unsigned_versions to accept"
                )
            return
        key = key_of(signature)
        public = next((path for path in sorted(self.trusted.glob("*.pem")) if _name_of(path) == key), None)
        if public is None:
            raise InvalidInput(
                f"{name} was signed by key {key}, which is not trusted here; put its public key into {self.trusted}, "
                f"or sign the version anew with a trusted one: `tuneloop sign {name} --by YOU --reason WHY`"
            )
        try:
            config = self._model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
            config.verify(folder, signature)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with a signature: these files do not verify)
            raise InvalidInput(
                f"{name}: its files are not what key {key} signed ({_short(error)}); do not serve it: see who has "
                "written to the artifact store, and publish it again from the run that trained it"
            ) from None

    def _key(self) -> Path:
        if self._settings.signing_key is not None:
            return self._settings.signing_key
        key = self._folder / "key.pem"
        try:
            if not key.is_file():
                self._make(key)
            self._trust(key)
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInput(f"{key} cannot be made or read: {error}; name a key in signing_key") from None
        return key

    @staticmethod
    def _make(key: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 (only where a key is made)
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        made = ec.generate_private_key(ec.SECP256R1())
        key.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=key.parent, prefix=".key-") as scratch:
            whole = Path(scratch) / "key.pem"
            text = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_atomically(whole, text, mode=OWNER_ONLY)
            try:
                os.link(whole, key)  # unlike a rename, never over the key of another process that was first
            except FileExistsError:
                return
        sync(key.parent)

    def _trust(self, key: Path) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        name, text = _name(load_pem_private_key(key.read_bytes(), None).public_key())
        path = self.trusted / f"{name}.pem"
        if not path.is_file():
            self.trusted.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)


def key_of(signature: Path) -> str:
    """The name of the key a signature says it was made with: the first hexadecimal digits of its public half's SHA-256.

    Raises:
        InvalidInput: it is no signature of model-signing, or made with no such key.
    """
    try:
        bundle = json.loads(signature.read_text(encoding="utf-8"))
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
        b64decode(bundle["dsseEnvelope"]["payload"])
        return str(hint)[:_NAME_DIGITS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{signature.name} is no signature by a key: {error!r}; sign the version anew") from None


def _name_of(public: Path) -> str:
    """The name of the key in a public key's file; empty where it holds none."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        return _name(load_pem_public_key(public.read_bytes()))[0]
    except (OSError, ValueError, TypeError):
        return ""


def _name(public: Any) -> tuple[str, bytes]:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    text = bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return sha256(text).hexdigest()[:_NAME_DIGITS], text


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
