"""Deletes what a pruning plan names, in a registry that allows deletes or in a layout."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops.images.compose import RECIPE
from flops.oci.blobs import sha256
from flops.oci.signature import ARTIFACT
from flops.progress import Stage
from flops.records import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from flops.progress import Reporter
    from flops.prune.inventory import StoredDocument
    from flops.prune.retention import Pruning, Removal
    from flops.records.attach import ImageSource
    from flops.registry.storage import RegistryStore


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What was deleted."""

    indexes: int = 0
    manifests: int = 0
    """Platforms' images, records, signatures."""
    shared: int = 0


def foretell(source: ImageSource, pruning: Pruning) -> None:
    """Raise what `remove` would at its first deletion, by asking for the deletion of a manifest that does not exist."""
    going = [one.repository for one in pruning.removals] + [one.repository for one in pruning.shared]
    if going:
        source.delete_manifest(going[0], sha256(b"a manifest that nobody has"))


def remove(source: ImageSource, pruning: Pruning, reporter: Reporter) -> Removed:
    """Delete what a plan names; DeletesUnsupported (at the first one, so nothing is deleted) and other RegistryErrors.

    A repository whose tags moved since the plan was made is left alone, with a warning.
    """
    indexes = manifests = 0
    for removal in pruning.removals:
        if _moved(source, removal):
            reporter.warning(
                Stage.REMOVE, f"{removal.repository} was pushed to meanwhile, and is left alone", hint="prune again"
            )
            continue
        indexes += _delete(source, removal.repository, removal.indexes)
        manifests += _delete(source, removal.repository, [*removal.referrers, *removal.manifests])
    return Removed(indexes=indexes, manifests=manifests, shared=_delete_shared(source, pruning.shared))


def _moved(source: ImageSource, removal: Removal) -> bool:
    for tag, digest in removal.tags.items():
        found = source.get_manifest(removal.repository, tag)
        if found is not None and found.digest != digest:
            return True
    return False


def _delete(source: ImageSource, repository: str, digests: Iterable[str]) -> int:
    return sum(source.delete_manifest(repository, digest) for digest in digests)


def _delete_shared(source: ImageSource, shared: Iterable[StoredDocument]) -> int:
    return sum(source.delete_manifest(one.repository, one.digest) for one in shared)


def remove_superseded(store: RegistryStore, seconds: float) -> int:
    """Delete our manifests that no tag reaches and that are older than `seconds`; returns their number."""
    before, removed = time.time() - seconds, 0
    for repository in store.repositories():
        links = {f"sha256:{path.name}": path for path in _links(store, repository)}
        manifests = {digest: _document(store, digest) for digest in links}
        tags = {store.resolve(repository, tag) for tag in store.tags(repository) or ()}
        for digest in manifests.keys() - reachable(manifests, {tag for tag in tags if tag}):
            try:
                old = links[digest].stat().st_mtime < before
            except FileNotFoundError:  # deleted meanwhile
                continue
            if old and _ours(manifests[digest]):
                removed += store.remove_manifest(repository, digest)
    return removed


def reachable(manifests: Mapping[str, Mapping[str, Any]], roots: set[str]) -> set[str]:
    """Manifests that are reached from `roots`: parts of indexes, and referrers of any of these."""
    found: set[str] = set()
    todo = set(roots)
    while todo:
        found |= todo
        parts = {part for digest in todo for part in _parts(manifests.get(digest, {}))}
        referring = {digest for digest, one in manifests.items() if _subject(one) in todo}
        todo = (parts | referring) - found
    return found


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    """Digests that an index lists; a manifest of an unknown type may have anything under this key."""
    entries = document.get("manifests")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            yield str(entry.get("digest"))


def _ours(document: Mapping[str, Any]) -> bool:
    annotations = document.get("annotations")
    labelled = isinstance(annotations, dict) and RECIPE in annotations
    return labelled or document.get("artifactType") in (*KINDS, ARTIFACT)


def _subject(document: Mapping[str, Any]) -> str | None:
    subject = document.get("subject")
    return subject.get("digest") if isinstance(subject, dict) else None


def _links(store: RegistryStore, repository: str) -> list[Path]:
    return sorted((store.root / "repositories" / repository / "_manifests").iterdir())


def _document(store: RegistryStore, digest: str) -> Mapping[str, Any]:
    try:
        value = json.loads(store.read_manifest(digest))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
