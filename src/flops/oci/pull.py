"""Images out of a registry: the documents of an index, and one platform's image into a store."""

from __future__ import annotations

import gzip
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard
from isal import igzip, isal_zlib

from flops.errors import BadImage, ImageNotFound, RegistryDigest
from flops.oci.descriptor import DOCKER_INDEX, INDEX, Descriptor
from flops.oci.image import parse_config, parse_index, parse_manifest
from flops.oci.layer import GZIP, ZSTD, Layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flops.oci.blobs import BlobStore
    from flops.oci.content_client import ContentClient
    from flops.oci.image import ParsedConfig
    from flops.oci.manifests import Manifest
    from flops.oci.reference import Reference
    from flops.platforms import Platform

TAR = "application/vnd.oci.image.layer.v1.tar"
_PIECE = 1024 * 1024
#: What the decompressors say of bytes that they can't read.
_BROKEN: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, isal_zlib.error, zstandard.ZstdError)  # type: ignore[assignment]
#: Documents are small; nobody needs a config of more.
_CONFIG_LIMIT = 8 * 1024 * 1024
#: Bytes of a layer's tar; a small layer may unpack to more than a day's work.
_LAYER_LIMIT = 64 * 1024**3


@dataclass(frozen=True, kw_only=True)
class RemoteImage:
    """One platform's image as a registry holds it: documents alone."""

    descriptor: Descriptor
    """Of the manifest, with the platform."""
    manifest: bytes
    config: bytes

    @property
    def parsed_config(self) -> ParsedConfig:
        return parse_config(self.config)


@dataclass(frozen=True, kw_only=True)
class PulledImage:
    """One platform's image, its layers in the store; their diff ids were checked."""

    digest: str
    """Of the platform's manifest."""
    manifest: bytes
    config: bytes
    layers: tuple[Layer, ...]
    """Bottom to top, media types in OCI's spelling."""

    @property
    def parsed_config(self) -> ParsedConfig:
        return parse_config(self.config)


def images(client: ContentClient, repository: str, reference: str) -> dict[Platform, RemoteImage] | None:
    """By platform, those of ours that the index (or the single image) under a reference has."""
    found = client.get_manifest(repository, reference)
    if found is None:
        return None
    if not _is_index(found):
        return _single(client, repository, found)
    remote: dict[Platform, RemoteImage] = {}
    for entry in parse_index(found.document).manifests:
        if entry.platform is None or entry.platform in remote:
            continue
        child = _manifest(client, repository, entry.digest)
        config = _document(client, repository, parse_manifest(child.document).config)
        remote[entry.platform] = RemoteImage(descriptor=entry, manifest=child.document, config=config)
    return remote


def pull(client: ContentClient, reference: Reference, store: BlobStore, platform: Platform) -> PulledImage:
    """Fetch one platform's image; see RegistryClient.pull."""
    found = _manifest(client, reference.repository, reference.selector)
    if _is_index(found):
        parsed = parse_index(found.document)
        entry = parsed.find(platform)
        if entry is None:
            there = ", ".join(sorted({str(one.platform) for one in parsed.manifests if one.platform})) or "none of ours"
            raise ImageNotFound(f"{reference} has no image for {platform}", hint=f"it has {there}")
        found = _manifest(client, reference.repository, entry.digest)
    manifest = parse_manifest(found.document)
    document = _document(client, reference.repository, manifest.config)
    config = parse_config(document)
    if config.platform is not platform:
        raise ImageNotFound(f"{reference} is for {config.platform or 'another platform'}, not for {platform}")
    if len(config.diff_ids) != len(manifest.layers):
        raise BadImage(f"{reference} has {len(manifest.layers)} layers and {len(config.diff_ids)} diff ids")
    pairs = list(zip(manifest.layers, config.diff_ids, strict=True))
    with ThreadPoolExecutor(max_workers=client.workers, thread_name_prefix="flops-pull") as pool:
        layers = list(pool.map(lambda pair: _layer(client, reference.repository, store, *pair), pairs))
    return PulledImage(digest=found.digest, manifest=found.document, config=document, layers=tuple(layers))


def _layer(client: ContentClient, repository: str, store: BlobStore, descriptor: Descriptor, diff_id: str) -> Layer:
    if descriptor.media_type not in {GZIP, ZSTD, TAR}:
        raise BadImage(f"a layer of the type {descriptor.media_type[:100]!r} can't be used")
    if store.size(descriptor.digest) != descriptor.size:
        _fetch(client, repository, store, descriptor)
    digest, size = _unpacked(store, descriptor)
    if digest != diff_id:
        raise RegistryDigest(f"the layer {descriptor.digest} unpacks to {digest}, and its image says {diff_id}")
    return Layer(
        digest=descriptor.digest,
        diff_id=diff_id,
        size=descriptor.size,
        uncompressed_size=size,
        media_type=descriptor.media_type,
    )


def _fetch(client: ContentClient, repository: str, store: BlobStore, descriptor: Descriptor) -> None:
    def write(pieces: Iterator[bytes]) -> None:
        with store.writer() as blob:
            for piece in pieces:
                blob.write(piece)
                if blob.size > descriptor.size:
                    raise RegistryDigest(f"{descriptor.digest} is longer than its manifest says")
            blob.commit(descriptor.digest)

    client.fetch_blob(repository, descriptor.digest, write)


def _unpacked(store: BlobStore, descriptor: Descriptor) -> tuple[str, int]:
    """Digest and size of a layer's tar."""
    digest, size = hashlib.sha256(), 0
    try:
        with store.open(descriptor.digest) as file, _opened(file, descriptor.media_type) as tar:
            while piece := tar.read(_PIECE):
                digest.update(piece)
                size += len(piece)
                if size > _LAYER_LIMIT:
                    raise BadImage(f"the layer {descriptor.digest} unpacks to more than {_LAYER_LIMIT} bytes")
    except _BROKEN as error:
        raise BadImage(f"the layer {descriptor.digest} can't be unpacked: {error}") from error
    return f"sha256:{digest.hexdigest()}", size


def _opened(file: BinaryIO, media_type: str) -> BinaryIO:
    if media_type == GZIP:
        return cast("BinaryIO", igzip.open(file, "rb"))  # type: ignore[no-untyped-call]
    if media_type == ZSTD:
        return cast("BinaryIO", zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
    return file


def _single(client: ContentClient, repository: str, found: Manifest) -> dict[Platform, RemoteImage]:
    config = _document(client, repository, parse_manifest(found.document).config)
    platform = parse_config(config).platform
    if platform is None:
        return {}
    descriptor = Descriptor(
        media_type=found.media_type, digest=found.digest, size=len(found.document), platform=platform
    )
    return {platform: RemoteImage(descriptor=descriptor, manifest=found.document, config=config)}


def _manifest(client: ContentClient, repository: str, selector: str) -> Manifest:
    found = client.get_manifest(repository, selector)
    if found is None:
        separator = "@" if ":" in selector else ":"
        raise ImageNotFound(f"there is no image {client.registry.host}/{repository}{separator}{selector}")
    return found


def _document(client: ContentClient, repository: str, descriptor: Descriptor) -> bytes:
    if descriptor.size > _CONFIG_LIMIT:
        raise BadImage(f"a config of {descriptor.size} bytes is not read")
    parts: list[bytes] = []

    def write(pieces: Iterator[bytes]) -> None:
        parts.clear()
        for piece in pieces:
            parts.append(piece)
            if sum(map(len, parts)) > descriptor.size:
                raise RegistryDigest(f"{descriptor.digest} is longer than its manifest says")

    client.fetch_blob(repository, descriptor.digest, write)
    return b"".join(parts)


def _is_index(found: Manifest) -> bool:
    return found.media_type in {INDEX, DOCKER_INDEX}
