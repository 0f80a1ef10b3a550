"""The embedded registry's disk: blobs that all repositories share, and what each repository holds of them.

    blobs/sha256/HEX                          every blob and manifest, as in an OCI image layout
    repositories/NAME/_blobs/HEX              an empty file: this repository holds that blob
    repositories/NAME/_manifests/HEX          the media type that the manifest was pushed with
    repositories/NAME/_tags/TAG               the digest
    repositories/NAME/_referrers/HEX/HEX      an empty file: the second manifest has the first as its subject
    uploads/LIFE/ID                           unfinished, of one run; removed when a registry starts and that run has ended
    lock                                      shared by those who write, exclusive for the collector (`garbage`)

Nothing in the first four is ever seen half: files are written beside their place, synced and renamed. What is acknowledged
survives a kill, and a power cut where the disk keeps what it says. A link's time of change is when it was last pushed or
asked for. A repository's component never starts with an underscore, so names can't collide. Every function here blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from typing import IO, TYPE_CHECKING

from flops.oci.blobs import BlobStore, digest_hex, disk_errors, sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class UploadSession:
    """One unfinished blob: its bytes so far, and their hash, which is made on the way."""

    def __init__(self, path: Path, repository: str) -> None:
        self.path = path
        self.repository = repository
        self.size = 0
        self._hash = hashlib.sha256()

        self.identity = path.name

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def append(self, data: bytes | bytearray) -> None:
        """Write at the end; after an error (DiskFull) the upload is as before."""
        try:
            with disk_errors(self.path.parent), self.path.open("ab") as file:
                file.write(data)
        except BaseException:
            if self.path.exists():
                os.truncate(self.path, self.size)
            raise
        self._hash.update(data)
        self.size += len(data)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class RegistryStore:
    """All that a registry keeps, under one directory; from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = BlobStore(root)
        self._life = root / "uploads" / f"{os.getpid()}-{secrets.token_hex(8)}"
        self._alive: IO[bytes] | None = None
        self._repositories = root / "repositories"

    def prepare(self) -> None:
        """Make the directories and remove what runs that have ended left unfinished."""
        for directory in (self._life.parent, self._repositories, self.blob_directory):
            directory.mkdir(parents=True, exist_ok=True)
        with self.locked(exclusive=True):
            for life in self._life.parent.iterdir():
                _remove_ended(life)
            self._life.mkdir(exist_ok=True)
            self._alive = (self._life / "alive").open("wb")
            fcntl.flock(self._alive, fcntl.LOCK_EX)

    def close(self) -> None:
        if self._alive is not None:
            self._alive.close()
            self._alive = None
            shutil.rmtree(self._life, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, *, exclusive: bool = False) -> Iterator[None]:
        """Between threads and processes: many may write, or one collects."""
        with disk_errors(self.root), (self.root / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield

    # --- blobs ---
    def begin(self, repository: str) -> UploadSession:
        return UploadSession(self._life / secrets.token_hex(16), repository)

    def finish(self, upload: UploadSession) -> str:
        """Turn an upload into a blob of its repository; the digest."""
        target = self.blob_path(upload.digest)
        with disk_errors(self.root):
            with upload.path.open("ab") as file:
                os.fsync(file.fileno())
            with self.locked():
                os.utime(upload.path)  # pushed now, whenever its last byte came: a collector may have noted these bytes
                upload.path.rename(target)
                _sync_directory(target.parent)
                self._link(upload.repository, upload.digest)
        return upload.digest

    @property
    def blob_directory(self) -> Path:
        return self.root / "blobs" / "sha256"

    def blob_path(self, digest: str) -> Path:
        return self._blobs.path(digest)

    def has_blob(self, repository: str, digest: str) -> bool:
        return (self._of(repository) / "_blobs" / digest_hex(digest)).exists() and self.blob_path(digest).exists()

    def link(self, repository: str, digest: str, source: str | None) -> bool:
        """Make a blob of another repository (None: of any) one of this too (a mount); whether that one held it."""
        with self.locked():
            link = f"_blobs/{digest_hex(digest)}"
            among = [self._of(source)] if source is not None else self._walk(self._repositories)
            held = self.blob_path(digest).exists() and any((one / link).exists() for one in among)
            if held:
                os.utime(self.blob_path(digest))
                self._link(repository, digest)
        return held

    def use(self, repository: str, digests: Iterable[str]) -> list[str]:
        """Those blobs that the repository does not hold; the others count as used now, and are not collected soon."""
        links = self._of(repository) / "_blobs"
        return [
            digest
            for digest in digests
            if not self.blob_path(digest).exists() or not _touch(links / digest_hex(digest))
        ]

    def unlink(self, repository: str, digest: str) -> bool:
        """Take a blob out of this repository; its bytes stay for the others."""
        return _remove(self._of(repository) / "_blobs" / digest_hex(digest))

    # --- manifests and tags ---
    def put_manifest(self, repository: str, document: bytes, media_type: str, subject: str | None = None) -> str:
        """The caller holds the lock since it saw that what the manifest names is there."""
        digest = sha256(document)
        self._write(self.blob_path(digest), document)
        if subject is not None:
            self._write(self._of(repository) / "_referrers" / digest_hex(subject) / digest_hex(digest), b"")
        self._write(self._of(repository) / "_manifests" / digest_hex(digest), media_type.encode())
        return digest

    def media_type(self, repository: str, digest: str) -> str | None:
        """The media type of a manifest of this repository; None where it holds no such manifest."""
        try:
            return (self._of(repository) / "_manifests" / digest_hex(digest)).read_text()
        except FileNotFoundError:
            return None

    def read_manifest(self, digest: str) -> bytes:
        return self.blob_path(digest).read_bytes()

    def remove_manifest(self, repository: str, digest: str) -> bool:
        """Take a manifest out of this repository, with the tags that name it."""
        directory = self._of(repository)
        for tag in self.tags(repository) or []:
            if self.resolve(repository, tag) == digest:
                _remove(directory / "_tags" / tag)
        for link in directory.glob(f"_referrers/*/{digest_hex(digest)}"):
            _remove(link)
        return _remove(directory / "_manifests" / digest_hex(digest))

    def referrers(self, repository: str, subject: str) -> list[str]:
        """The digests of the manifests of this repository that have this one as their subject."""
        return [f"sha256:{name}" for name in _names(self._of(repository) / "_referrers" / digest_hex(subject))]

    def tag(self, repository: str, tag: str, digest: str) -> None:
        self._write(self._of(repository) / "_tags" / tag, digest.encode())

    def resolve(self, repository: str, tag: str) -> str | None:
        try:
            return (self._of(repository) / "_tags" / tag).read_text()
        except FileNotFoundError:
            return None

    def untag(self, repository: str, tag: str) -> bool:
        return _remove(self._of(repository) / "_tags" / tag)

    def tags(self, repository: str) -> list[str] | None:
        """In the specification's order (letters without regard to case); None where there is no such repository."""
        directory = self._of(repository)
        if not (directory / "_manifests").is_dir():
            return None
        return sorted(_names(directory / "_tags"), key=lambda tag: (tag.lower(), tag))

    def repositories(self) -> list[str]:
        """The names of all repositories that ever held a manifest, sorted."""
        found = self.directories()
        return sorted(str(path.relative_to(self._repositories)) for path in found if (path / "_manifests").is_dir())

    def directories(self) -> list[Path]:
        """Of all repositories that ever held a manifest or a blob."""
        return list(self._walk(self._repositories))

    def _walk(self, directory: Path) -> Iterator[Path]:
        try:
            with os.scandir(directory) as entries:
                children = [entry.name for entry in entries if entry.is_dir()]
        except FileNotFoundError:  # collected meanwhile
            return
        if "_manifests" in children or "_blobs" in children:
            yield directory
        for child in children:
            if not child.startswith("_"):
                yield from self._walk(directory / child)

    def _of(self, repository: str) -> Path:
        return self._repositories / repository

    def _link(self, repository: str, digest: str) -> None:
        self._write(self._of(repository) / "_blobs" / digest_hex(digest), b"")

    def _write(self, target: Path, data: bytes) -> None:
        """Write a small file whole or not at all, and so that a power cut after the return does not lose it."""
        temporary = self._life / secrets.token_hex(16)
        try:
            with disk_errors(self.root):
                _make_directories(target.parent)
                with temporary.open("wb") as file:
                    if data:  # a name alone is durable with its directory
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                temporary.replace(target)
                _sync_directory(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _remove_ended(life: Path) -> None:
    """A run's unfinished uploads, unless it lives: then it holds a lock. The caller holds the store's."""
    try:
        with (life / "alive").open("ab") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    except OSError:  # no directory, or one without the file: of an earlier version
        if not life.is_dir():
            life.unlink(missing_ok=True)
    shutil.rmtree(life, ignore_errors=True)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _touch(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    _sync_directory(path.parent)
    return True


def _make_directories(directory: Path) -> None:
    """A new directory is durable only when the one that holds it was synced."""
    if directory.is_dir():
        return
    _make_directories(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
