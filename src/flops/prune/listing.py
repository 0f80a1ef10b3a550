"""Taking stock of a registry: its repositories, tags and manifests are read, in parallel, into an inventory."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flops.actors import Actor
from flops.base import ACTOR
from flops.errors import BadImage, ImageNotFound
from flops.images.compose import RECIPE, REVISION
from flops.oci.artifacts import parse_artifact
from flops.oci.blobs import named_digests
from flops.oci.image import parse_index, parse_manifest
from flops.oci.reference import repository_name
from flops.prune.inventory import COMPANION, CREATED, NOTE, Foreign, Inventory, Shared, StoredImage, StoredIndex
from flops.records import read_timestamp
from flops.store.shared import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flops.oci.manifests import Manifest
    from flops.records.attach import ImageSource

#: Requests at the same time.
WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A manifest with the tags that name it."""

    repository: str
    manifest: Manifest
    tags: tuple[str, ...]


def list_images(client: ImageSource, repositories: Sequence[str] = ()) -> Inventory:
    """All repositories under the registry's prefix, or those that are named (with the prefix).

    A name without its actor stands for both actors' images. BadTarget, ImageNotFound, RegistryError.
    """
    for name in repositories:
        repository_name(name)
    listed = () if repositories else client.catalog()
    names = [name for name in listed if _below(name, client.registry.prefix)]
    names += dict.fromkeys(found for name in repositories for found in _meant(client, name))
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="stock") as pool:
        found = [named for of in pool.map(lambda name: _named(client, name), names) for named in of]
        cache = client.registry.repository(*REPOSITORY)
        shared = [note for one in found if one.repository == cache for note in _shared(one)]
        others = [one for one in found if one.repository != cache]
        companions: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for one in others:
            for tag in one.tags:
                if match := COMPANION.fullmatch(tag):
                    companions[one.repository, f"sha256:{match['digest']}"][tag] = one.manifest.digest
        read = list(pool.map(lambda one: _read(client, one), others))
        indexes = [one for one in read if isinstance(one, StoredIndex)]
        indexes = list(
            pool.map(
                lambda one: replace(
                    one,
                    referrers=client.referrers(one.repository, one.digest),
                    companions=companions.get((one.repository, one.digest), {}),
                ),
                indexes,
            )
        )
    return Inventory(
        indexes=tuple(sorted(indexes, key=lambda one: (one.repository, one.commit, one.digest))),
        foreign=tuple(_unclaimed([one for one in read if isinstance(one, Foreign)], indexes)),
        shared=tuple(sorted(shared, key=lambda one: one.tag)),
    )


def _meant(client: ImageSource, name: str) -> list[str]:
    """The repositories that a person's name stands for."""
    found = [one for one in (name, *(f"{name}/{actor.value}" for actor in Actor)) if client.tags(one)]
    if not found:
        raise ImageNotFound(
            f"{client.registry} has no images of the name {name}", hint="flops images list without a name lists all"
        )
    return found


def _named(client: ImageSource, repository: str) -> list[_Named]:
    """What a repository's tags stand for, each manifest once."""
    tags: dict[str, list[str]] = defaultdict(list)
    manifests: dict[str, Manifest] = {}
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="tags") as pool:
        names = client.tags(repository)
        for tag, found in zip(names, pool.map(lambda tag: client.get_manifest(repository, tag), names), strict=True):
            if found is not None:  # else it went meanwhile
                tags[found.digest].append(tag)
                manifests[found.digest] = found
    return [
        _Named(repository=repository, manifest=manifests[digest], tags=tuple(sorted(of))) for digest, of in tags.items()
    ]


def _read(client: ImageSource, named: _Named) -> StoredIndex | Foreign:
    try:
        index = parse_index(named.manifest.document)
    except BadImage:
        return _foreign(named)
    if not {ACTOR, REVISION, RECIPE} <= index.annotations.keys():
        return _foreign(named)
    images = []
    for entry in index.manifests:
        found = client.get_manifest(named.repository, entry.digest)
        if found is None:
            continue  # an index that is not whole: it can still go
        try:
            manifest = parse_manifest(found.document)
        except BadImage:  # an index of indexes: none of ours, though it may be a copy of one
            return _foreign(named)
        images.append(
            StoredImage(
                digest=entry.digest,
                size=len(found.document),
                platform=entry.platform,
                config=manifest.config,
                layers=manifest.layers,
            )
        )
    return StoredIndex(
        repository=named.repository,
        digest=named.manifest.digest,
        size=len(named.manifest.document),
        tags=named.tags,
        annotations=index.annotations,
        images=tuple(images),
    )


def _foreign(named: _Named) -> Foreign:
    """Whatever it is: the digests in it are left alone."""
    names = frozenset(named_digests(named.manifest.document))
    return Foreign(repository=named.repository, digest=named.manifest.digest, tags=named.tags, names=names)


def _unclaimed(foreign: Sequence[Foreign], indexes: Sequence[StoredIndex]) -> list[Foreign]:
    """Without what belongs to an index of ours: its signatures name it, and shall go with it."""
    claimed = {(one.repository, tag) for one in indexes for tag in one.companions}
    return [one for one in foreign if not all((one.repository, tag) in claimed for tag in one.tags)]


def _shared(named: _Named) -> list[Shared]:
    try:
        artifact = parse_artifact(named.manifest.document)
    except BadImage:
        return []
    created = read_timestamp(artifact.annotations.get(CREATED, ""))
    return [
        Shared(
            repository=named.repository,
            tag=tag,
            digest=named.manifest.digest,
            size=len(named.manifest.document),
            layers=artifact.blobs[1:],
            created=created,
        )
        for tag in named.tags
        if NOTE.fullmatch(tag)
    ]


def _below(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}/")
