"""The bound of the cache directory: after a build, the least recently used files are removed if the cache is too large.

Every use sets a file's time. A running build holds a lock on a file of its own, and nothing that was used since the oldest
running build began is removed; the lock of a killed build ends with it. Sizes are added up once a day, or when builds may
have written enough to pass the bound.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from flops.errors import FlopsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from flops.settings import Settings

#: If no bound is set, it is a tenth of the disk, but within these limits, in bytes.
LEAST, MOST = 2 * 10**9, 20 * 10**9
#: The part of the bound that is kept, so that the next build does not reach the bound at once.
LOW_WATER = 0.9
#: Seconds after which sizes are added up in any case, since not all that is written is counted.
SCANNED = 24 * 3600
#: Seconds for which unused small documents (locks, descriptions of layers, what wheels provide) are kept.
DOCUMENTS = 30 * 24 * 3600
#: The part of the bound that uv's own cache may take; if it is larger, uv clears it.
UV = 0.25
UV_SECONDS = 60.0
#: Files that are removed one by one, and directories that are removed as a whole.
_FILES = ("wheels/??/*.whl", "blobs/sha256/*", "bases/debs/*.deb")
_TREES = ("bases/interpreters/*", "pythons/????????????????????????????????????????????????????????????????")
_DOCUMENTS = (
    "layers/*.json",
    "bases/layers/*.json",
    "bases/sets/*.json",
    "locks/*.json",
    "provides/*.json",
    "records/*.json",
)


#: Files that killed builders left half written, and the seconds after which they are removed.
_LEFT = (
    "bases/apt-*",
    "bases/sources-*",
    "bases/interpreters/.partial-*",
    "bases/*/.new-*",
    "layers/.new-*",
    "records/.new-*",
    "pythons/.new-*",
    "wheels/??/.new-*",
    "locks/.new-*",
    "provides/.new-*",
)
ABANDONED = 24 * 3600


class CacheWriter(Protocol):
    """A part of a build that writes into the cache."""

    @property
    def written(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file or directory that can be removed."""

    path: Path
    size: int
    """On the disk, in bytes."""
    used: float
    """When it was last used, in seconds since the epoch."""


class CacheBound:
    """The bound of one cache directory. If it can't be kept (a file system without locks), no build fails."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.cache_dir
        self._limit: int | None = settings.cache_bytes
        self._running = self._root / ".running"
        self._state = self._root / ".bound"
        self._writers: list[CacheWriter] = []

    def watch(self, *writers: CacheWriter) -> None:
        """Count the bytes that these write."""
        self._writers += writers

    @contextmanager
    def held(self) -> Iterator[None]:
        """Encloses a build, during which nothing that it uses is removed. At the end `keep` runs."""
        claim: tuple[Path, int] | None = None
        with contextlib.suppress(OSError):
            claim = self._claim()
        try:
            yield
        finally:
            if claim is not None:
                with contextlib.suppress(OSError):
                    claim[0].unlink()
                os.close(claim[1])
            with contextlib.suppress(OSError):
                self.keep(sum(writer.written for writer in self._writers))

    def keep(self, grown: int = 0) -> int:
        """Remove the least recently used files if `grown` new bytes may pass the bound; returns the bytes removed."""
        limit = self.limit
        uv = 0
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as state:
            if state is None:  # another build does it
                return 0
            known = _read(state)
            known["grown"] = known.get("grown", 0) + grown
            due = not 0 <= time.time() - known.get("scanned", 0) < SCANNED
            removed = 0
            if due or known.get("bytes", 0) + known["grown"] > limit:
                uv = _tree_size(self._root / "uv")
                left, removed = self._evict(limit - min(uv, int(limit * UV)))
                known = {"scanned": time.time(), "bytes": left + uv, "grown": 0}
            _write(state, known)
        if uv > limit * UV:
            self._empty_uv()
        return removed

    @property
    def limit(self) -> int:
        """In bytes."""
        if self._limit is not None:
            return self._limit
        return max(LEAST, min(MOST, shutil.disk_usage(self._root).total // 10))

    # --- pieces -------------------------------------------------------------------------------------------------------
    def _claim(self) -> tuple[Path, int]:
        """A locked file for this build, whose time is the build's start; waits while another build removes files."""
        with self._locked(fcntl.LOCK_SH):
            self._running.mkdir(exist_ok=True)
            path = self._running / f"{os.getpid()}-{secrets.token_hex(4)}"
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        return path, descriptor

    @contextmanager
    def _locked(self, how: int) -> Iterator[int | None]:
        """The state file, locked; None if another process holds it and `how` does not wait."""
        descriptor = os.open(self._state, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, how)
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            os.close(descriptor)

    def _began(self) -> float:
        """When the oldest running build began; files of killed builds are removed."""
        began = time.time()
        for path in self._running.glob("*"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as claim:
                try:
                    fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    began = min(began, path.stat().st_mtime)
                else:
                    path.unlink()
        return began

    def _evict(self, limit: int) -> tuple[int, int]:
        """Bytes that are left, and bytes that were removed."""
        trash = self._root / ".trash"
        shutil.rmtree(trash, ignore_errors=True)  # of a process that was killed
        trash.mkdir()
        began = self._began()
        for item in self._found(_LEFT, files=False):
            if item.used < min(began, time.time() - ABANDONED):
                _remove(item, trash)
        trees = self._found(_TREES, files=False)
        items = [*self._found(_FILES), *(replace(item, size=_tree_size(item.path)) for item in trees)]
        total, removed = sum(item.size for item in items), 0
        low = int(limit * LOW_WATER) if total > limit else total
        for item in sorted(items, key=lambda item: (item.used, item.path)):
            if total - removed <= low or item.used >= began:
                break
            if _remove(item, trash):
                removed += item.size
        for item in self._found(_DOCUMENTS):
            if item.used < min(began, time.time() - DOCUMENTS):
                _remove(item, trash)
        shutil.rmtree(trash, ignore_errors=True)
        return total - removed, removed

    def _found(self, patterns: Iterable[str], *, files: bool = True) -> Iterator[Item]:
        for pattern in patterns:
            for path in self._root.glob(pattern):
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    # a file with a second link (in a layout) would free no space
                    if not files or status.st_nlink == 1:
                        yield Item(path=path, size=status.st_blocks * 512, used=status.st_mtime)

    def _empty_uv(self) -> None:
        from flops import programs  # noqa: PLC0415 - once in a long while
        from flops.locking.compiler import uv_program  # noqa: PLC0415

        words: list[str | Path] = [uv_program(), "cache", "clean", "--cache-dir", self._root / "uv"]
        with contextlib.suppress(FlopsError):  # another process uses it
            programs.run(words, seconds=UV_SECONDS, env={"HOME": str(self._root)}, cwd=self._root, check=False)


def _remove(item: Item, trash: Path) -> bool:
    """Remove an item unless it was used since it was listed; its lock makes `oci.blobs.used` wait."""
    trashed = trash / secrets.token_hex(8)
    try:
        descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_mtime > item.used:
            return False
        item.path.rename(trashed)
    except OSError:  # in use, or removed
        return False
    finally:
        os.close(descriptor)
    if trashed.is_dir():
        shutil.rmtree(trashed, ignore_errors=True)
    else:
        trashed.unlink(missing_ok=True)
    return True


def _tree_size(root: Path) -> int:
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{directory}/{name}").st_blocks * 512
    return total


def _read(descriptor: int) -> dict[str, float]:
    try:
        value = json.loads(os.pread(descriptor, 4096, 0))
        return {name: float(value[name]) for name in ("scanned", "bytes", "grown")}
    except (ValueError, KeyError, TypeError):
        return {}


def _write(descriptor: int, value: dict[str, float]) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(value).encode(), 0)
