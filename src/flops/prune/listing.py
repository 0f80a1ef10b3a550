"""Lists the images of a registry or layout: repositories, tags and manifests are read in parallel into an inventory."""

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
from flops.prune.inventory import (
    COMPANION,
    CREATED,
    SHARED_TAG,
    Foreign,
    Inventory,
    StoredDocument,
    StoredImage,
    StoredIndex,
)
from flops.records import read_timestamp
from flops.store.shared import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flops.oci.manifests import Manifest
    from flops.records.attach import ImageSource

#: Requests at the same time.
WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class _Tagged:
    """A manifest with its tags."""

    repository: str
    manifest: Manifest
    tags: tuple[str, ...]


def list_images(client: ImageSource, repositories: Sequence[str] = ()) -> Inventory:
    """The images of the named repositories (with the registry's prefix), or of all under the prefix.

    A name without an actor means both actors' images. BadTarget, ImageNotFound, RegistryError.
    """
    for name in repositories:
        repository_name(name)
    listed = () if repositories else client.catalog()
    names = [name for name in listed if _below(name, client.registry.prefix)]
    names += dict.fromkeys(found for name in repositories for found in _meant(client, name))
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="list") as pool:
        found = [tagged for of in pool.map(lambda name: _tagged(client, name), names) for tagged in of]
        cache = client.registry.repository(*REPOSITORY)
        shared = [document for one in found if one.repository == cache for document in _shared(one)]
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
    """The repositories that a user's name means."""
    found = [one for one in (name, *(f"{name}/{actor.value}" for actor in Actor)) if client.tags(one)]
    if not found:
        raise ImageNotFound(
            f"{client.registry} has no images of the name {name}", hint="flops images list without a name lists all"
        )
    return found


def _tagged(client: ImageSource, repository: str) -> list[_Tagged]:
    """The tagged manifests of a repository, each once."""
    tags: dict[str, list[str]] = defaultdict(list)
    manifests: dict[str, Manifest] = {}
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="tags") as pool:
        names = client.tags(repository)
        for tag, found in zip(names, pool.map(lambda tag: client.get_manifest(repository, tag), names), strict=True):
            if found is not None:  # else it was deleted meanwhile
                tags[found.digest].append(tag)
                manifests[found.digest] = found
    return [
        _Tagged(repository=repository, manifest=manifests[digest], tags=tuple(sorted(of)))
        for digest, of in tags.items()
    ]


def _read(client: ImageSource, tagged: _Tagged) -> StoredIndex | Foreign:
    try:
        index = parse_index(tagged.manifest.document)
    except BadImage:
        return _foreign(tagged)
    if not {ACTOR, REVISION, RECIPE} <= index.annotations.keys():
        return _foreign(tagged)
    images = []
    for entry in index.manifests:
        found = client.get_manifest(tagged.repository, entry.digest)
        if found is None:
            continue  # an incomplete index can still be pruned
        try:
            manifest = parse_manifest(found.document)
        except BadImage:  # an index of indexes is not ours, whatever its annotations say
            return _foreign(tagged)
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
        repository=tagged.repository,
        digest=tagged.manifest.digest,
        size=len(tagged.manifest.document),
        tags=tagged.tags,
        annotations=index.annotations,
        images=tuple(images),
    )


def _foreign(tagged: _Tagged) -> Foreign:
    """Its type does not matter: every digest in it is left alone."""
    names = frozenset(named_digests(tagged.manifest.document))
    return Foreign(repository=tagged.repository, digest=tagged.manifest.digest, tags=tagged.tags, names=names)


def _unclaimed(foreign: Sequence[Foreign], indexes: Sequence[StoredIndex]) -> list[Foreign]:
    """Without companions of our indexes (signatures), which are pruned with them."""
    claimed = {(one.repository, tag) for one in indexes for tag in one.companions}
    return [one for one in foreign if not all((one.repository, tag) in claimed for tag in one.tags)]


def _shared(tagged: _Tagged) -> list[StoredDocument]:
    try:
        artifact = parse_artifact(tagged.manifest.document)
    except BadImage:
        return []
    created = read_timestamp(artifact.annotations.get(CREATED, ""))
    return [
        StoredDocument(
            repository=tagged.repository,
            tag=tag,
            digest=tagged.manifest.digest,
            size=len(tagged.manifest.document),
            layers=artifact.blobs[1:],
            created=created,
        )
        for tag in tagged.tags
        if SHARED_TAG.fullmatch(tag)
    ]


def _below(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}/")
