"""Signatures of images as cosign has them: a small payload that names a digest, signed with ECDSA P-256 and SHA-256.

Payload and signature are a layer and its annotation in a manifest under the tag `sha256-HEX.sig` beside the image.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from flops.errors import BadImage, BadKey, ImageNotFound, RegistryDigest
from flops.oci.blobs import sha256
from flops.oci.descriptor import CONFIG, MANIFEST, Descriptor, canonical
from flops.oci.image import parse_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from flops.oci.client import RegistryClient


PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
_KIND = "cosign container image signature"
_ALGORITHM = ec.ECDSA(hashes.SHA256())
#: How the files of cosign's own encrypted keys begin.
_FOREIGN = (b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY", b"-----BEGIN ENCRYPTED COSIGN PRIVATE KEY")
_GENERATE = "openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out key.pem"
#: Bytes of a key's file and of a payload.
MOST = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A payload with its signature."""

    payload: bytes
    signature: str
    """Base64 of the DER encoding."""

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(
            media_type=PAYLOAD,
            digest=sha256(self.payload),
            size=len(self.payload),
            annotations={SIGNATURE: self.signature},
        )


class SigningKey:
    """A private key, for as long as a build lasts."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path, password: str | None) -> SigningKey:
        """PKCS#8 or SEC 1 in PEM, encrypted or not; BadKey for everything else, cosign's own format too."""
        data = _contents(path)
        if data.lstrip().startswith(_FOREIGN):
            raise BadKey(
                f"{path} is a key in cosign's own encrypted format, which is not read here",
                hint=f"use a PKCS#8 key in PEM, plain or with FLOPS_SIGN_PASSWORD: {_GENERATE}",
            )
        try:
            key = load_pem_private_key(data, password.encode() if password else None)
        except TypeError as error:  # a password where none is needed, or the other way round
            told = "is not encrypted, and FLOPS_SIGN_PASSWORD is set" if password else "is encrypted"
            hint = "unset FLOPS_SIGN_PASSWORD" if password else "set FLOPS_SIGN_PASSWORD to its password"
            raise BadKey(f"the key {path} {told}", hint=hint) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            told = " with this password" if password else ""
            raise BadKey(f"{path} can't be read as a private key{told}", hint=f"make one: {_GENERATE}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise BadKey(f"{path} is no key for ECDSA P-256", hint=f"make one: {_GENERATE}")
        return cls(key)

    @property
    def public(self) -> PublicKey:
        return PublicKey(self._key.public_key())

    def sign(self, name: str, digest: str) -> Signed:
        """Sign a digest, under the name of its repository (`HOST/PATH`, without a tag)."""
        payload = payload_of(name, digest)
        signature = self._key.sign(payload, _ALGORITHM)
        return Signed(payload=payload, signature=base64.b64encode(signature).decode())


class PublicKey:
    """What a signature is compared with."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """SubjectPublicKeyInfo in PEM, as openssl and cosign write it; BadKey."""
        data = _contents(path)
        if b"PRIVATE KEY-----" in data:
            raise BadKey(f"{path} is a private key", hint=f"give its public part: openssl pkey -in {path.name} -pubout")
        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise BadKey(f"{path} can't be read as a public key", hint="openssl pkey -in KEY -pubout") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise BadKey(f"{path} is no key for ECDSA P-256")
        return cls(key)

    def signed(self, signed: Signed, digest: str) -> bool:
        """Whether this key signed that payload, and the payload means this digest."""
        try:
            self._key.verify(base64.b64decode(signed.signature, validate=True), signed.payload, _ALGORITHM)
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return named_digest(signed.payload) == digest


def payload_of(name: str, digest: str) -> bytes:
    """The simple signing payload; the same name and digest give the same bytes."""
    critical = {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest}, "type": _KIND}
    return canonical({"critical": critical, "optional": None})


def named_digest(payload: bytes) -> str | None:
    """The digest that a payload speaks of; None where it is no such payload."""
    try:
        critical = json.loads(payload)["critical"]
        return str(critical["image"]["docker-manifest-digest"]) if critical["type"] == _KIND else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def signature_tag(digest: str) -> str:
    """Where cosign looks for the signatures of a digest."""
    return digest.replace(":", "-", 1) + ".sig"


def documents(layers: Sequence[Descriptor], subject: Descriptor) -> tuple[bytes, bytes]:
    """Config and manifest over payloads; the subject makes it a referrer too."""
    config = canonical(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": Descriptor(media_type=CONFIG, digest=sha256(config), size=len(config)).to_json(),
        "layers": [layer.to_json() for layer in layers],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
    }
    return config, canonical(manifest)


def signatures(manifest: bytes) -> tuple[Descriptor, ...]:
    """The payloads that a manifest of signatures names, each with its signature; BadImage."""
    layers = parse_manifest(manifest).layers
    for layer in layers:
        if layer.media_type == PAYLOAD and layer.size > MOST:
            raise BadImage(f"the payload of a signature has {layer.size} bytes")
    return tuple(layer for layer in layers if layer.media_type == PAYLOAD and SIGNATURE in layer.annotations)


def _contents(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST + 1)
    except OSError as error:
        raise BadKey(f"the key {path} can't be read: {error.strerror}", hint="name a PEM file") from error
    if len(data) > MOST:
        raise BadKey(f"{path} is too large for a key", hint="name a PEM file")
    return data


#: Signatures of one image that are looked at.
MOST_SIGNATURES = 100


def sign_image(client: RegistryClient, repository: str, subject: Descriptor, key: SigningKey) -> None:
    """Sign a digest, beside the signatures that others made; nothing to do where this key signed it. RegistryError."""
    tag = signature_tag(subject.digest)
    there = client.get_manifest(repository, tag)
    others = signatures(there.document) if there is not None else ()
    if any(key.public.signed(one, subject.digest) for one in _read(client, repository, others)):
        return
    signed = key.sign(f"{client.registry.host}/{repository}", subject.digest)
    _push(client, repository, signed.payload)
    config, manifest = documents([*others, signed.descriptor], subject)
    _push(client, repository, config)
    client.put_manifest(repository, tag, MANIFEST, manifest)


def signed_by(client: RegistryClient, repository: str, digest: str, key: PublicKey) -> bool:
    """Whether one of the signatures of this digest was made with the key; ImageNotFound where there are none at all."""
    there = client.get_manifest(repository, signature_tag(digest))
    if there is None:
        raise ImageNotFound(
            f"{client.registry.host}/{repository}@{digest} has no signatures", hint="sign it: flops build --sign KEY"
        )
    return any(key.signed(one, digest) for one in _read(client, repository, signatures(there.document)))


def _read(client: RegistryClient, repository: str, layers: tuple[Descriptor, ...]) -> Iterator[Signed]:
    for layer in layers[:MOST_SIGNATURES]:
        yield Signed(payload=_payload(client, repository, layer), signature=layer.annotations[SIGNATURE])


def _payload(client: RegistryClient, repository: str, layer: Descriptor) -> bytes:
    parts: list[bytes] = []

    def write(pieces: Iterator[bytes]) -> None:
        parts.clear()
        for piece in pieces:
            parts.append(piece)
            if sum(map(len, parts)) > min(layer.size, MOST):
                raise RegistryDigest(f"{layer.digest} is longer than its manifest says")

    client.fetch_blob(repository, layer.digest, write)
    if len(b"".join(parts)) != layer.size:
        raise BadImage(f"the payload {layer.digest} is shorter than its manifest says")
    return b"".join(parts)


def _push(client: RegistryClient, repository: str, data: bytes) -> None:
    client.push_blob(repository, sha256(data), len(data), lambda: io.BytesIO(data))
