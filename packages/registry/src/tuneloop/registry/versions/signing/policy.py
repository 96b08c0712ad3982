"""Who signs here, and whose signatures count: one setting, `signing`, says both, so that engines load what is signed.

By a key of this machine, by a certificate that leads to a root of the team's, or by Sigstore. A signature of another
kind than the setting's does not count, however good it is: whoever may sign is decided in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.signing.bundle import Claim, claim_of
from tuneloop.registry.versions.signing.certificates import CertificateSigning
from tuneloop.registry.versions.signing.keys import KeySigning
from tuneloop.registry.versions.signing.sigstore import SigstoreSigning

SIGNATURE = "model.sig"
_KINDS = {"key": "a key", "certificate": "a certificate", "sigstore": "Sigstore"}


class _Way(Protocol):
    """One way to sign and to verify."""

    def check(self) -> None: ...

    def sign(self, folder: Path, signature: Path) -> None: ...

    def verify(self, folder: Path, signature: Path, claim: Claim, name: str) -> None: ...


class Signing:
    """Signs and verifies as the settings say."""

    def __init__(self, settings: RegistrySettings, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._way: _Way
        if settings.signing == "certificate":
            self._way = CertificateSigning(settings, clock)
        elif settings.signing == "sigstore":
            self._way = SigstoreSigning(settings)
        else:
            self._way = KeySigning(settings)

    def check_key(self) -> None:
        """See that there is something to sign with; the default key is made where it is missing.

        Raises:
            InvalidInput: there is not, or it is of no use.
        """
        self._way.check()

    def sign(self, folder: Path, signature: Path) -> str:
        """Write the signature of every file below a folder; returns the name of the key, as `verify` says it.

        Raises:
            InvalidInput: what the settings name cannot be used, or the default key cannot be made.
            Unavailable: Sigstore does not answer.
        """
        self._way.check()
        self._way.sign(folder, signature)
        return claim_of(signature).key

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
        claim, wanted = claim_of(signature), self._settings.signing
        if claim.kind != wanted:
            raise InvalidInput(
                f"{name} was signed by {_KINDS[claim.kind]}, and here only what {_KINDS[wanted]} signed is loaded "
                f"([registry] signing = {wanted!r}); sign it anew where that is the setting: `tuneloop sign {name} "
                "--by YOU --reason WHY`"
            )
        self._way.verify(folder, signature, claim, name)
