"""Blobs on disk: files named by their digest, written beside and moved into place when whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import os
import re
import secrets
import threading
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, BinaryIO, Protocol, cast

import zstandard
from isal import igzip, isal_zlib

from flops.errors import BadImage, DiskFull
from flops.programs import check_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COPY = 1024 * 1024
_ABANDONED = 24 * 60 * 60  # seconds


def sha256(data: bytes) -> str:
    """The digest of a document, `sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_hex(digest: str) -> str:
    """The 64 digits of a sha256 digest; BadImage for anything else, so that no digest names another path."""
    if _DIGEST.fullmatch(digest) is None:
        raise BadImage(f"not a sha256 digest: {digest[:100]!r}")
    return digest.removeprefix("sha256:")


def named_digests(document: bytes) -> set[str]:
    """Every sha256 digest that stands in a document, whatever it is."""
    return set(_DIGEST.findall(document.decode("utf-8", "replace")))


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Tell a full disk from other failures of the file system."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise disk_full(place, hint="free space there, or name another directory") from error
        raise


def disk_full(place: Path, *, hint: str = "free space there, or set FLOPS_CACHE_DIR") -> DiskFull:
    """The error that names a directory (or one that was to be made) and the bytes of its disk."""
    there = next((one for one in (place, *place.parents) if one.exists()), place)
    try:
        disk = os.statvfs(there)
    except OSError:
        return DiskFull(f"no space left in {place}", hint=hint)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    return DiskFull(f"no space left in {place}: {free} of {size} bytes are free now", hint=hint)


def used(path: Path) -> int | None:
    """Mark a file or directory of a cache as used now, and tell its size in bytes; None where there is none.

    Whoever removes what is not used holds a lock on it while looking and removing, so that one of both comes first.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(descriptor)
        there = os.fstat(descriptor)
        return there.st_size if os.path.samestat(path.stat(), there) else None
    except FileNotFoundError:
        return None
    except OSError:  # a file system without locks, or somebody else's file: nothing is removed there either
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


class Writable(Protocol):
    """The part of a binary file that writers of ours use."""

    def write(self, data: bytes, /) -> object: ...


class HashingOutput:
    """Passes bytes on, counts them and digests them."""

    def __init__(self, output: Writable) -> None:
        self._output = output
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._output.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    @property
    def digest(self) -> str:
        """Of everything written so far."""
        return "sha256:" + self._hash.hexdigest()


class BlobWriter(HashingOutput):
    """A blob in the making; nobody sees it before `commit`."""

    def __init__(self, file: BinaryIO, temporary: Path, store: BlobStore) -> None:
        super().__init__(file)
        self._file = file
        self._temporary = temporary
        self._store = store

    def write(self, data: bytes) -> int:
        check_cancelled()
        with disk_errors(self._store.root):
            return super().write(data)

    def commit(self, expected: str | None = None) -> str:
        """Move the blob into place and return its digest; BadImage where it is not the expected one."""
        if expected is not None and expected != self.digest:
            raise BadImage(f"a blob that should be {expected} is {self.digest}")
        target = self._store.path(self.digest)
        with disk_errors(self._store.root):
            self._file.close()
            target.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.replace(target)
        self._store.written += self.size
        return self.digest


class BlobStore:
    """A directory of blobs, `blobs/sha256/HEX` as an OCI image layout has them. Safe between processes and threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.written = 0
        """Bytes that this process put into it."""
        self._swept = False
        self._lent: dict[str, Callable[[], None]] = {}
        self._guard = threading.Lock()

    def path(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / digest_hex(digest)

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: str) -> int | None:
        """In bytes; None where there is no such blob."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def use(self, digest: str, size: int) -> bool:
        """Whether a blob is here, whole by its size; then it counts as used now (see the cache's bound)."""
        return self.size(digest) == size and used(self.path(digest)) == size

    def lend(self, digest: str, bring: Callable[[], None]) -> None:
        """A blob can be had elsewhere: `bring` puts it here, when it is opened and absent."""
        self._lent[digest] = bring

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """A temporary file in this store; removed unless it was committed."""
        partial = self.root / ".partial"
        temporary = partial / f"{os.getpid()}-{secrets.token_hex(8)}"
        with disk_errors(self.root):
            partial.mkdir(parents=True, exist_ok=True)
            self._sweep(partial)
            file = temporary.open("xb")
        try:
            yield BlobWriter(file, temporary, self)
        finally:
            with contextlib.suppress(OSError):  # what could not be flushed is thrown away with the file
                file.close()
            temporary.unlink(missing_ok=True)

    def _sweep(self, partial: Path) -> None:
        """Remove, once, what writers that were killed left behind; living ones write more often than once a day."""
        if self._swept:
            return
        self._swept = True
        for left in partial.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process sweeps too
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()

    def put(self, data: bytes) -> str:
        """Store a small document under its digest."""
        with self.writer() as blob:
            blob.write(data)
            return blob.commit()

    def read(self, digest: str) -> bytes:
        """A small document; FileNotFoundError where there is none."""
        return self.path(digest).read_bytes()

    def open(self, digest: str) -> BinaryIO:
        """Its bytes, brought here first where they were lent; FileNotFoundError where there are none."""
        bring = self._lent.get(digest)
        if bring is not None:
            with self._guard:
                if not self.has(digest):
                    bring()
        return self.path(digest).open("rb")

    def take(self, digest: str, source: BlobStore) -> None:
        """Have a blob of another store here too: a hard link where the file system can, else a checked copy."""
        if self.has(digest):
            return
        target = self.path(digest)
        with disk_errors(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source.path(digest), target)
            except FileExistsError:
                return
            except OSError:
                if not source.has(digest):
                    raise
                self._copy(digest, source)

    def _copy(self, digest: str, source: BlobStore) -> None:
        with source.open(digest) as blob, self.writer() as copy:
            while piece := blob.read(_COPY):
                copy.write(piece)
            copy.commit(digest)


_PIECE = 1024 * 1024
_BROKEN: tuple[type[Exception], ...] = (
    gzip.BadGzipFile,
    isal_zlib.error,  # type: ignore[assignment]
    zstandard.ZstdError,
    EOFError,
)


def diff_id(path: Path, media_type: str, *, most: int) -> str:
    """`sha256:` and 64 digits; BadImage where it can't be decompressed, or has more than `most` bytes then."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as blob, _inflated(blob, media_type) as stream:
            while piece := stream.read(_PIECE):
                size += len(piece)
                if size > most:
                    raise BadImage(f"a layer has more than the {most} bytes that were told")
                digest.update(piece)
    except _BROKEN as error:
        raise BadImage("a layer can't be decompressed") from error
    return "sha256:" + digest.hexdigest()


def _inflated(blob: BinaryIO, media_type: str) -> IO[bytes]:
    if media_type.endswith("gzip"):
        return cast("IO[bytes]", igzip.IGzipFile(fileobj=blob, mode="rb"))  # type: ignore[no-untyped-call]
    if media_type.endswith("zstd"):
        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True))
    return blob
