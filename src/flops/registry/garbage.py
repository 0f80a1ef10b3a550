"""The embedded registry's collector: bytes that no manifest names any more leave the disk, beside pushes that go on.

First the store is read without a lock, and what nobody names is noted. Then, under the exclusive lock, what was noted and
not used since is removed: a push or a question by HEAD makes a blob used, and a manifest that is refused for a blob that
went meanwhile is answered by the client with that blob.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from flops.registry.storage import RegistryStore

#: Files that are removed under one hold of the lock: those who push wait meanwhile.
_BATCH = 200


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a collection removed."""

    links: int = 0
    """Blobs that a repository held without a manifest that names them."""
    blobs: int = 0
    """Files of blobs and manifests."""
    bytes: int = 0


def collect(store: RegistryStore, grace: float = 3600.0) -> Collected:
    """Remove what no manifest of a repository names and nobody used for `grace` seconds. Manifests stay, tagged or not.

    Safe beside pushes through a registry over the same directory, also of another process.
    """
    before = _now(store) - grace
    links, _ = _remove(store, _loose_links(store), before)
    held = _held(store)
    blobs, size = _remove(store, (path for path in _files(store.blob_directory) if path.name not in held), before)
    _remove_empty(store)
    return Collected(links=links, blobs=blobs, bytes=size)


def _now(store: RegistryStore) -> float:
    """By the clock that stamps the files: it may lag behind ours by a tick, or be another machine's."""
    lock = store.root / "lock"
    lock.touch()
    return lock.stat().st_mtime


def _loose_links(store: RegistryStore) -> Iterator[Path]:
    """What a repository holds although none of its manifests names it."""
    for directory in store.directories():
        named: set[str] = set()
        for manifest in _files(directory / "_manifests"):
            named |= _named(store.blob_directory / manifest.name)
        yield from (link for link in _files(directory / "_blobs") if link.name not in named)


def _named(manifest: Path) -> set[str]:
    """The blobs that a manifest names, by their hexadecimal digits; those of an index are manifests.

    A manifest of a type that nobody here knows may have anything under these names.
    """
    try:
        document = json.loads(manifest.read_bytes())
    except FileNotFoundError:  # deleted meanwhile
        return set()
    lists = [entries for name in ("layers", "blobs") if isinstance(entries := document.get(name), list)]
    entries = [document.get("config"), *itertools.chain.from_iterable(lists)]
    digests = (entry.get("digest") for entry in entries if isinstance(entry, dict))
    return {digest.partition(":")[2] for digest in digests if isinstance(digest, str)}


def _held(store: RegistryStore) -> set[str]:
    """All that any repository holds."""
    held: set[str] = set()
    for directory in store.directories():
        for kind in ("_blobs", "_manifests"):
            held |= {path.name for path in _files(directory / kind)}
    return held


def _remove(store: RegistryStore, found: Iterable[Path], before: float) -> tuple[int, int]:
    """Remove files that were not changed since `before`, looked at again under the lock; their number and bytes."""
    noted = [path for path in found if _changed(path) < before]
    number = size = 0
    for start in range(0, len(noted), _BATCH):
        with store.locked(exclusive=True):
            for path in noted[start : start + _BATCH]:
                if _changed(path) < before:
                    size += path.stat().st_size
                    path.unlink()
                    number += 1
    return number, size


def _remove_empty(store: RegistryStore) -> None:
    """Repositories that hold nothing are no repositories any more."""
    with store.locked(exclusive=True):
        for directory in sorted(store.directories(), key=lambda path: -len(path.parts)):
            if any(_files(directory / "_manifests")) or any(_files(directory / "_blobs")):
                continue
            shutil.rmtree(directory / "_referrers", ignore_errors=True)
            for path in (directory / "_tags", directory / "_blobs", directory / "_manifests", directory):
                with contextlib.suppress(OSError):  # absent, or the parent of another repository
                    path.rmdir()


def _changed(path: Path) -> float:
    """A file that went meanwhile is never old."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _files(directory: Path) -> Iterator[Path]:
    try:
        yield from sorted(directory.iterdir())
    except FileNotFoundError:
        return
