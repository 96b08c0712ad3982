"""Signatures by a key of this machine: who holds it made them, and no byte has changed.

The key (ECDSA on P-256) is made at the first publication, in the home's `signing` folder; its public half joins the
`trusted` folder beside it, where every public key that may have signed a version lies. The database and MLflow hold no
key: whoever can write both still cannot make files that an engine loads.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import OWNER_ONLY, sync, write_atomically
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.signing.bundle import Claim, name_of, short, signer, verifier

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}  # that model-signing takes
_KEY = f"it must be a PEM file of an elliptic curve's private key ({', '.join(_CURVES.values())}), no passphrase"
_log = logging.getLogger(__name__)


def private_key(path: Path) -> Any:
    """The key in a file.

    Raises:
        InvalidInput: it cannot be read, or is none of those that model-signing takes.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except Exception as error:  # noqa: BLE001 (cryptography has many errors for what is no key)
        raise InvalidInput(f"signing_key {path} cannot be used: {short(error)}; {_KEY}") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise InvalidInput(f"signing_key {path} is a {type(key).__name__.removeprefix('_')}; {_KEY}")
    if key.curve.name not in _CURVES:
        raise InvalidInput(f"signing_key {path} lies on the curve {key.curve.name}; {_KEY}")
    return key


class KeySigning:
    """Signs with this machine's key, verifies by the keys that are trusted here."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._folder = settings.home / "signing"

    @property
    def trusted(self) -> Path:
        """The folder of the public keys (`*.pem`) whose signatures count."""
        return self._settings.trusted_keys or self._folder / "trusted"

    def check(self) -> None:
        """See that there is a key to sign with; the default one is made where it is missing.

        Raises:
            InvalidInput: it cannot be read, or is none of those that model-signing takes.
        """
        path = self._key()
        name, text = name_of(private_key(path).public_key())
        if not any(_name_in(known) == name for known in self.trusted.glob("*.pem")):
            _log.warning(
                "%s is not trusted here: versions signed with it are refused by whatever looks into %s, until this "
                "public key stands there as a .pem file:\n%s",
                path,
                self.trusted,
                text.decode().strip(),
            )

    def sign(self, folder: Path, signature: Path) -> None:
        """Write the signature of every file below a folder."""
        signer().use_elliptic_key_signer(private_key=self._key()).sign(folder, signature)

    def verify(self, folder: Path, signature: Path, claim: Claim, name: str) -> None:
        """Find out that the files are those somebody trusted here has signed.

        Raises:
            InvalidInput: nobody trusted here made the signature, or it is not of these files.
        """
        key = claim.key
        public = next((path for path in sorted(self.trusted.glob("*.pem")) if _name_in(path) == key), None)
        if public is None:
            raise InvalidInput(
                f"{name} was signed by key {key}, which is not trusted here; put its public key into {self.trusted}, "
                f"or sign the version anew on a machine whose key is: `tuneloop sign {name} --by YOU --reason WHY`"
            )
        try:
            verifier().use_elliptic_key_verifier(public_key=public).verify(folder, signature)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with a signature: these files do not verify)
            raise InvalidInput(
                f"{name}: its files are not what key {key} signed ({short(error)}); do not serve it: see who has "
                "written to the artifact store, and publish it again from the run that trained it"
            ) from None

    def _key(self) -> Path:
        if self._settings.signing_key is not None:
            return self._settings.signing_key
        key = self._folder / "key.pem"
        if not key.is_file():
            try:
                self._make(key)
            except OSError as error:
                raise InvalidInput(f"{key} cannot be made: {error}; make room for it, or set signing_key") from None
        return key

    def _make(self, key: Path) -> None:
        """Make the home's key, and trust it in the home; a folder that the settings name is somebody's to fill."""
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 (only where a key is made)
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        made = ec.generate_private_key(ec.SECP256R1())
        name, text = name_of(made.public_key())
        public = self._folder / "trusted" / f"{name}.pem"
        public.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(public, text)
        with tempfile.TemporaryDirectory(dir=key.parent, prefix=".key-") as scratch:
            whole = Path(scratch) / "key.pem"
            secret = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_atomically(whole, secret, mode=OWNER_ONLY)
            try:
                os.link(whole, key)  # unlike a rename, never over the key of another process that was first
            except FileExistsError:
                public.unlink()
                return
        sync(key.parent)


def _name_in(public: Path) -> str:
    """The name of the key in a public key's file; empty where it holds none."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        return name_of(load_pem_public_key(public.read_bytes()))[0]
    except Exception:  # noqa: BLE001 (cryptography has many errors for what is no key)
        return ""
