"""The file tree that an image's layers make together, and files out of it (image-spec, layer.md: changesets, whiteouts)."""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import shutil
import tarfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, cast

import zstandard
from isal import igzip, isal_zlib

from flops.builder.rootfs.deb import Kind
from flops.errors import BaseUnsuitable
from flops.oci.blobs import disk_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from flops.oci.blobs import BlobStore
    from flops.oci.layer import Layer

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MOST_LINKS = 40
_PIECE = 1024 * 1024
#: Bytes of one file, and of all files of one call, that are written to this machine's disk: a Python has some 40 MB.
_LARGEST_FILE = 256 * 1024 * 1024
_LARGEST_EXTRACT = 1024 * 1024 * 1024
#: Bytes of a member's extended header, which tarfile reads whole.
_LARGEST_HEADER = 1024 * 1024
#: Reads past a layer's end; tarfile would go on for as long as a member claims to be.
_MOST_EMPTY_READS = 100
#: What the decompressors and tarfile say of bytes that they can't read.
_BROKEN: tuple[type[Exception], ...] = (
    tarfile.TarError,
    ValueError,
    RecursionError,
    OverflowError,
    zlib.error,
    isal_zlib.error,  # type: ignore[assignment]
    gzip.BadGzipFile,
    zstandard.ZstdError,
    EOFError,
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """What lies at a path."""

    kind: Kind
    layer: int
    """Number of the layer that brought it, from the bottom."""
    mode: int = 0o755
    size: int = 0
    target: str = ""
    """Of a symbolic link."""
    stored_as: str = ""
    """The path under which the layer holds a file's bytes: another one for a hard link."""


class ImageTree:
    """The merged view of layers that lie in a blob store. Paths are relative, with forward slashes."""

    def __init__(self, nodes: dict[str, Node], layers: Sequence[Layer], blobs: BlobStore) -> None:
        self.nodes = nodes
        self._layers = tuple(layers)
        self._blobs = blobs

    @classmethod
    def read(cls, layers: Sequence[Layer], blobs: BlobStore) -> ImageTree:
        """Walk the layers bottom to top; BaseUnsuitable where one is no tar in a known compression."""
        nodes: dict[str, Node] = {}
        for number, layer in enumerate(layers):
            added: dict[str, Node] = {}
            with _opened(layer, blobs) as archive:
                for member in archive:
                    _note(member, number, nodes, added)
                    cast("Any", archive).members = []  # tarfile keeps them all otherwise
            for path, node in added.items():
                if path in nodes and nodes[path].kind is Kind.DIRECTORY and node.kind is not Kind.DIRECTORY:
                    _remove(nodes, path, itself=True)
                nodes[path] = node
        return cls(nodes, layers, blobs)

    @property
    def key(self) -> str:
        """64 hexadecimal digits for this very tree."""
        return hashlib.sha256("".join(layer.digest for layer in self._layers).encode()).hexdigest()

    def resolve(self, path: str) -> str | None:
        """Follow symbolic links, in every part of the path, as a process in the image would; None where it leads nowhere."""
        done: list[str] = []
        todo = path.strip("/").split("/")[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            node = self.nodes.get("/".join([*done, part]))
            if node is not None and node.kind is Kind.LINK:
                links += 1
                if links > _MOST_LINKS:
                    return None
                done = [] if node.target.startswith("/") else done
                todo += node.target.split("/")[::-1]
            else:
                done.append(part)
        found = "/".join(done)
        return found if found in self.nodes else None

    def file(self, path: str) -> str | None:
        """Like `resolve`, and None where it is no file."""
        found = self.resolve(path)
        return found if found is not None and self.nodes[found].kind is Kind.FILE else None

    def extract(self, paths: Iterable[str], destination: Path) -> None:
        """Write these files (not links) under a directory, each at its path; one pass over each layer that holds some.

        BaseUnsuitable where they are larger than any Python's, or can't lie side by side; DiskFull.
        """
        wanted: dict[int, dict[str, list[str]]] = {}
        total = 0
        for path in paths:
            node = self.nodes[path]
            total += node.size
            if node.size > _LARGEST_FILE or total > _LARGEST_EXTRACT:
                raise BaseUnsuitable(f"/{path[:200]} of the base has {node.size} bytes, too many for its purpose")
            wanted.setdefault(node.layer, {}).setdefault(node.stored_as, []).append(path)
        for number, sources in sorted(wanted.items()):
            with _opened(self._layers[number], self._blobs) as archive:
                for member in archive:
                    cast("Any", archive).members = []
                    targets = sources.pop(_clean(member.name), None) if member.isreg() else None
                    if targets:
                        mode = 0o755 if member.mode & 0o111 else 0o644
                        _write(
                            cast("IO[bytes]", archive.extractfile(member)),
                            [destination / path for path in targets],
                            mode,
                        )
                    if not sources:
                        break

    def files(self, accept: Callable[[str], bool]) -> list[str]:
        """Paths of the files that a rule accepts, sorted."""
        return sorted(path for path, node in self.nodes.items() if node.kind is Kind.FILE and accept(path))


def _note(member: tarfile.TarInfo, number: int, below: dict[str, Node], added: dict[str, Node]) -> None:
    """Take one member of a layer: a whiteout works on the layers below, at once; all else waits for the layer's end."""
    path = _clean(member.name)
    directory, _, name = path.rpartition("/")
    if name == _OPAQUE:
        _remove(below, directory, itself=False)
    elif name.startswith(_WHITEOUT):
        _remove(below, posixpath.join(directory, name.removeprefix(_WHITEOUT)), itself=True)
    elif member.isdir():
        if path:
            added[path] = Node(kind=Kind.DIRECTORY, layer=number, mode=member.mode)
    elif member.issym():
        added[path] = Node(kind=Kind.LINK, layer=number, target=member.linkname)
    elif member.isreg():
        added[path] = Node(kind=Kind.FILE, layer=number, mode=member.mode, size=member.size, stored_as=path)
    elif member.islnk():
        original = added.get(_clean(member.linkname))
        if original is not None:
            added[path] = replace(original)


def _remove(nodes: dict[str, Node], path: str, *, itself: bool) -> None:
    if itself and path in nodes and nodes[path].kind is not Kind.DIRECTORY:
        del nodes[path]  # nothing lies below it: no need to look through all
        return
    prefix = f"{path}/" if path else ""
    for name in [name for name in nodes if name.startswith(prefix)]:
        del nodes[name]
    if itself:
        nodes.pop(path, None)


def _clean(name: str) -> str:
    """Relative and without `..`, whatever the layer says."""
    path = posixpath.normpath("/" + name).lstrip("/")
    return "" if path == "." else path


def _write(content: IO[bytes], targets: Sequence[Path], mode: int) -> None:
    try:
        with disk_errors(targets[0].parent):
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            with targets[0].open("wb") as file:
                shutil.copyfileobj(content, file, _PIECE)
            targets[0].chmod(mode)
            for other in targets[1:]:
                shutil.copy(targets[0], other)
    except OSError as error:  # a name that this file system has not, a file where another one wants a directory
        raise BaseUnsuitable(f"{targets[0].name[:200]!r} of the base can't be written: {error.strerror}") from error


@contextmanager
def _opened(layer: Layer, blobs: BlobStore) -> Iterator[tarfile.TarFile]:
    """A layer's tar as a stream, by the media type's suffix (also Docker's own types)."""
    try:
        with blobs.open(layer.digest) as blob:
            if layer.media_type.endswith("gzip"):
                stream = cast("IO[bytes]", igzip.IGzipFile(fileobj=blob, mode="rb"))  # type: ignore[no-untyped-call]
            elif layer.media_type.endswith("zstd"):
                stream = cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True))
            else:
                stream = blob
            bounded = cast("IO[bytes]", _Bounded(stream))
            with stream, tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Member) as archive:
                yield archive
    except _BROKEN as error:
        raise BaseUnsuitable(f"layer {layer.digest} of the base can't be read: {error}") from error


class _Bounded:
    """A layer's tar, of which a reader that goes on past its end hears so."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._empty = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._empty += not data
        if self._empty > _MOST_EMPTY_READS:
            raise EOFError("a member is longer than the layer")
        return data


class _Member(tarfile.TarInfo):
    """Looks at a header's size before tarfile reads what it announces into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = self.type not in tarfile.SUPPORTED_TYPES or self.type in _EXTENDED
        if self.size < 0 or (extended and self.size > _LARGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return cast("tarfile.TarInfo", super()._proc_member(archive))  # type: ignore[misc]


_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
