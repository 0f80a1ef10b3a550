"""What a place of images holds: indexes of ours with all that belongs to them, what builders share, and what is somebody else's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flops.base import ACTOR
from flops.images.compose import RECIPE, REVISION
from flops.records import BUILT, read_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from flops.oci.descriptor import Descriptor
    from flops.platforms import Platform

CREATED = "org.opencontainers.image.created"
#: Tags of what belongs to a digest: its list of referrers, and what cosign keeps beside it (`.sig`, `.att`, `.sbom`).
COMPANION = re.compile(r"sha256-(?P<digest>[0-9a-f]{64})(?:\.[a-z]{1,10})?")
#: Tags of what builders share.
NOTE = re.compile(r"(?P<kind>layer|lock|base|provides)-[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One platform's manifest."""

    digest: str
    size: int
    """Of the manifest itself, in bytes."""
    platform: Platform | None
    """None for one that is none of ours."""
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> Iterator[tuple[str, int]]:
        """Digest and size of each, the manifest among them."""
        yield self.digest, self.size
        for blob in (self.config, *self.layers):
            yield blob.digest, blob.size


@dataclass(frozen=True, kw_only=True)
class StoredIndex:
    """An index of ours: its annotations say for which actor, commit and recipe."""

    repository: str
    digest: str
    size: int
    tags: tuple[str, ...]
    annotations: Mapping[str, str]
    images: tuple[StoredImage, ...]
    referrers: tuple[Descriptor, ...] = ()
    companions: Mapping[str, str] = field(default_factory=dict)
    """Digests by tag: signatures, and lists of referrers."""

    @property
    def actor(self) -> str:
        return self.annotations.get(ACTOR, "")

    @property
    def path(self) -> str:
        """The images' path without the actor: what both actors' indexes have in common."""
        return self.repository.removesuffix(f"/{self.actor}")

    @property
    def commit(self) -> str:
        return self.annotations.get(REVISION, "")

    @property
    def recipe(self) -> str:
        return self.annotations.get(RECIPE, "")

    @property
    def own_tags(self) -> frozenset[str]:
        """The names that a build gives it; any other was given by somebody who may rely on it."""
        return frozenset({self.commit, f"{self.commit}-{self.recipe.removeprefix('sha256:')[:12]}"})

    @property
    def when(self) -> datetime | None:
        """When it was built, as its records say, or else its commit's time."""
        built = [read_timestamp(one.annotations.get(BUILT, "")) for one in self.referrers]
        known = [time for time in built if time is not None]
        return max(known) if known else read_timestamp(self.annotations.get(CREATED, ""))

    @property
    def platforms(self) -> tuple[Platform, ...]:
        return tuple(sorted(image.platform for image in self.images if image.platform is not None))

    @property
    def blobs(self) -> Iterator[tuple[str, int]]:
        """Digest and size of all that it is made of."""
        yield self.digest, self.size
        for image in self.images:
            yield from image.blobs


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A tagged manifest that no build of ours made."""

    repository: str
    digest: str
    tags: tuple[str, ...]
    names: frozenset[str]
    """Digests that it names."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What a builder left for others: a layer's record, or a lock."""

    repository: str
    tag: str
    digest: str
    size: int
    layers: tuple[Descriptor, ...]
    """What it keeps from being collected."""
    created: datetime | None

    @property
    def kind(self) -> str:
        return self.tag.partition("-")[0]


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All of it."""

    indexes: tuple[StoredIndex, ...] = ()
    foreign: tuple[Foreign, ...] = ()
    shared: tuple[Shared, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Bytes of every distinct blob that our images hold."""
        return dict(blob for index in self.indexes for blob in index.blobs)
