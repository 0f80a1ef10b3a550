"""Layers become images: configuration, labels and annotations of both actors (docs/images.md). Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops import actors
from flops.base import ACTOR
from flops.oci.image import Image, ImageConfig, compose
from flops_wire import WIRE_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from flops.actors import Actor
    from flops.base import Base
    from flops.oci.layer import Layer
    from flops.platforms import Platform
    from flops.recipe import Flavor

RECIPE = "io.flops.recipe"
SOURCE = "org.opencontainers.image.source"
REVISION = "org.opencontainers.image.revision"
#: Annotation of a manifest: bytes of its layers, unpacked.
UNPACKED = "io.flops.unpacked"
#: Digest of the resolved packages and wheels.
LOCK = "io.flops.lock"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the labels and annotations of a commit's images say."""

    source: str
    commit: str
    created: datetime
    """The commit's time."""
    repository: str
    flavor: Flavor | None
    recipe: str

    def labels(self, actor: Actor, lock: str) -> dict[str, str]:
        labels = {
            SOURCE: self.source,
            REVISION: self.commit,
            "org.opencontainers.image.created": self.time,
            "org.opencontainers.image.title": f"{self.repository} {actor.value}",
            ACTOR: actor.value,
            RECIPE: self.recipe,
            LOCK: lock,
            "io.flops.wire": str(WIRE_VERSION),
        }
        return labels | ({"io.flops.flavor": self.flavor.value} if self.flavor else {})

    @property
    def time(self) -> str:
        """RFC 3339, UTC."""
        return self.created.strftime("%Y-%m-%dT%H:%M:%SZ")


def locked(parts: Sequence[str]) -> str:
    """One digest over the digests of locks and bases."""
    return "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def compose_image(
    identity: Identity, actor: Actor, *, platform: Platform, base: Base, lock: str, layers: Sequence[Layer]
) -> Image:
    """One actor's image for one platform; `lock` digests its base and locks."""
    config = ImageConfig(
        platform=platform,
        created=identity.time,
        environment=actors.environment(identity.flavor, base.environment),
        entrypoint=(f"/{actors.RUNTIME}/bin/python", "main.py"),
        working_directory=f"/{actors.ACTOR}",
        user=f"{actors.USER}:{actors.USER}",
        labels=identity.labels(actor, lock),
    )
    return annotated_image(config, layers)


def annotated_image(config: ImageConfig, layers: Sequence[Layer]) -> Image:
    """An image whose manifest is annotated with the labels of its config, and with its unpacked size."""
    unpacked = sum(layer.uncompressed_size for layer in layers)
    return compose(config, layers, {**config.labels, UNPACKED: str(unpacked)})


def index_annotations(identity: Identity, actor: Actor, locks: Mapping[Platform, str]) -> dict[str, str]:
    """Annotations of the index over platforms; its lock digests those of all its platforms, in any order."""
    return identity.labels(actor, locked([f"{platform} {digest}" for platform, digest in sorted(locks.items())]))
