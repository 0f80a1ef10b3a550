"""Descriptors, and the JSON that all image documents share (OCI image-spec 1.1, descriptor.md). No I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from flops.errors import BadImage, UnknownPlatform
from flops.oci.blobs import digest_hex
from flops.oci.layer import GZIP
from flops.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
REFERENCE_NAME = "org.opencontainers.image.ref.name"

#: Docker's names for what OCI calls otherwise; the bytes are the same.
AS_OCI = {
    DOCKER_INDEX: INDEX,
    DOCKER_MANIFEST: MANIFEST,
    "application/vnd.docker.container.image.v1+json": CONFIG,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
}


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """Names a blob or manifest: type, digest and size in bytes."""

    media_type: str
    """As OCI spells it, also where it was read in Docker's spelling."""
    digest: str
    size: int
    platform: Platform | None = None
    """None also for a platform that is none of ours."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    """What an artifact's manifest is about; empty for images and blobs."""

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform is not None:
            value["platform"] = platform_json(self.platform)
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        return value | ({"annotations": dict(self.annotations)} if self.annotations else {})

    @classmethod
    def from_json(cls, value: Any) -> Descriptor:
        """BadImage where a field is missing or of another type."""
        size = typed(value, "size", int)
        if size < 0:
            raise BadImage(f"a descriptor has the size {size}")
        digest = typed(value, "digest", str)
        digest_hex(digest)
        media_type = typed(value, "mediaType", str)
        artifact_type = value.get("artifactType")
        return cls(
            media_type=AS_OCI.get(media_type, media_type),
            digest=digest,
            size=size,
            platform=read_platform(value.get("platform")),
            annotations=texts(value, "annotations"),
            artifact_type=artifact_type if isinstance(artifact_type, str) else "",
        )


def typed(value: Any, key: str, kind: type[_T]) -> _T:
    content = value.get(key) if isinstance(value, dict) else None
    if not isinstance(content, kind) or isinstance(content, bool):
        raise BadImage(f"an image document has no {kind.__name__} under {key!r}")
    return content


def words(value: Any, key: str) -> tuple[str, ...]:
    content = value.get(key) if isinstance(value, dict) else None
    if not isinstance([] if content is None else content, list) or not all(
        isinstance(word, str) for word in content or []
    ):
        raise BadImage(f"an image document has no list of texts under {key!r}")
    return tuple(content or ())


def texts(value: Any, key: str) -> dict[str, str]:
    content = value.get(key) if isinstance(value, dict) else None
    if not isinstance({} if content is None else content, dict):
        raise BadImage(f"an image document has no object under {key!r}")
    return {str(name): str(text) for name, text in (content or {}).items()}


def platform_json(platform: Platform) -> dict[str, str]:
    return {"architecture": platform.architecture, "os": "linux"}


def read_platform(value: Any) -> Platform | None:
    if not isinstance(value, dict):
        return None
    variant = f"/{value['variant']}" if value.get("variant") else ""
    try:
        return Platform.parse(f"{value.get('os')}/{value.get('architecture')}{variant}")
    except UnknownPlatform:
        return None
