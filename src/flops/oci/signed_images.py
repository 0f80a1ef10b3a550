"""Signatures in a registry: put beside an image, and found there again, by cosign's tag."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from flops.errors import BadImage, ImageNotFound, RegistryDigest
from flops.oci.blobs import sha256
from flops.oci.descriptor import MANIFEST
from flops.oci.signature import MOST, SIGNATURE, Signed, documents, signature_tag, signatures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flops.oci.client import RegistryClient
    from flops.oci.descriptor import Descriptor
    from flops.oci.signature import PublicKey, SigningKey

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
