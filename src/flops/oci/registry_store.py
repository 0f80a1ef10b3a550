"""The embedded registry's disk: blobs that all repositories share, and what each repository holds of them.

    blobs/sha256/HEX                          every blob and manifest, as in an OCI image layout
    repositories/NAME/_blobs/HEX              an empty file: this repository holds that blob
    repositories/NAME/_manifests/HEX          the media type that the manifest was pushed with
    repositories/NAME/_tags/TAG               the digest
    repositories/NAME/_referrers/HEX/HEX      an empty file: the second manifest has the first as its subject
    uploads/ID                                unfinished; removed when the registry starts

Nothing in the first four is ever seen half: files are written beside their place, synced and renamed. A repository's
component never starts with an underscore, so names can't collide. Every function here blocks.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from flops.oci.blobs import BlobStore, digest_hex, disk_errors, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Upload:
    """One unfinished blob: its bytes so far, and their hash, which is made on the way."""

    def __init__(self, path: Path, repository: str) -> None:
        self.path = path
        self.repository = repository
        self.size = 0
        self._hash = hashlib.sha256()

    @property
    def identity(self) -> str:
        return self.path.name

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def append(self, data: bytes) -> None:
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
    """All that a registry keeps, under one directory; several threads may use it, one process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = BlobStore(root)
        self._uploads = root / "uploads"
        self._repositories = root / "repositories"

    def prepare(self) -> None:
        """Make the directories and remove what an earlier process left unfinished."""
        shutil.rmtree(self._uploads, ignore_errors=True)
        for directory in (self._uploads, self._repositories, self.root / "blobs" / "sha256"):
            directory.mkdir(parents=True, exist_ok=True)

    # --- blobs ---
    def begin(self, repository: str) -> Upload:
        return Upload(self._uploads / secrets.token_hex(16), repository)

    def finish(self, upload: Upload) -> str:
        """Turn an upload into a blob of its repository, durably; the digest."""
        target = self.blob_path(upload.digest)
        with disk_errors(self.root):
            with upload.path.open("ab") as file:
                os.fsync(file.fileno())
            upload.path.rename(target)
            _sync_directory(target.parent)
        self.link(upload.repository, upload.digest)
        return upload.digest

    def blob_path(self, digest: str) -> Path:
        return self._blobs.path(digest)

    def has_blob(self, repository: str, digest: str) -> bool:
        return (self._of(repository) / "_blobs" / digest_hex(digest)).exists() and self.blob_path(digest).exists()

    def link(self, repository: str, digest: str) -> None:
        """Make a blob that exists somewhere one of this repository (a mount, or the end of an upload)."""
        self._write(self._of(repository) / "_blobs" / digest_hex(digest), b"")

    def unlink(self, repository: str, digest: str) -> bool:
        """Take a blob out of this repository; its bytes stay for the others."""
        return _remove(self._of(repository) / "_blobs" / digest_hex(digest))

    # --- manifests and tags ---
    def put_manifest(self, repository: str, document: bytes, media_type: str, subject: str | None = None) -> str:
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
        return sorted(self._walk(self._repositories, ""))

    def _walk(self, directory: Path, name: str) -> Iterator[str]:
        with os.scandir(directory) as entries:
            children = [entry.name for entry in entries if entry.is_dir()]
        if "_manifests" in children:
            yield name
        for child in children:
            if not child.startswith("_"):
                yield from self._walk(directory / child, f"{name}/{child}" if name else child)

    def _of(self, repository: str) -> Path:
        return self._repositories / repository

    def _write(self, target: Path, data: bytes) -> None:
        """Write a small file whole or not at all, and so that a power cut after the return does not lose it."""
        temporary = self._uploads / secrets.token_hex(16)
        try:
            with disk_errors(self.root):
                _make_directories(target.parent)
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
                _sync_directory(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


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
