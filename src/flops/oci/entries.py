"""Entries of a layer that comes from files rather than wheels: values, and the one function that writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flops.oci.layer import LayerWriter

#: Bytes read at a time.
PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Directory:
    path: str
    owner: int = 0
    """uid and gid."""
    mode: int = 0o755


@dataclass(frozen=True, kw_only=True)
class File:
    path: str
    data: bytes | Path
    """The content, or where it lies on this machine."""
    executable: bool = False
    owner: int = 0


@dataclass(frozen=True, kw_only=True)
class Link:
    path: str
    target: str


Entry = Directory | File | Link


def write_entries(entries: Iterable[Entry], writer: LayerWriter) -> None:
    """Write the entries sorted by path, whatever order they came in."""
    for entry in sorted(entries, key=lambda entry: entry.path):
        match entry:
            case Directory():
                writer.directory(entry.path, mode=entry.mode, uid=entry.owner, gid=entry.owner)
            case Link():
                writer.link(entry.path, entry.target)
            case File(data=Path() as source):
                size = source.stat().st_size
                writer.file(entry.path, _pieces(source), size=size, mode=_mode(entry), uid=entry.owner, gid=entry.owner)
            case File(data=bytes() as data):
                writer.file(entry.path, data, mode=_mode(entry), uid=entry.owner, gid=entry.owner)


def _mode(entry: File) -> int:
    return 0o755 if entry.executable else 0o644


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
