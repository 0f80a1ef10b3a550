"""The final paths of a wheel's files, found by pypa/installer with a destination that only lists files.

Nothing is unpacked. Each listed file is still a member of its wheel, or was made here (scripts, INSTALLER, RECORD).
"""

from __future__ import annotations

import configparser
import io
import posixpath
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO, cast

from installer import install
from installer.destinations import WheelDestination
from installer.exceptions import InstallerError
from installer.records import Hash, RecordEntry
from installer.scripts import Script
from installer.sources import WheelSource
from installer.utils import SCHEME_NAMES, construct_record_file, fix_shebang, parse_entrypoints

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from installer.scripts import ScriptSection
    from installer.sources import WheelContentElement
    from installer.utils import Scheme

    from flops.wheels.archive import WheelArchive
    from flops.wheels.zip_directory import ZipMember

INSTALLER = "flops"
_SHEBANG = b"#!python"
#: Entry points, each of which becomes a file; the largest packages have some dozen.
_MOST_SCRIPTS = 1000
#: Files that make the prefix a Python environment; no wheel may replace them.
_RESERVED = ("pyvenv.cfg", "bin", "bin/python", "bin/python3")


@dataclass(frozen=True, kw_only=True)
class InstalledFile:
    """One file of a wheel at its final path."""

    path: str
    archive: WheelArchive
    content: ZipMember | bytes
    """A member of the wheel, or bytes that were made for this installation."""
    mode: int
    """0644 or 0755: a wheel's other mode bits are dropped."""
    digest: str
    """`sha256=...` as RECORD writes it (or the wheel's own algorithm)."""
    rank: int
    """0 for most files, 1 in a dist-info directory, 2 for its RECORD."""

    @property
    def order(self) -> tuple[bool, str, bool, str]:
        """Sort key: files by final path, then dist-info directories by path, each with its RECORD last."""
        return self.rank > 0, posixpath.dirname(self.path) if self.rank else "", self.rank > 1, self.path

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.size

    def read(self) -> bytes:
        """The content, checked; for small files."""
        return self.content if isinstance(self.content, bytes) else self.archive.read(self.content)


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """An environment in an image."""

    path: str
    """Without a leading slash: `opt/flops/ml`."""
    python: str
    """The minor version: `3.11`."""

    @property
    def site_packages(self) -> str:
        return f"{self.path}/lib/python{self.python}/site-packages"

    @property
    def interpreter(self) -> str:
        return f"/{self.path}/bin/python"

    def scheme(self, name: str, distribution: str) -> str:
        """The directory of an installation scheme, as virtual environments have it."""
        return {
            "purelib": self.site_packages,
            "platlib": self.site_packages,
            "headers": f"{self.path}/include/site/python{self.python}/{distribution}",
            "scripts": f"{self.path}/bin",
            "data": self.path,
        }[name]


def installed_files(archive: WheelArchive, prefix: Prefix) -> tuple[InstalledFile, ...]:
    """All files that this wheel puts under a prefix, sorted; WheelUnsafe where it can't be installed.

    A path comes twice if two schemes lead to it. The wheel's own INSTALLER and REQUESTED are left out, and signatures of
    RECORD (RECORD.jws, RECORD.p7s) too, since a new RECORD is written.
    """
    _check_entry_points(archive)
    _check_data(archive)
    destination = _Destination(archive, prefix)
    try:
        install(_Source(archive), destination, {"INSTALLER": f"{INSTALLER}\n".encode()})
    except (InstallerError, ValueError, KeyError, TypeError) as error:
        # installer's errors hold the reason last, behind an object that prints as a memory address
        reason = error.args[-1] if error.args else type(error).__name__
        archive.refuse(f"it can't be installed ({str(reason)[:300]})", error)
    return tuple(sorted(destination.files, key=lambda file: file.order))


def _check_entry_points(archive: WheelArchive) -> None:
    """Names become files in bin and targets become Python code; installer does not check them (or only by assertion)."""
    text = archive.document("entry_points.txt")
    if text is None:
        return
    try:
        points = list(islice(parse_entrypoints(text), _MOST_SCRIPTS + 1))
    except (AssertionError, configparser.Error, ValueError) as error:
        archive.refuse("its entry_points.txt can't be read", error)
    if len(points) > _MOST_SCRIPTS:
        archive.refuse(f"it has more than {_MOST_SCRIPTS} entry points")
    for name, module, attribute, _ in points:
        if "/" in name or "\\" in name or name in {"", ".", ".."} or not name.isprintable() or name.startswith(".wh."):
            archive.refuse(f"its entry point {name[:200]!r} can't be the name of a script")
        if not all(word.isidentifier() for word in f"{module}.{attribute}".split(".")):
            archive.refuse(f"its entry point {name[:200]!r} names no Python object")


def _check_data(archive: WheelArchive) -> None:
    """Refuse paths that only begin like the data directory: installer would loop for ever on them."""
    for name in archive.members:
        parts = name.split("/")
        if not name.startswith(archive.data_dir):
            continue
        if parts[0] != archive.data_dir or len(parts) < 3 or parts[1] not in SCHEME_NAMES:  # noqa: PLR2004
            archive.refuse(f"{name[:200]!r} belongs to no installation scheme")


class _MemberStream(io.RawIOBase):
    """Carries a member through installer, which reads it only to rewrite a script's first line."""

    def __init__(self, archive: WheelArchive, member: ZipMember) -> None:
        self.archive = archive
        self.member = member


class _Source(WheelSource):
    """Gives installer a wheel's members in the order of their paths."""

    def __init__(self, archive: WheelArchive) -> None:
        distribution, _, version = archive.dist_info.removesuffix(".dist-info").partition("-")
        super().__init__(distribution, version)
        self._archive = archive

    @property
    def dist_info_filenames(self) -> list[str]:
        base = f"{self._archive.dist_info}/"
        return [name.removeprefix(base) for name in self._archive.members if name.startswith(base)]

    def read_dist_info(self, filename: str) -> str:
        text = self._archive.document(filename)
        if text is None:
            self._archive.refuse(f"it has no {filename}")
        return text

    def get_contents(self) -> Iterator[WheelContentElement]:
        ours = {f"{self._archive.dist_info}/{name}" for name in ("INSTALLER", "REQUESTED")}
        for name, member in sorted(self._archive.members.items()):
            if name in self._archive.unrecorded or name in ours:
                continue
            row = (name, str(self._archive.records[name]), str(member.size))
            yield row, cast("BinaryIO", _MemberStream(self._archive, member)), member.is_executable


class _Destination(WheelDestination):
    """Lists each file, and returns its row for RECORD without reading anything but scripts."""

    def __init__(self, archive: WheelArchive, prefix: Prefix) -> None:
        self._archive = archive
        self._prefix = prefix
        self.files: list[InstalledFile] = []
        self._distribution = archive.dist_info.partition("-")[0]

    def write_script(self, name: str, module: str, attr: str, section: ScriptSection) -> RecordEntry:
        name, data = Script(name, module, attr, section).generate(self._prefix.interpreter, "posix")
        return self._made(cast("Scheme", "scripts"), name, data, mode=0o755)

    def write_file(
        self, scheme: Scheme, path: str | os.PathLike[str], stream: BinaryIO, is_executable: bool
    ) -> RecordEntry:
        path = str(path)
        if not isinstance(stream, _MemberStream):
            return self._made(scheme, path, stream.read(), mode=0o644)
        member = stream.member
        mode = 0o755 if is_executable or scheme == "scripts" else 0o644
        if scheme == "scripts" and self._archive.starts_with(member, _SHEBANG):
            with fix_shebang(io.BytesIO(self._archive.read(member)), self._prefix.interpreter) as fixed:
                return self._made(scheme, path, fixed.read(), mode=mode)
        return self._list(scheme, path, member, mode, str(self._archive.records[member.name]))

    def finalize_installation(
        self, scheme: Scheme, record_file_path: str, records: Iterable[tuple[Scheme, RecordEntry]]
    ) -> None:
        root = self._prefix.scheme(scheme, self._distribution)

        def relative(other: Scheme) -> str | None:
            directory = self._prefix.scheme(other, self._distribution)
            return None if directory == root else posixpath.relpath(directory, root) + "/"

        rows = {(one, entry.path): (one, entry) for one, entry in reversed(list(records))}
        with construct_record_file(reversed(rows.values()), relative) as stream:
            self._made(scheme, record_file_path, stream.read(), mode=0o644)

    def _made(self, scheme: Scheme, path: str, data: bytes, *, mode: int) -> RecordEntry:
        digest = urlsafe_b64encode(sha256(data).digest()).decode().rstrip("=")
        return self._list(scheme, path, data, mode, f"sha256={digest}")

    def _list(self, scheme: Scheme, path: str, content: ZipMember | bytes, mode: int, digest: str) -> RecordEntry:
        final = f"{self._prefix.scheme(scheme, self._distribution)}/{path}"
        inside = final.removeprefix(f"{self._prefix.path}/")
        if inside in (*_RESERVED, f"bin/python{self._prefix.python}"):
            self._archive.refuse(f"{path[:200]!r} would replace the environment's {inside}")
        file = InstalledFile(
            path=final, archive=self._archive, content=content, mode=mode, digest=digest, rank=self._rank(final)
        )
        self.files.append(file)
        return RecordEntry(path, Hash.parse(digest), file.size)

    def _rank(self, path: str) -> int:
        directory = f"{self._prefix.site_packages}/{self._archive.dist_info}/"
        return 0 if not path.startswith(directory) else 2 if path == f"{directory}RECORD" else 1
