"""A Sigstore of our own: what an identity, its certificate and its log entry need to be true, over HTTP.

An OpenID provider signs tokens, a certificate authority takes them and writes each certificate into a transparency log
of certificates (RFC 6962), and a transparency log of signatures (Rekor's first API) proves each entry in its tree.
Each service checks what it is given, as the public ones do; sigstore's own client stands on the other side.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from registry.certified import SIGN, Authority, usage

LOGGED = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")  # signed certificate timestamps (RFC 6962)
ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # who vouched for the identity (Fulcio's)
STATEMENT = "application/vnd.in-toto+json"
ALWAYS = {"start": "2021-01-01T00:00:00Z"}

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def public(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signed(key: Key, said: bytes) -> bytes:
    return key.sign(said, ec.ECDSA(SHA256()))


class Refused(Exception):
    """What a service does not take."""


class SmallSigstore:
    """The services, with their keys. `url` is where they answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.issuer = f"{url}/provider"
        self._provider, self._certificates, self._signatures = new_key(), new_key(), new_key()
        self._root = Authority(lambda: datetime.now(UTC)).root("sigstore", usage(certifies=True))
        self.entries: list[bytes] = []  # of the log of signatures

    def token(self, identity: str, issuer: str = "", key: Key | None = None, lives: timedelta = timedelta(1)) -> str:
        """What the provider says of somebody who has proven who they are, or what a forger's key says."""
        now = datetime.now(UTC)
        said = {"aud": "sigstore", "sub": identity, "email": identity, "iat": now, "exp": now + lives}
        return jwt.encode(said | {"iss": issuer or self.issuer}, key or self._provider, algorithm="ES256")

    def trust(self) -> dict[str, Any]:
        """The instance, described for a client: `sigstore_trust`."""

        def service(path: str = "") -> list[dict[str, Any]]:
            return [{"url": self.url + path, "majorApiVersion": 1, "validFor": ALWAYS, "operator": "us"}]

        def log(key: Key, path: str) -> dict[str, Any]:
            raw = public(key)
            shown = {"rawBytes": text(raw), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": ALWAYS}
            of = {"baseUrl": self.url + path, "hashAlgorithm": "SHA2_256", "publicKey": shown}
            return of | {"logId": {"keyId": text(sha256(raw).digest())}}

        chain = [{"rawBytes": text(self._root.certificate.public_bytes(Encoding.DER))}]
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self._signatures, "")],
                "certificateAuthorities": [
                    {"uri": self.url, "certChain": {"certificates": chain}, "validFor": ALWAYS}
                    | {"subject": {"organization": "us", "commonName": "sigstore"}}
                ],
                "ctlogs": [log(self._certificates, "/certificates")],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": service(),
                "oidcUrls": service("/provider"),
                "rekorTlogUrls": service(),
                "tsaUrls": [],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaConfig": {"selector": "ANY"},
            },
        }

    def answer(self, method: str, path: str, authorization: str, body: bytes) -> dict[str, Any]:
        """What the service at `path` answers; `Refused` where it does not take what it is given."""
        if method == "GET" and path == "/provider/.well-known/openid-configuration":
            ends = ("authorization_endpoint", "token_endpoint")
            return {"issuer": self.issuer} | {end: f"{self.issuer}/{end}" for end in ends}
        if method == "POST" and path == "/api/v2/signingCert":
            request = x509.load_pem_x509_csr(b64decode(json.loads(body)["certificateSigningRequest"]))
            issued = self._issued(request, authorization.removeprefix("Bearer "))
            chain = [holder.public_bytes(Encoding.PEM).decode() for holder in (issued, self._root.certificate)]
            return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}
        if method == "POST" and path == "/api/v1/log/entries":
            return self._written(json.loads(body)["spec"]["proposedContent"])
        raise Refused(f"nothing answers {method} {path}")

    def _issued(self, request: x509.CertificateSigningRequest, token: str) -> x509.Certificate:
        """A certificate of ten minutes for whom the provider vouches for, and for the key of the request."""
        try:
            claims = jwt.decode(token, self._provider.public_key(), ["ES256"], audience="sigstore", issuer=self.issuer)
        except jwt.PyJWTError as error:
            raise Refused(f"the token is not the provider's: {error}") from error
        if not request.is_signature_valid:
            raise Refused("the request is not signed by its key")
        key, now = request.public_key(), datetime.now(UTC)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._root.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(SIGN, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._root.key.public_key()), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(claims["email"])]), critical=True)
            .add_extension(x509.UnrecognizedExtension(ISSUER, claims["iss"].encode()), critical=False)
        )
        before = builder.sign(self._root.key, SHA256())
        stamp = self._stamp(before.tbs_certificate_bytes, now)
        return builder.add_extension(x509.UnrecognizedExtension(LOGGED, stamp), critical=False).sign(
            self._root.key, SHA256()
        )

    def _stamp(self, certificate: bytes, at: datetime) -> bytes:
        """The log's promise that it has the certificate: a list of one timestamp, in DER (RFC 6962, 3.2 and 3.3)."""
        when, entry_of_a_precertificate = int(at.timestamp() * 1_000), 1
        of = sha256(public(self._root.key)).digest() + len(certificate).to_bytes(3) + certificate
        said = struct.pack("!BBQH", 0, 0, when, entry_of_a_precertificate) + of + struct.pack("!H", 0)
        sha256_by_ecdsa, signature = b"\x04\x03", signed(self._certificates, said)
        stamp = struct.pack("!B32sQH", 0, sha256(public(self._certificates)).digest(), when, 0)
        stamp += sha256_by_ecdsa + with_length(signature)
        return b"\x04" + der_length(len(stamp) + 4) + with_length(with_length(stamp))

    def _written(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """The entry of an envelope that its certificate's key has signed, with the proof that it is in the tree."""
        envelope, [verifier] = json.loads(proposed["envelope"]), proposed["verifiers"]
        payload, [signature] = b64decode(envelope["payload"]), envelope["signatures"]
        key = x509.load_pem_x509_certificate(b64decode(verifier)).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        kind = envelope["payloadType"].encode()
        said = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
        key.verify(b64decode(signature["sig"]), said, ec.ECDSA(SHA256()))
        spec: dict[str, Any] = {
            "envelopeHash": {"algorithm": "sha256", "value": sha256(proposed["envelope"].encode()).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": sha256(payload).hexdigest()},
            "signatures": [{"signature": signature["sig"], "verifier": verifier}],
        }
        body = rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        index, at = len(self.entries), int(datetime.now(UTC).timestamp())
        self.entries.append(body)
        log_id = sha256(public(self._signatures)).digest()
        entry: dict[str, Any] = {"body": text(body), "integratedTime": at, "logID": log_id.hex(), "logIndex": index}
        root, path = tree(self.entries), proof(self.entries, index)
        head = f"us\n{len(self.entries)}\n{text(root)}\n"
        head_signed = text(log_id[:4] + signed(self._signatures, head.encode()))
        inclusion = {
            "logIndex": index,
            "rootHash": root.hex(),
            "treeSize": len(self.entries),
            "hashes": [node.hex() for node in path],
            "checkpoint": f"{head}\n\N{EM DASH} us {head_signed}\n",
        }
        promise = text(signed(self._signatures, rfc8785.dumps(entry)))
        return {
            sha256(body).hexdigest(): entry
            | {"verification": {"inclusionProof": inclusion, "signedEntryTimestamp": promise}}
        }


def tree(leaves: Sequence[bytes]) -> bytes:
    """The root over leaves (RFC 6962, 2.1)."""
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    half = split(len(leaves))
    return sha256(b"\x01" + tree(leaves[:half]) + tree(leaves[half:])).digest()


def proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The nodes that lead from a leaf to the root, from below (RFC 6962, 2.1.1)."""
    if len(leaves) == 1:
        return []
    half = split(len(leaves))
    if index < half:
        return [*proof(leaves[:half], index), tree(leaves[half:])]
    return [*proof(leaves[half:], index - half), tree(leaves[:half])]


def split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def text(raw: bytes) -> str:
    return b64encode(raw).decode()


def with_length(raw: bytes) -> bytes:
    return len(raw).to_bytes(2) + raw


def der_length(length: int) -> bytes:
    return bytes([length]) if length < 128 else b"\x81" + bytes([length])


@contextmanager
def small_sigstore() -> Iterator[SmallSigstore]:
    """The services on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                status, said = 200, services.answer(self.command, self.path, self.headers["authorization"] or "", body)
            except Refused as error:
                status, said = 400, {"code": 400, "message": str(error)}
            raw = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST  # noqa: N815 (their names there)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    services = SmallSigstore(f"http://127.0.0.1:{server.server_address[1]}")
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield services
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
