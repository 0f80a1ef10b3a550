"""Layers: the one deterministic tar writer, compressed on the way as a chain of gzip members or as one zstd frame."""

from __future__ import annotations

import hashlib
import posixpath
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self

from isal import isal_zlib

from flops.errors import LayerUnsafe
from flops.oci import tar
from flops.oci.blobs import HashingOutput
from flops.oci.compress import GZIP_LEVEL, ZSTD_LEVEL, Encoder, GzipChain, ZstdFrame, zlib_version, zstd_version
from flops.oci.deflate import DeflateError
from flops.recipe import Compression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from flops.oci.blobs import Writable

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
MEDIA_TYPES = {Compression.GZIP: GZIP, Compression.ZSTD: ZSTD}
#: Raised whenever this module would give other bytes for the same input; part of every layer's key.
FORMAT_VERSION = 1

_LONGEST_PATH = 4095  # PATH_MAX and NAME_MAX of Linux, in bytes
_LONGEST_NAME = 255
_LARGEST_ID = 8**7 - 1
_STICKY = 0o1000


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a manifest, a config and a cache say about a layer; the bytes lie in a BlobStore under `digest`."""

    digest: str
    """Of the compressed bytes."""
    diff_id: str
    """Digest of the tar."""
    size: int
    """Compressed, in bytes."""
    uncompressed_size: int
    media_type: str
    comment: str = ""
    """What is in it, for the image's history."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """KeyError or TypeError where a field is missing or unknown."""
        return cls(**value)


def compressor_tag(compression: Compression, *, spliced: bool = False) -> str:
    """What a layer's bytes depend on beside its content, for the keys of caches.

    With `spliced`, of layers made by `deflated` and `stored` files only: these depend on no compressor with gzip.
    """
    if compression is Compression.ZSTD:
        return f"zstd-{zstd_version()}-{ZSTD_LEVEL}"
    return "spliced" if spliced else f"zlib-{zlib_version()}-{GZIP_LEVEL}"


class LayerWriter:
    """Writes entries in the order they are given; the caller sorts. LayerUnsafe for what no layer may hold.

    Paths are relative, with forward slashes. Missing parent directories (0755, root) are written before their first
    entry. A writer that raised can't be closed into a layer.
    """

    def __init__(self, output: Writable, *, compression: Compression = Compression.GZIP, mtime: int = 0) -> None:
        self._output = output if isinstance(output, HashingOutput) else HashingOutput(output)
        self._encoder: Encoder = GzipChain(self._output) if compression is Compression.GZIP else ZstdFrame(self._output)
        self._media_type = MEDIA_TYPES[compression]
        self._mtime = mtime
        self._hash = hashlib.sha256()
        self._size = 0
        self._entries: dict[str, tuple[tar.EntryType, int, int, int]] = {}
        self._closed = False

    def directory(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """A directory; the same one may be given again. Its mode can't change once it was written."""
        if self._entries.get(path) != (tar.EntryType.DIRECTORY, mode, uid, gid):
            self._metadata(self._header(path, tar.EntryType.DIRECTORY, mode, uid, gid))

    def file(
        self,
        path: str,
        data: bytes | Iterable[bytes],
        *,
        size: int | None = None,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        stored: bool = False,
    ) -> None:
        """A file whose content is compressed here; `size` in bytes must be given for an iterable.

        With `stored`, gzip leaves it uncompressed: then the layer's bytes depend on no compressor.
        """
        pieces: Iterable[bytes] = (data,) if isinstance(data, bytes) else data
        length = len(data) if isinstance(data, bytes) else size
        if length is None:
            self._refuse(path, "its size is not known")
        head = self._header(path, tar.EntryType.FILE, mode, uid, gid, size=length)
        with self._whole():
            self._hashed(head)
            self._encoder.file(head, self._counted(path, pieces, length), length, stored=stored)
            self._metadata(tar.padding(length))

    def deflated(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        size: int,
        crc: int,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        check: Callable[[bytes], None] | None = None,
    ) -> None:
        """A file given as the raw deflate stream it already is, `size` bytes with this CRC-32 when inflated.

        gzip takes the stream as it lies. `check` sees the inflated pieces. LayerUnsafe where size or CRC differ.
        """
        head = self._header(path, tar.EntryType.FILE, mode, uid, gid, size=size)
        with self._whole():
            self._hashed(head)
            actual = 0
            try:
                for piece in self._encoder.deflated(head, chunks, size, crc):
                    self._hashed(piece)
                    actual = isal_zlib.crc32(piece, actual)
                    if check is not None:
                        check(piece)
            except DeflateError as error:
                self._refuse(path, str(error), error)
            if actual != crc:
                self._refuse(path, "its CRC differs")
            self._metadata(tar.padding(size))

    def link(self, path: str, target: str) -> None:
        """A symbolic link; a relative target stays inside the image, an absolute one starts at the image's root."""
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not target or "\0" in target or place == ".." or place.startswith("../"):
            self._refuse(path, "its target leaves the image")
        self._metadata(self._header(path, tar.EntryType.LINK, 0o777, 0, 0, target=target))

    def close(self, *, comment: str = "") -> Layer:
        """End the tar and say what was written; the output stays open."""
        if self._closed:
            raise LayerUnsafe("a layer that is closed, or failed before, can't be closed")
        self._closed = True
        self._metadata(tar.END)
        self._encoder.close()
        return Layer(
            digest=self._output.digest,
            diff_id="sha256:" + self._hash.hexdigest(),
            size=self._output.size,
            uncompressed_size=self._size,
            media_type=self._media_type,
            comment=comment,
        )

    def _header(
        self, path: str, kind: tar.EntryType, mode: int, uid: int, gid: int, *, size: int = 0, target: str = ""
    ) -> bytes:
        """Check an entry, note it, and give its header; parents that are missing go before it."""
        if self._closed:
            self._refuse(path, "the layer is closed, or failed before")
        self._check(path, kind, mode, uid, gid)
        self._parent(path)
        self._entries[path] = (kind, mode, uid, gid)
        try:
            return tar.header(path, kind=kind, mode=mode, mtime=self._mtime, size=size, uid=uid, gid=gid, target=target)
        except UnicodeEncodeError as error:
            self._refuse(path, "its name is not Unicode", error)

    def _parent(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        known = self._entries.get(parent)
        if known is None and parent:
            self.directory(parent)
        elif known is not None and known[0] is not tar.EntryType.DIRECTORY:
            self._refuse(path, f"{parent[:500]!r} is not a directory")

    def _check(self, path: str, kind: tar.EntryType, mode: int, uid: int, gid: int) -> None:
        parts = path.split("/")
        if path in self._entries:
            self._refuse(path, "it is there already")
        if path.startswith("/") or ".." in parts or "." in parts or "" in parts or "\0" in path:
            self._refuse(path, "not a relative path in normal form")
        if len(_bytes(path)) > _LONGEST_PATH or any(len(_bytes(part)) > _LONGEST_NAME for part in parts):
            self._refuse(path, "no file system has so long a name")
        if any(part.startswith(".wh.") for part in parts):
            self._refuse(path, "names that begin with .wh. delete files of other layers")
        if mode & ~0o1777 or (mode & _STICKY and kind is not tar.EntryType.DIRECTORY):
            self._refuse(path, f"mode {mode:o} is not allowed")
        if not (0 <= uid <= _LARGEST_ID and 0 <= gid <= _LARGEST_ID):
            self._refuse(path, f"owner {uid}:{gid} is out of range")

    def _refuse(self, path: str, reason: str, cause: Exception | None = None) -> NoReturn:
        raise LayerUnsafe(f"can't put {path[:500]!r} into a layer: {reason}") from cause

    def _metadata(self, data: bytes) -> None:
        self._hashed(data)
        self._encoder.metadata(data)

    def _hashed(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)

    def _counted(self, path: str, pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
        left = size
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                break
            self._hashed(piece)
            yield piece
        if left:
            self._refuse(path, f"it does not have the {size} bytes that were announced")

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """An entry is written to its end, or the layer is lost."""
        closed, self._closed = self._closed, True
        yield
        self._closed = closed


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
