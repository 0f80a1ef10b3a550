"""Wheels become a layer: every file at its final path, spliced from its wheel and checked on the way (docs/decisions.md, D5)."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

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

    from flops.oci.layer import LayerWriter

#: A wheel of this many bytes or more is a layer of its own, while there is room for it.
OWN_LAYER = 1024 * 1024
#: The others share so many layers at most.
BUCKETS = 8
#: Layers that the wheels of one environment may have in all.
MOST_LAYERS = 72


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """A wheel on disk, its bytes verified against `sha256` when it was fetched."""

    path: Path
    sha256: str
    """64 hexadecimal digits."""
    filename: str
    """Its own name: a cache may store it under another."""

    @property
    def name(self) -> str:
        return canonicalize_name(self.filename.partition("-")[0])

    @property
    def size(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of a layer, as proofs and comparisons need it."""

    path: str
    digest: str
    """`sha256=...`, as RECORD writes it."""
    size: int


@dataclass(frozen=True, kw_only=True)
class PathConflict:
    """Two wheels with the same path and different bytes."""

    path: str
    kept: str
    """The distribution whose file stands in the image: the last by name."""
    left_out: str


@dataclass(frozen=True, kw_only=True)
class WheelLicence:
    """What a wheel's metadata tell of its licence."""

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
    """Of the wheels that tell one, by hash: whoever reuses the layer may not have the wheels."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """KeyError or TypeError where a field is missing or unknown."""
        lists = {
            "files": tuple(FileEntry(**entry) for entry in value["files"]),
            "conflicts": tuple(PathConflict(**entry) for entry in value["conflicts"]),
            "licences": tuple(WheelLicence(**entry) for entry in value["licences"]),
        }
        return cls(**{**value, **lists})


class Wheel(Protocol):
    """What grouping needs to know; a lock's wheels and those on disk both do."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int | None: ...


_W = TypeVar("_W", bound=Wheel)


def group(wheels: Iterable[_W], *, most: int = MOST_LAYERS) -> tuple[tuple[_W, ...], ...]:
    """Share out an environment's wheels over layers, independently of their order (docs/decisions.md, D5).

    Buckets come first, then the wheels that are layers of their own, by name. A wheel of unknown size counts as small.
    """
    ordered = sorted(wheels, key=lambda wheel: (canonicalize_name(wheel.name), wheel.sha256))
    large = [wheel for wheel in ordered if (wheel.size or 0) >= OWN_LAYER]
    largest = sorted(large, key=lambda wheel: -(wheel.size or 0))[: max(0, most - BUCKETS)]
    own = {wheel.sha256 for wheel in largest}
    buckets: dict[int, list[_W]] = {}
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
        found.sort(key=_by_path)
        #: The files of the layer, in its order; what loses is in `_losers`.
        self.files: tuple[InstalledFile, ...] = ()
        self.conflicts: tuple[PathConflict, ...] = ()
        self._losers: list[InstalledFile] = []
        self._settle(found)

    @property
    def comment(self) -> str:
        """Name and version of each wheel, for the image's history."""
        return ", ".join(sorted(f"{archive.name} {archive.version}" for _, archive in self.wheels))

    def sources(self) -> dict[str, Callable[[], bytes]]:
        """Readers of all Python sources that can be imported, by path; valid while the wheels are open."""
        return {
            file.path: file.read
            for file in self.files
            if file.path.endswith(".py") and "/site-packages/" in file.path and ".dist-info/" not in file.path
        }

    def write(self, writer: LayerWriter) -> None:
        """Write the files; those that lost to another wheel's are read and checked all the same."""
        for file in self.files:
            _write(file, writer)
        for file in self._losers:
            if not isinstance(file.content, bytes):
                for _ in file.archive.pieces(file.content):
                    pass

    def _settle(self, found: Iterable[InstalledFile]) -> None:
        winners: dict[str, InstalledFile] = {}
        conflicts = []
        for path, group_of in groupby(found, key=lambda file: file.path):
            *losers, winner = group_of
            winners[path] = winner
            self._losers += losers
            conflicts += [
                PathConflict(path=path, kept=winner.archive.name, left_out=loser.archive.name)
                for loser in losers
                if loser.digest != winner.digest
            ]
        _refuse_parents(winners)
        self.files = tuple(sorted(winners.values(), key=lambda file: file.order))
        self.conflicts = tuple(conflicts)


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
        told = {wheel.sha256: archive.licence for wheel, archive in installation.wheels}
        return WheelLayer(
            **layer.to_json(),
            files=tuple(FileEntry(path=file.path, digest=file.digest, size=file.size) for file in installation.files),
            conflicts=installation.conflicts,
            licences=tuple(WheelLicence(sha256=key, licence=text) for key, text in sorted(told.items()) if text),
        )


def environment_conflicts(layers: Iterable[WheelLayer]) -> tuple[PathConflict, ...]:
    """Paths that several layers of one environment (bottom to top) have with different bytes: the upper one is seen."""
    seen: dict[str, tuple[str, str]] = {}
    conflicts = []
    for layer in layers:
        for file in layer.files:
            digest, below = seen.get(file.path, (file.digest, ""))
            if digest != file.digest:
                conflicts.append(PathConflict(path=file.path, kept=layer.comment, left_out=below))
            seen[file.path] = file.digest, layer.comment
    return tuple(conflicts)


def _by_path(file: InstalledFile) -> tuple[str, str, str, bool]:
    """The last of one path wins: by distribution, and what was made here (an entry point's script) over what lay there."""
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
