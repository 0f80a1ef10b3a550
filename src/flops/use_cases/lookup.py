"""What a manager looks up itself: the commit of a source, and existing images; and the one tag that it moves.

For everything else it starts `flops job`, so it imports nothing else of the builder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flops.oci.client import RegistryClient
from flops.oci.credentials import Credential, FixedCredentials
from flops.publishing import naming
from flops.publishing.registry_target import RegistryTarget
from flops.repository.checkout import resolve_commit
from flops.repository.git import GitCredential
from flops.repository.revision import check_ref
from flops.repository.source import image_path, parse_source, url_image_path
from flops.repository.tree_writer import TreeLimits
from flops.request import Request
from flops.use_cases.result import Result, existing_images

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from flops.oci.reference import Registry
    from flops.platforms import Platform
    from flops.recipe import Recipe
    from flops.repository.source import Source

#: Seconds that a host is given to name its branches; after that no builder is started.
SECONDS = 60.0
#: Bytes of memory of each process of git, and of a pack: a host sends a manager names and commits, and no files.
GIT_BYTES = 512 * 1024**2


@dataclass(frozen=True, kw_only=True)
class ProjectSource:
    """A source that a project may name, checked without any network."""

    source: Source
    repository: str
    """The image path, with the subdirectory."""
    host: str
    """`HOST[:PORT]` that a git credential must be for; empty for a directory."""

    @property
    def text(self) -> str:
        """The URL; for a directory its path."""
        return str(self.source.directory) if self.source.directory is not None else self.source.url

    @property
    def image_source(self) -> str:
        """As the images' labels have it: the URL, or `local/DIRNAME`."""
        if self.source.directory is None:
            return self.source.url
        return f"local/{self.source.directory.name.encode('utf-8', 'replace').decode()}"

    @property
    def local(self) -> bool:
        return self.source.directory is not None


@dataclass(frozen=True, kw_only=True)
class SourceLookup:
    """Looks up untrusted sources: https and ssh on public hosts, no directories, unless the fields allow more."""

    allow_local: bool = False
    allow_hosts: Collection[str] = ()
    ca_bundle: Path | None = None
    seconds: float = SECONDS

    def judge(self, text: str, *, ref: str | None = None, subdir: str = "") -> ProjectSource:
        """No network. BadUrl, BlockedAddress, CredentialInUrl, BadRef."""
        if ref is not None:
            check_ref(ref)
        source = parse_source(text, trusted=False, allow_hosts=self.allow_hosts, allow_local=self.allow_local)
        if source.directory is not None:
            return ProjectSource(source=source, repository=image_path(source.repository, subdir), host="")
        authority = source.url.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()
        return ProjectSource(source=source, repository=url_image_path(source.url, subdir), host=authority)

    def commit(self, source: ProjectSource, ref: str | None, credential: Mapping[str, str] | None = None) -> str | None:
        """The full hash of `ref` (HEAD if None); None for a directory. SourceError and its kinds.

        `credential` has the keys host, username and password.
        """
        if source.local:
            return None
        return resolve_commit(
            source.source,
            ref=ref,
            ca_bundle=self.ca_bundle,
            limits=TreeLimits(seconds=self.seconds, memory=GIT_BYTES, pack_bytes=GIT_BYTES),
            credential=GitCredential(**credential) if credential else None,
            allow_hosts=self.allow_hosts,
        )


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What `naming` compares of a checkout, without one."""

    source: str
    commit: str
    repository: str

    @classmethod
    def of(cls, source: ProjectSource, commit: str) -> _Subject:
        return cls(source=source.image_source, commit=commit, repository=source.repository)


@dataclass(frozen=True, kw_only=True)
class ImageLookup:
    """Looks up images in one registry."""

    registry: Registry
    pull_name: Registry | None = None
    ca_bundle: Path | None = None
    login: Mapping[str, str] | None = field(default=None, repr=False)
    """host, username and password, where the registry requires them even for reading."""

    def existing(
        self,
        source: ProjectSource,
        commit: str,
        recipe: Recipe,
        platforms: tuple[Platform, ...],
        credential: Mapping[str, str] | None = None,
    ) -> dict[str, Any] | None:
        """What `flops build --json` prints for both actors' existing images; None if there are none that match.

        They must be tagged COMMIT-RECIPE12 and have this source, commit and recipe, and all platforms. RegistryError.
        """
        subject = _Subject.of(source, commit)
        request = Request(source=source.source, platforms=platforms, recipe=recipe)
        with self._client(credential) as client:
            target = RegistryTarget(client, pull_name=self.pull_name)
            found = naming.matching_images(request, subject, target)
            if not found:
                return None
            tag = naming.tags(request, commit)[1]
            images = existing_images(found, platforms, lambda actor: target.reference(subject.repository, actor, tag))
            return Result.of_existing(images, subject.source, commit, recipe.digest, target.registry).to_json()

    def move_commit(
        self,
        source: ProjectSource,
        commit: str,
        recipe: Recipe,
        platforms: tuple[Platform, ...],
        credential: Mapping[str, str] | None = None,
        *,
        force: bool = False,
    ) -> bool:
        """Move COMMIT to published images whose builder ended before it did so; True if it had to be moved.

        With `force`, also from another recipe's images. RegistryError and its kinds.
        """
        subject = _Subject.of(source, commit)
        request = Request(source=source.source, platforms=platforms, recipe=recipe, force=force)
        with self._client(credential) as client:
            target = RegistryTarget(client, pull_name=self.pull_name)
            return naming.move_commit(request, subject, target, naming.matching_images(request, subject, target))

    def ping(self) -> None:
        """Check that the registry answers; RegistryError and its kinds."""
        with self._client(None) as client:
            client.ping()

    def _client(self, credential: Mapping[str, str] | None) -> RegistryClient:
        given = [one for one in (self.login, credential) if one]
        by_host = {one["host"]: Credential(username=one["username"], password=one["password"]) for one in given}
        return RegistryClient(
            self.registry,
            credentials=FixedCredentials(by_host=by_host) if by_host else None,
            verify=self.ca_bundle,
            workers=1,
        )
