"""Records of a build, kept beside an image's index: its locks, SBOM, provenance and history (docs/images.md, "Records")."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.base import Base
    from flops.images.compose import Identity
    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.recipe import Recipe
    from flops.repair.pythons import PythonChoice

#: Artifact types of the records.
LOCKS = "application/vnd.flops.locks.v1"
SBOM = "application/vnd.cyclonedx+json"
PROVENANCE = "application/vnd.in-toto+json"
BUILD = "application/vnd.flops.build.v1+json"
KINDS = (LOCKS, SBOM, PROVENANCE, BUILD)
#: Records that do not depend on the time of the build.
TIMELESS = (LOCKS, SBOM)
#: Annotations of a record's documents and of its manifest.
TITLE = "org.opencontainers.image.title"
CREATED = "org.opencontainers.image.created"
PLATFORMS = "io.flops.platforms"
BUILT = "io.flops.built"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One document of a record."""

    title: str
    """Its file name."""
    media_type: str
    data: bytes
    platforms: tuple[Platform, ...]
    """The platforms that it is about."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Documents of one kind, attached to an index together."""

    artifact_type: str
    parts: tuple[Part, ...]
    built: str = ""
    """When the build ran (RFC 3339); empty for timeless records."""


@dataclass(frozen=True, kw_only=True)
class Materials:
    """All that a build's images are made of, except the repository's files."""

    identity: Identity
    recipe: Recipe
    python: PythonChoice
    bases: Mapping[Platform, Base]
    runtime: Mapping[Platform, Lock]
    ml: Mapping[Platform, Lock]
    licences: Mapping[str, str]
    """By a wheel's sha256, from its metadata; unknown ones are left out."""

    @property
    def platforms(self) -> tuple[Platform, ...]:
        return tuple(sorted(self.ml))

    def environments(self, platform: Platform) -> dict[str, Lock]:
        """Both environments of an image by name."""
        return {"ml": self.ml[platform], "runtime": self.runtime[platform]}


def read_timestamp(text: str) -> datetime | None:
    """An RFC 3339 time, in UTC; None for anything else."""
    try:
        then = datetime.fromisoformat(text)
        return then.astimezone(UTC) if then.tzinfo else None
    except (ValueError, OverflowError):
        return None


def timestamp(when: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond, so that builds within one second can be ordered."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
