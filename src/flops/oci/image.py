"""Images as values: config, manifest and index composed of layers (OCI image-spec 1.1). No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flops.oci.blobs import sha256
from flops.oci.descriptor import (
    CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    REFERENCE_NAME,
    Descriptor,
    canonical,
    platform_json,
)
from flops.oci.image_documents import (
    ParsedConfig,
    ParsedIndex,
    ParsedManifest,
    parse_config,
    parse_index,
    parse_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flops.oci.layer import Layer
    from flops.platforms import Platform

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
