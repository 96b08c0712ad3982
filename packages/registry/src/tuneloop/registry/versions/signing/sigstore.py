"""Signatures by Sigstore: an identity that an OpenID provider vouches for signs, and a public log keeps that it did.

No key is kept anywhere. Signing asks Sigstore's services over the network; verifying needs their roots, which are
fetched too unless `sigstore_trust` names a file of them. This module hands over to model-signing and does no more.
"""

from __future__ import annotations

from pathlib import Path

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.signing.bundle import Claim, short, signer, verifier

_IDENTITY = (
    "[registry] sigstore_token names a file with an identity token, or the machine has one of its own (a CI job, a "
    "workload of a cloud); `python -m sigstore get-identity-token` gets a person's"
)


class SigstoreSigning:
    """Signs with an identity token, verifies by `signing_identity` and `signing_issuer`."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings

    def check(self) -> None:
        """See that there is an identity to sign with; whether Sigstore takes it shows when it is asked.

        Raises:
            InvalidInput: there is none.
        """
        self._token()

    def sign(self, folder: Path, signature: Path) -> None:
        """Write the signature of every file below a folder.

        Raises:
            InvalidInput: there is no identity to sign with.
            Unavailable: Sigstore cannot be asked, or does not take the identity.
        """
        token = self._token()
        try:
            config = signer().use_sigstore_signer(identity_token=token, trust_config=self._settings.sigstore_trust)
            config.sign(folder, signature)
        except Exception as error:
            raise Unavailable(f"Sigstore has not signed: {short(error)}; {_IDENTITY}") from error

    def verify(self, folder: Path, signature: Path, claim: Claim, name: str) -> None:  # noqa: ARG002 (the identity counts, its key lives for minutes)
        """Find out that the files are those that the identity of the settings has signed.

        Raises:
            InvalidInput: another one signed, or the signature is not of these files.
            Unavailable: Sigstore's roots cannot be had.
        """
        identity, issuer = self._settings.signing_identity, self._settings.signing_issuer
        try:
            config = verifier().use_sigstore_verifier(
                identity=identity, oidc_issuer=issuer, trust_config=self._settings.sigstore_trust
            )
        except Exception as error:
            raise Unavailable(
                f"{name} cannot be verified: Sigstore's roots cannot be had ({short(error)}); sigstore_trust may name "
                "a file of them"
            ) from error
        try:
            config.verify(folder, signature)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with a signature: these files do not verify)
            raise InvalidInput(
                f"{name}: its files are not what {identity} signed, by {issuer} ({short(error)}); do not serve it: see "
                f"who signed it, and who has written to the artifact store, or sign it anew: `tuneloop sign {name} "
                "--by YOU --reason WHY`"
            ) from None

    def _token(self) -> str:
        """The identity token, read anew each time: it holds for minutes."""
        from sigstore.oidc import detect_credential  # noqa: PLC0415

        path = self._settings.sigstore_token
        try:
            token = detect_credential() if path is None else path.read_text(encoding="utf-8").strip()
        except Exception as error:  # noqa: BLE001 (each cloud's own way fails in its own)
            raise InvalidInput(
                f"signing = 'sigstore': no identity token can be had ({short(error)}); {_IDENTITY}"
            ) from None
        if not token:
            raise InvalidInput(f"signing = 'sigstore': there is no identity token; {_IDENTITY}")
        return token
