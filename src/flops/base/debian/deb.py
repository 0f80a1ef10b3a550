"""The .deb format (deb(5)): an ar archive of `debian-binary`, `control.tar.*` and `data.tar.*`; no script of it ever runs."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import IO, TYPE_CHECKING, BinaryIO, cast

import zstandard

from flops.errors import BaseUnavailable, LayerUnsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_MAGIC = b"!<arch>\n"
_HEADER = 60
_PIECE = 1024 * 1024
#: A control archive holds a few small texts.
_CONTROL_LIMIT = 16 * 1024 * 1024


#: What the decompressors and tarfile say of bytes that they can't read.
_BROKEN = (
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    zstandard.ZstdError,
    gzip.BadGzipFile,
    EOFError,
    ValueError,
    OverflowError,
)


class DebEntryKind(Enum):
    DIRECTORY = "directory"
    FILE = "file"
    LINK = "link"


@dataclass(frozen=True, kw_only=True)
class DebEntry:
    """A member of a package's file tree."""

    path: str
    """Relative, as the package has it: `lib/x86_64-linux-gnu/libc.so.6`."""
    kind: DebEntryKind
    mode: int
    size: int = 0
    target: str = ""
    """Of a symbolic link."""
    offset: int = 0
    """Of a file's bytes in the unpacked data archive; a hard link has those of the file it names."""

    @property
    def executable(self) -> bool:
        return bool(self.mode & 0o111)


class _Window:
    """A part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= len(data)
        return data


def read_control(path: Path) -> bytes:
    """The package's `control` stanza (deb-control(5)), ending in one newline."""
    try:
        with path.open("rb") as file:
            name, window = _member(path, file, "control.tar")
            with _decompressed(path, name, window) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if member.name.removeprefix("./") == "control" and member.isreg() and member.size < _CONTROL_LIMIT:
                        text = cast("IO[bytes]", archive.extractfile(member)).read()
                        return text.rstrip(b"\n") + b"\n"
    except _BROKEN as error:
        raise _broken(path, str(error)) from error
    raise _broken(path, "it has no control file")


def unpack_data(path: Path, spool: BinaryIO) -> list[DebEntry]:
    """Decompress the file tree into `spool` (an empty, seekable file) and list it in the archive's order.

    A file's bytes are then `spool[offset:offset + size]`. LayerUnsafe for a path that leaves the tree and for devices.
    """
    try:
        with path.open("rb") as file:
            name, window = _member(path, file, "data.tar")
            with _decompressed(path, name, window) as stream:
                shutil.copyfileobj(stream, spool, _PIECE)
        spool.seek(0)
        with tarfile.open(fileobj=spool, mode="r:") as archive:
            return list(_entries(path, archive))
    except _BROKEN as error:
        raise _broken(path, str(error)) from error


def _entries(package: Path, archive: tarfile.TarFile) -> Iterator[DebEntry]:
    files: dict[str, DebEntry] = {}
    for member in archive:
        name = _clean(package, member.name)
        if not name:
            continue
        if member.isdir():
            yield DebEntry(path=name, kind=DebEntryKind.DIRECTORY, mode=member.mode)
        elif member.issym():
            yield DebEntry(path=name, kind=DebEntryKind.LINK, mode=0o777, target=member.linkname)
        elif member.isreg():
            files[name] = DebEntry(
                path=name, kind=DebEntryKind.FILE, mode=member.mode, size=member.size, offset=member.offset_data
            )
            yield files[name]
        elif member.islnk() and (original := files.get(_clean(package, member.linkname))):
            files[name] = DebEntry(
                path=name, kind=DebEntryKind.FILE, mode=original.mode, size=original.size, offset=original.offset
            )
            yield files[name]
        else:
            raise LayerUnsafe(f"{package.name} holds {member.name!r}, which is neither file, directory nor link")


def _clean(package: Path, name: str) -> str:
    """Without `./` and a trailing slash; empty for the root itself."""
    path = name.removeprefix("./").rstrip("/")
    if path in ("", "."):
        return ""
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise LayerUnsafe(f"{package.name} holds the path {name!r}, which leaves its tree")
    return path


def _member(path: Path, file: BinaryIO, prefix: str) -> tuple[str, _Window]:
    """The ar member (ar(5), common format) whose name begins with `prefix`."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise _broken(path, "it is not an ar archive")
    while len(header := file.read(_HEADER)) == _HEADER:
        name, size = header[:16].decode("ascii", "replace").rstrip(" /"), header[48:58].strip()
        if header[58:] != b"`\n" or not size.isdigit():
            raise _broken(path, "a member's header is damaged")
        if name.startswith(prefix):
            return name, _Window(file, int(size))
        file.seek(int(size) + int(size) % 2, 1)
    raise _broken(path, f"it has no {prefix}")


def _decompressed(path: Path, name: str, window: _Window) -> IO[bytes]:
    raw = cast("IO[bytes]", window)
    openers: dict[str, Callable[[], IO[bytes]]] = {
        "xz": lambda: lzma.LZMAFile(raw),  # noqa: SIM115 - the caller closes it
        "gz": lambda: cast("IO[bytes]", gzip.GzipFile(fileobj=raw)),
        "zst": lambda: zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True),
    }
    opener = openers.get(name.rpartition(".")[2])
    if opener is None:
        raise _broken(path, f"{name} is compressed in a way that is not known here")
    return opener()


def _broken(path: Path, what: str) -> BaseUnavailable:
    return BaseUnavailable(f"{path.name} is not a Debian package: {what}", hint="delete it and try again")
