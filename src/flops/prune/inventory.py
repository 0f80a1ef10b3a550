"""What a registry or layout holds: our indexes with all that belongs to them, shared documents, and foreign manifests."""

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
#: Tags that belong to a digest: its list of referrers, and cosign's artifacts (`.sig`, `.att`, `.sbom`).
COMPANION = re.compile(r"sha256-(?P<digest>[0-9a-f]{64})(?:\.[a-z]{1,10})?")
#: Tags of documents that builders share.
SHARED_TAG = re.compile(r"(?P<kind>layer|lock|base|provides)-[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One platform's manifest."""

    digest: str
    size: int
    """Of the manifest itself, in bytes."""
    platform: Platform | None
    """None for a platform that is not built here."""
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> Iterator[tuple[str, int]]:
        """Digest and size of each, with the manifest."""
        yield self.digest, self.size
        for blob in (self.config, *self.layers):
            yield blob.digest, blob.size


@dataclass(frozen=True, kw_only=True)
class StoredIndex:
    """One of our indexes; its annotations name actor, commit and recipe."""

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
        """The image path without the actor, which both actors' indexes share."""
        return self.repository.removesuffix(f"/{self.actor}")

    @property
    def commit(self) -> str:
        return self.annotations.get(REVISION, "")

    @property
    def recipe(self) -> str:
        return self.annotations.get(RECIPE, "")

    @property
    def own_tags(self) -> frozenset[str]:
        """The tags that a build gives it; any other tag was given by a person, who may rely on it."""
        return frozenset({self.commit, f"{self.commit}-{self.recipe.removeprefix('sha256:')[:12]}"})

    @property
    def when(self) -> datetime | None:
        """When it was built, by its records, or else its commit's time."""
        built = [read_timestamp(one.annotations.get(BUILT, "")) for one in self.referrers]
        known = [time for time in built if time is not None]
        return max(known) if known else read_timestamp(self.annotations.get(CREATED, ""))

    @property
    def platforms(self) -> tuple[Platform, ...]:
        return tuple(sorted(image.platform for image in self.images if image.platform is not None))

    @property
    def blobs(self) -> Iterator[tuple[str, int]]:
        """Digest and size of each blob and manifest."""
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
    """Digests in the manifest."""


@dataclass(frozen=True, kw_only=True)
class StoredDocument:
    """A document that builders share, such as a lock or a layer's record."""

    repository: str
    tag: str
    digest: str
    size: int
    layers: tuple[Descriptor, ...]
    """Blobs beside the document."""
    created: datetime | None

    @property
    def kind(self) -> str:
        return self.tag.partition("-")[0]


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All of a registry or layout."""

    indexes: tuple[StoredIndex, ...] = ()
    foreign: tuple[Foreign, ...] = ()
    shared: tuple[StoredDocument, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Size by digest of every blob and manifest of our images."""
        return dict(blob for index in self.indexes for blob in index.blobs)
