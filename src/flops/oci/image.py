"""Images as values: config, manifest and index composed of layers (OCI image-spec 1.1). No I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flops.errors import BadImage
from flops.oci.blobs import digest_hex, sha256
from flops.oci.descriptor import (
    AS_OCI,
    CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    REFERENCE_NAME,
    Descriptor,
    canonical,
    platform_json,
    read_platform,
    texts,
    typed,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flops.oci.layer import Layer
    from flops.platforms import Platform


@dataclass(frozen=True, kw_only=True)
class ParsedIndex:
    """An index as it was read."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    def find(self, platform: Platform) -> Descriptor | None:
        """The first manifest for a platform, as the image-spec says."""
        return next((descriptor for descriptor in self.manifests if descriptor.platform is platform), None)


@dataclass(frozen=True, kw_only=True)
class ParsedManifest:
    """A manifest as it was read."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ParsedConfig:
    """A config as it was read."""

    platform: Platform | None
    """None for one that is none of ours."""
    created: str
    diff_ids: tuple[str, ...]
    environment: Mapping[str, str]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    working_directory: str
    user: str
    labels: Mapping[str, str]
    comments: tuple[str, ...]
    """Of the history's entries that have a layer, in the layers' order; fewer where the history is incomplete."""


def parse_index(document: bytes) -> ParsedIndex:
    """Read an OCI index or Docker's manifest list; BadImage for anything else."""
    value = _document(document, {INDEX, ""}, "index")
    return ParsedIndex(
        manifests=tuple(map(Descriptor.from_json, typed(value, "manifests", list))),
        annotations=texts(value, "annotations"),
    )


def parse_manifest(document: bytes) -> ParsedManifest:
    """Read an OCI manifest or Docker's (schema 2); BadImage for anything else."""
    value = _document(document, {MANIFEST, ""}, "manifest")
    return ParsedManifest(
        config=Descriptor.from_json(typed(value, "config", dict)),
        layers=tuple(map(Descriptor.from_json, typed(value, "layers", list))),
        annotations=texts(value, "annotations"),
    )


def parse_config(document: bytes) -> ParsedConfig:
    """Read an image's config, OCI's or Docker's; BadImage where it has no layers' diff ids."""
    value = _document(document, {CONFIG, ""}, "config")
    diff_ids = words(typed(value, "rootfs", dict), "diff_ids")
    if not diff_ids:
        raise BadImage("an image config names no layers")
    for digest in diff_ids:
        digest_hex(digest)
    container = {} if value.get("config") is None else typed(value, "config", dict)
    entries = [] if value.get("history") is None else typed(value, "history", list)
    history = [entry for entry in entries if isinstance(entry, dict) and not entry.get("empty_layer")]
    return ParsedConfig(
        platform=read_platform(value),
        created=str(value.get("created") or ""),
        diff_ids=diff_ids,
        environment=dict(text.partition("=")[::2] for text in words(container, "Env")),
        entrypoint=words(container, "Entrypoint"),
        command=words(container, "Cmd"),
        working_directory=str(container.get("WorkingDir") or ""),
        user=str(container.get("User") or ""),
        labels=texts(container, "Labels"),
        comments=tuple(str(entry.get("comment") or "") for entry in history),
    )


def _document(document: bytes, media_types: set[str], what: str) -> dict[str, Any]:
    try:
        value = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise BadImage(f"an image {what} is not JSON") from error
    if not isinstance(value, dict):
        raise BadImage(f"an image {what} is not an object")
    media_type = str(value.get("mediaType", ""))
    if AS_OCI.get(media_type, media_type) not in media_types:
        raise BadImage(f"expected an image {what}, not {media_type[:100]!r}")
    return value


__all__ = [
    "CONFIG",
    "DOCKER_INDEX",
    "DOCKER_MANIFEST",
    "INDEX",
    "MANIFEST",
    "REFERENCE_NAME",
    "Descriptor",
    "Image",
    "ImageConfig",
    "ImageIndex",
    "ParsedConfig",
    "ParsedIndex",
    "ParsedManifest",
    "canonical",
    "compose",
    "index",
    "index_document",
    "parse_config",
    "parse_index",
    "parse_manifest",
]


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How a container of the image starts. History and file system come from the layers."""

    platform: Platform
    created: str
    """RFC 3339, the time of the commit: never the time of the build."""
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object under `config`; what is empty is left out."""
        value = {
            "Env": [f"{name}={text}" for name, text in sorted(self.environment.items())],
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "WorkingDir": self.working_directory,
            "User": self.user,
            "Labels": dict(self.labels),
        }
        return {key: content for key, content in value.items() if content}


@dataclass(frozen=True, kw_only=True)
class Image:
    """One platform's image: two documents, and the layers that they name."""

    platform: Platform
    config: bytes
    manifest: bytes
    layers: tuple[Layer, ...]
    """Bottom to top."""

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def config_digest(self) -> str:
        return sha256(self.config)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=MANIFEST, digest=self.digest, size=len(self.manifest), platform=self.platform)

    @property
    def size(self) -> int:
        """Bytes of the layers, compressed."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """An image over platforms."""

    document: bytes
    images: tuple[Image, ...]
    """Sorted by platform."""

    @property
    def digest(self) -> str:
        return sha256(self.document)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=INDEX, digest=self.digest, size=len(self.document))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Of all platforms, each digest once, in order of first use."""
        return tuple({layer.digest: layer for image in self.images for layer in image.layers}.values())

    def documents(self) -> Iterator[bytes]:
        """Configs and manifests, then the index: every blob that is not a layer."""
        for image in self.images:
            yield image.config
            yield image.manifest
        yield self.document


def compose(config: ImageConfig, layers: Sequence[Layer], annotations: Mapping[str, str] | None = None) -> Image:
    """Make one platform's image of layers (bottom to top); history has one entry per layer, with its comment."""
    document = canonical(
        {
            "created": config.created,
            **platform_json(config.platform),
            "config": config.to_json(),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [
                {"created": config.created, "created_by": "flops"}
                | ({"comment": layer.comment} if layer.comment else {})
                for layer in layers
            ],
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": Descriptor(media_type=CONFIG, digest=sha256(document), size=len(document)).to_json(),
        "layers": [
            Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size).to_json() for layer in layers
        ],
    }
    return Image(
        platform=config.platform,
        config=document,
        manifest=canonical(manifest | ({"annotations": dict(annotations)} if annotations else {})),
        layers=tuple(layers),
    )


def index(images: Iterable[Image], annotations: Mapping[str, str] | None = None) -> ImageIndex:
    """Gather one image per platform under one name; their order does not matter."""
    ordered = tuple(sorted(images, key=lambda image: image.platform))
    if len({image.platform for image in ordered}) != len(ordered):
        raise ValueError("an index holds one image per platform")
    return ImageIndex(document=index_document([image.descriptor for image in ordered], annotations), images=ordered)


def index_document(manifests: Iterable[Descriptor], annotations: Mapping[str, str] | None = None) -> bytes:
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [descriptor.to_json() for descriptor in manifests],
    }
    return canonical(value | ({"annotations": dict(annotations)} if annotations else {}))
