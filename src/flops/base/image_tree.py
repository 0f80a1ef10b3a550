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

from flops.base.debian.deb import DebEntryKind
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
#: Bytes of a member's extended header, which tarfile reads whole, and of all of a layer's.
_LARGEST_HEADER = 1024 * 1024
_MOST_HEADERS = 64 * 1024 * 1024
#: Bytes of a layer's global headers, which tarfile copies for each later member.
_LARGEST_GLOBAL = 16 * 1024
#: Members of all layers, and bytes of their names and targets, which are kept in memory: Debian with a desktop has 200,000.
_MOST_ENTRIES = 300_000
_MOST_NAMES = 64 * 1024 * 1024
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
class TreeNode:
    """What lies at a path."""

    kind: DebEntryKind
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

    def __init__(self, nodes: dict[str, TreeNode], layers: Sequence[Layer], blobs: BlobStore) -> None:
        self.nodes = nodes
        self._layers = tuple(layers)
        self._blobs = blobs

    @classmethod
    def read(cls, layers: Sequence[Layer], blobs: BlobStore) -> ImageTree:
        """Walk the layers bottom to top; BaseUnsuitable where one is no tar in a known compression, or they hold too much."""
        nodes: dict[str, TreeNode] = {}
        entries = names = 0
        for number, layer in enumerate(layers):
            changes = _Changes(number)
            with _opened(layer, blobs) as archive:
                for member in archive:
                    entries += 1
                    names += len(member.name) + len(member.linkname)
                    if entries > _MOST_ENTRIES or names > _MOST_NAMES:
                        raise BaseUnsuitable(
                            f"the layers of the base have more than {_MOST_ENTRIES} entries, or {_MOST_NAMES} bytes of names",
                            hint="squash it, and take out what learners don't need",
                        )
                    changes.note(member)
                    cast("Any", archive).members = []  # tarfile keeps them all otherwise
            nodes = changes.upon(nodes)
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
            if node is not None and node.kind is DebEntryKind.LINK:
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
        return found if found is not None and self.nodes[found].kind is DebEntryKind.FILE else None

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
        return sorted(path for path, node in self.nodes.items() if node.kind is DebEntryKind.FILE and accept(path))


class _Changes:
    """What one layer does to those below it, whose order inside the layer means nothing."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._added: dict[str, TreeNode] = {}
        self._gone: set[str] = set()
        self._emptied: set[str] = set()
        """Directories, of which nothing stays but themselves."""

    def note(self, member: tarfile.TarInfo) -> None:
        path = _clean(member.name)
        directory, _, name = path.rpartition("/")
        if name == _OPAQUE:
            self._emptied.add(directory)
        elif name.startswith(_WHITEOUT):
            self._gone.add(posixpath.join(directory, name.removeprefix(_WHITEOUT)))
        elif member.isdir():
            if path:
                self._added[path] = TreeNode(kind=DebEntryKind.DIRECTORY, layer=self._number, mode=member.mode)
        elif member.issym():
            self._added[path] = TreeNode(kind=DebEntryKind.LINK, layer=self._number, target=member.linkname)
        elif member.isreg():
            self._added[path] = TreeNode(
                kind=DebEntryKind.FILE, layer=self._number, mode=member.mode, size=member.size, stored_as=path
            )
        elif member.islnk():
            original = self._added.get(_clean(member.linkname))
            if original is not None:
                self._added[path] = replace(original)

    def upon(self, below: dict[str, TreeNode]) -> dict[str, TreeNode]:
        """The tree with this layer: one pass over it, however many directories are removed."""
        for path, node in self._added.items():
            if node.kind is not DebEntryKind.DIRECTORY and path in below and below[path].kind is DebEntryKind.DIRECTORY:
                self._emptied.add(path)
        if self._gone or self._emptied:
            below = {path: node for path, node in below.items() if not self._hides(path)}
        return below | self._added

    def _hides(self, path: str) -> bool:
        while path:
            if path in self._gone:
                return True
            path = path.rpartition("/")[0]
            if path in self._emptied:
                return True
        return False


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
            with stream, _Archive.open(fileobj=bounded, mode="r|") as archive:
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
        archive = cast("_Archive", archive)
        archive.headers += self.size * extended
        archive.global_headers += self.size * (self.type == tarfile.XGLTYPE)
        if archive.headers > _MOST_HEADERS or archive.global_headers > _LARGEST_GLOBAL:
            raise tarfile.ReadError("too many bytes of extended headers")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse()
        return cast("tarfile.TarInfo", super()._proc_member(archive))  # type: ignore[misc]

    def _refuse(self, *_: object) -> None:
        """The map of a sparse file may be as long as the layer, and is read into memory; no tool writes layers so."""
        raise tarfile.ReadError("a sparse file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse


class _Archive(tarfile.TarFile):
    tarinfo = _Member
    headers = 0
    """Bytes of extended headers so far."""
    global_headers = 0


_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
