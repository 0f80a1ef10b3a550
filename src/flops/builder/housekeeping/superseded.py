"""Manifests of ours that no name stands for any more: indexes that grew by a platform, or were built anew by force.

A registry does not list them to its clients; in an embedded registry's directory they are found, with their records.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from flops.builder.images.compose import RECIPE
from flops.builder.records import KINDS
from flops.oci.signature import ARTIFACT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from flops.oci.registry_store import RegistryStore


def remove_superseded(store: RegistryStore, seconds: float) -> int:
    """Delete those that were pushed longer ago; how many. What any tag, or a referrer of it, can reach stays."""
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
    """From named manifests: parts of indexes, and what refers to any of these."""
    found: set[str] = set()
    todo = set(roots)
    while todo:
        found |= todo
        parts = {part for digest in todo for part in _parts(manifests.get(digest, {}))}
        referring = {digest for digest, one in manifests.items() if _subject(one) in todo}
        todo = (parts | referring) - found
    return found


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    """A manifest of a type that nobody here knows may have anything under this name."""
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
