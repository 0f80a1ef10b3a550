"""Layers made of wheels: every file at its final path, copied compressed from its wheel and checked (docs/decisions.md, D5)."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

from packaging.utils import canonicalize_name

from flops.errors import LayerConflict, LayerUnsafe, WheelUnsafe
from flops.oci.deflate import DeflateError
from flops.oci.layer import Layer
from flops.wheels.archive import LIMITS, ContentCheck, WheelArchive, WheelLimits
from flops.wheels.install import InstalledFile, Prefix, installed_files
from flops.wheels.zip_directory import STORED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from flops.locking.pylock import LockedWheel
    from flops.oci.layer import LayerWriter

#: Wheels of at least this many bytes get a layer of their own, while the number of layers allows it.
OWN_LAYER = 1024 * 1024
#: Number of layers that the other wheels share at most.
BUCKETS = 8
#: Number of layers for the wheels of one environment.
MOST_LAYERS = 72


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """A wheel on disk, its bytes verified against `sha256` when it was fetched."""

    path: Path
    sha256: str
    """64 hexadecimal digits."""
    filename: str
    """Its real name: a cache may store it under another."""

    @property
    def name(self) -> str:
        return canonicalize_name(self.filename.partition("-")[0])


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of a layer."""

    path: str
    digest: str
    """`sha256=...`, as RECORD writes it."""
    size: int


@dataclass(frozen=True, kw_only=True)
class PathConflict:
    """Two wheels with the same path and different bytes."""

    path: str
    kept: str
    """The distribution whose file is in the image: the last by name."""
    left_out: str


@dataclass(frozen=True, kw_only=True)
class WheelLicence:
    """A wheel's licence by its metadata."""

    sha256: str
    """Of the wheel, 64 hexadecimal digits."""
    licence: str
    """An SPDX expression, or a name; never empty."""


@dataclass(frozen=True, kw_only=True)
class WheelLayer(Layer):
    """A layer made of wheels, with what is in it."""

    files: tuple[FileEntry, ...] = ()
    """In the layer's order."""
    conflicts: tuple[PathConflict, ...] = ()
    """Inside this layer; `environment_conflicts` finds those between layers."""
    licences: tuple[WheelLicence, ...] = ()
    """Of the wheels that name one; kept here because a builder that reuses the layer may not have the wheels."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """KeyError or TypeError where a field is missing or unknown."""
        lists = {
            "files": tuple(FileEntry(**entry) for entry in value["files"]),
            "conflicts": tuple(PathConflict(**entry) for entry in value["conflicts"]),
            "licences": tuple(WheelLicence(**entry) for entry in value["licences"]),
        }
        return cls(**{**value, **lists})


def group(wheels: Iterable[LockedWheel], *, most: int = MOST_LAYERS) -> tuple[tuple[LockedWheel, ...], ...]:
    """Share out an environment's wheels over layers, independently of their order (docs/decisions.md, D5).

    Shared layers come first, then the wheels with layers of their own, by name. A wheel of unknown size counts as small.
    """
    ordered = sorted(wheels, key=lambda wheel: (canonicalize_name(wheel.name), wheel.sha256))
    large = [wheel for wheel in ordered if (wheel.size or 0) >= OWN_LAYER]
    largest = sorted(large, key=lambda wheel: -(wheel.size or 0))[: max(0, most - BUCKETS)]
    own = {wheel.sha256 for wheel in largest}
    buckets: dict[int, list[LockedWheel]] = {}
    for wheel in ordered:
        if wheel.sha256 not in own:
            buckets.setdefault(_bucket(wheel.name), []).append(wheel)
    shared = [tuple(buckets[number]) for number in sorted(buckets)]
    return (*shared, *((wheel,) for wheel in ordered if wheel.sha256 in own))


def _bucket(name: str) -> int:
    return hashlib.sha256(canonicalize_name(name).encode()).digest()[0] % BUCKETS


class Installation:
    """Open wheels, and where each of their files goes."""

    def __init__(self, wheels: Sequence[tuple[WheelFile, WheelArchive]], prefix: Prefix) -> None:
        self.wheels = wheels
        found = [file for _, archive in wheels for file in installed_files(archive, prefix)]
        winners: dict[str, InstalledFile] = {}
        self._losers: list[InstalledFile] = []
        conflicts = []
        for path, rivals in groupby(sorted(found, key=_by_path), key=lambda file: file.path):
            *losers, winner = rivals
            winners[path] = winner
            self._losers += losers
            conflicts += [
                PathConflict(path=path, kept=winner.archive.name, left_out=loser.archive.name)
                for loser in losers
                if loser.digest != winner.digest
            ]
        _refuse_parents(winners)
        self.files = tuple(sorted(winners.values(), key=lambda file: file.order))
        """In the layer's order."""
        self.conflicts = tuple(conflicts)

    @property
    def comment(self) -> str:
        """Name and version of each wheel, for the image's history."""
        return ", ".join(sorted(f"{archive.name} {archive.version}" for _, archive in self.wheels))

    def sources(self) -> dict[str, Callable[[], bytes]]:
        """Functions that read the importable Python sources, by path; they work while the wheels are open."""
        return {
            file.path: file.read
            for file in self.files
            if file.path.endswith(".py") and "/site-packages/" in file.path and ".dist-info/" not in file.path
        }

    def write(self, writer: LayerWriter) -> None:
        """Write the files; those that another wheel's file replaces are read and checked too."""
        for file in self.files:
            _write(file, writer)
        for file in self._losers:
            if not isinstance(file.content, bytes):
                for _ in file.archive.pieces(file.content):
                    pass


@contextmanager
def open_wheels(
    wheels: Iterable[WheelFile], *, prefix: str, python: str, limits: WheelLimits = LIMITS
) -> Iterator[Installation]:
    """Open and check wheels, to write or to read them; their order does not matter.

    `prefix` is `opt/flops/ml`, `python` the minor version. WheelUnsafe, WheelBomb, WheelRecord, LayerConflict.
    """
    with ExitStack() as stack:
        ordered = sorted(wheels, key=lambda wheel: (wheel.name, wheel.sha256))
        opened = [
            (wheel, stack.enter_context(WheelArchive.open(wheel.path, wheel.filename, limits))) for wheel in ordered
        ]
        yield Installation(opened, Prefix(path=prefix.strip("/"), python=python))


def write_layer(
    wheels: Sequence[WheelFile], *, prefix: str, python: str, writer: LayerWriter, limits: WheelLimits = LIMITS
) -> WheelLayer:
    """Write wheels into a layer of their own, and close it.

    Order: all files by final path; then each dist-info directory by path, its RECORD at its end.
    """
    with open_wheels(wheels, prefix=prefix, python=python, limits=limits) as installation:
        installation.write(writer)
        layer = writer.close(comment=installation.comment)
        licences = {wheel.sha256: archive.licence for wheel, archive in installation.wheels}
        return WheelLayer(
            **layer.to_json(),
            files=tuple(FileEntry(path=file.path, digest=file.digest, size=file.size) for file in installation.files),
            conflicts=installation.conflicts,
            licences=tuple(WheelLicence(sha256=key, licence=text) for key, text in sorted(licences.items()) if text),
        )


def environment_conflicts(layers: Iterable[WheelLayer]) -> tuple[PathConflict, ...]:
    """Paths that layers of one environment (bottom to top) have with different bytes: the uppermost is kept."""
    files: dict[str, tuple[str, str]] = {}
    conflicts = []
    for layer in layers:
        for file in layer.files:
            digest, below = files.get(file.path, (file.digest, ""))
            if digest != file.digest:
                conflicts.append(PathConflict(path=file.path, kept=layer.comment, left_out=below))
            files[file.path] = file.digest, layer.comment
    return tuple(conflicts)


def _by_path(file: InstalledFile) -> tuple[str, str, str, bool]:
    """Sort key of which the last wins: by distribution; scripts of entry points win over files of the wheel."""
    return file.path, file.archive.name, file.archive.version, isinstance(file.content, bytes)


def _refuse_parents(files: Mapping[str, InstalledFile]) -> None:
    directories: set[str] = set()
    for path, file in files.items():
        parent = path.rpartition("/")[0]
        while parent and parent not in directories:
            directories.add(parent)
            above = files.get(parent)
            if above is not None:
                raise LayerConflict(
                    f"{above.archive.filename} has a file {parent!r} where {file.archive.filename} has a directory",
                    hint="these two packages can't be installed together: remove one of them",
                )
            parent = parent.rpartition("/")[0]


def _write(file: InstalledFile, writer: LayerWriter) -> None:
    content = file.content
    try:
        if isinstance(content, bytes):
            writer.file(file.path, content, mode=file.mode, stored=True)
        elif content.method == STORED:
            pieces = file.archive.pieces(content)
            writer.file(file.path, pieces, size=content.size, mode=file.mode, stored=True)
        else:
            check = ContentCheck(file.archive, content)
            chunks = file.archive.chunks(content)
            writer.deflated(file.path, chunks, size=content.size, crc=content.crc, mode=file.mode, check=check)
            check.end()
    except LayerUnsafe as error:
        if isinstance(error.__cause__, DeflateError) and not isinstance(content, bytes):
            file.archive.refuse_content(content, error.__cause__)
        raise WheelUnsafe(f"{file.archive.filename}: {error.message}", hint=error.hint) from error
