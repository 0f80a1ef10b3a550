"""Reads an untrusted wheel: every name, size and offset is checked before the first byte is used."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import HeaderParser
from typing import TYPE_CHECKING, NoReturn

from installer.records import Hash, InvalidRecordEntry, RecordEntry, parse_record_file
from isal import isal_zlib
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from flops.errors import BuildError, WheelBomb, WheelRecord, WheelUnsafe
from flops.oci.deflate import DeflateError, DeflateOverlong, inflate
from flops.wheels.zip_directory import STORED, ZipError, ZipMember, ZipOverlap, ZipTooLarge, read_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


#: Compressed bytes are read in pieces of this size.
_CHUNK = 256 * 1024
#: Largest member that is read as a whole (RECORD, WHEEL, entry points, scripts whose shebang is rewritten), in bytes.
_LARGEST_DOCUMENT = 64 * 1024 * 1024
#: Largest other text that is read as a whole (WHEEL, entry points), in bytes.
_LARGEST_TEXT = 1024 * 1024
#: Bytes of a row in RECORD beside its path, and rows that are no file's: some wheels list directories.
_ROW, _MORE_ROWS = 256, 1000
#: The hash algorithms that the wheel specification allows.
_ALGORITHMS = frozenset({"sha256", "sha384", "sha512"})
#: Largest METADATA that is searched for a licence, in bytes.
_LARGEST_METADATA = 4 * 1024 * 1024
#: Bytes of METADATA's fields, without its body.
_LARGEST_HEADERS = 1024 * 1024
#: Problems of a RECORD that one message names.
_MOST_NAMED = 5
_LONGEST_NAME = 1024
_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True)
class WheelLimits:
    """Limits of a wheel; a larger one is a WheelBomb."""

    members: int = 200_000
    size: int = 32 * 1024**3
    """Bytes of all members, inflated."""
    ratio: int = 100
    """Inflated to compressed bytes, of the whole."""
    ratio_from: int = 256 * 1024**2
    """The ratio is checked from this many inflated bytes on, since small files of zeros are harmless."""


LIMITS = WheelLimits()


class WheelArchive:
    """An open wheel whose directory and RECORD are checked when it is opened, and its content when it is read.

    Errors are WheelUnsafe, WheelBomb and WheelRecord.
    """

    def __init__(self, descriptor: int, filename: str, limits: WheelLimits) -> None:
        self.filename = filename
        self._descriptor = descriptor
        length = os.fstat(descriptor).st_size
        try:
            members = read_directory(self._read, length, most=limits.members)
        except (ZipOverlap, ZipTooLarge) as error:
            raise WheelBomb(f"{filename}: {error}", hint=_HINT) from error
        except ZipError as error:
            self.refuse(str(error), error)
        self._check_names(members)
        self._check_sizes(members, length, limits)
        self.members: Mapping[str, ZipMember] = {member.name: member for member in members if not member.is_directory}
        self.dist_info = self._dist_info()
        self.records: Mapping[str, Hash] = {}  # RECORD itself has no hash
        self.records = self._records()

    @classmethod
    @contextmanager
    def open(cls, path: Path, filename: str | None = None, limits: WheelLimits = LIMITS) -> Iterator[WheelArchive]:
        """Open a wheel; `filename` is its real name if the path has another."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BuildError(f"can't read the wheel {filename or path.name}: {error.strerror}") from error
        try:
            yield cls(descriptor, filename or path.name, limits)
        finally:
            os.close(descriptor)

    @property
    def name(self) -> str:
        """The distribution's name in normal form (PEP 503)."""
        return canonicalize_name(self.dist_info.removesuffix(".dist-info").partition("-")[0])

    @property
    def version(self) -> str:
        return self.dist_info.removesuffix(".dist-info").partition("-")[2]

    @property
    def data_dir(self) -> str:
        return self.dist_info.removesuffix(".dist-info") + ".data"

    def refuse(self, reason: str, cause: Exception | None = None) -> NoReturn:
        raise WheelUnsafe(f"{self.filename}: {reason}", hint=_HINT) from cause

    def refuse_content(self, member: ZipMember, cause: DeflateError) -> NoReturn:
        kind = WheelBomb if isinstance(cause, DeflateOverlong) else WheelUnsafe
        raise kind(f"{self.filename}: {member.name!r}: {cause}", hint=_HINT) from cause

    def chunks(self, member: ZipMember) -> Iterator[bytes]:
        """A member's bytes as they are stored in the wheel."""
        for offset in range(0, member.compressed_size, _CHUNK):
            yield self._read(member.start + offset, min(_CHUNK, member.compressed_size - offset))

    def pieces(self, member: ZipMember) -> Iterator[bytes]:
        """A member's content, checked against size, CRC and RECORD; it can be trusted only after the last piece."""
        check = ContentCheck(self, member)
        try:
            for piece in self.chunks(member) if member.method == STORED else inflate(self.chunks(member), member.size):
                check(piece)
                yield piece
        except DeflateError as error:
            self.refuse_content(member, error)
        check.end()

    def read(self, member: ZipMember) -> bytes:
        """A small member's whole content."""
        if member.size > _LARGEST_DOCUMENT:
            self.refuse(f"{member.name!r} is too large for its purpose ({member.size} bytes)")
        return b"".join(self.pieces(member))

    def starts_with(self, member: ZipMember, start: bytes) -> bool:
        """Whether a member's content begins with these bytes; reads only as much as needed."""
        head = b""
        for piece in self.pieces(member):
            head += piece[: len(start)]
            if len(head) >= len(start):
                break
        return head.startswith(start)

    def document(self, name: str) -> str | None:
        """A text file in the dist-info directory; None if it is absent."""
        member = self.members.get(f"{self.dist_info}/{name}")
        if member is not None and member.size > _LARGEST_TEXT and name != "RECORD":
            self.refuse(f"{name} is too large for its purpose ({member.size} bytes)")
        try:
            return None if member is None else self.read(member).decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(f"{name} is not UTF-8", error)

    @property
    def licence(self) -> str:
        """By METADATA, which need not be UTF-8 and may be missing; see `licence`."""
        member = self.members.get(f"{self.dist_info}/METADATA")
        return licence(self.read(member)) if member is not None and member.size <= _LARGEST_METADATA else ""

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except (OSError, OverflowError) as error:
            raise BuildError(f"can't read the wheel {self.filename}: {error}") from error

    def _check_names(self, members: tuple[ZipMember, ...]) -> None:
        files: set[str] = set()
        for member in members:
            name = member.name
            parts = name.removesuffix("/").split("/")
            if name.startswith("/") or "" in parts or "." in parts or ".." in parts or _DRIVE.match(name):
                self.refuse(f"{name[:200]!r} is not a path inside the wheel")
            if len(name) > _LONGEST_NAME or "\\" in name or _CONTROL.search(name):
                self.refuse(f"{name[:200]!r} can't be the name of a file in a wheel")
            if any(part.startswith(".wh.") for part in parts):
                self.refuse(f"{name[:200]!r} would delete files of lower layers")
            if name in files:
                self.refuse(f"{name[:200]!r} appears twice")
            files.add(name)
        for directory in {name.rpartition("/")[0] for name in files}:
            parent = directory
            while parent:
                if parent in files:
                    self.refuse(f"{parent[:200]!r} is both a file and a directory")
                parent = parent.rpartition("/")[0]

    def _check_sizes(self, members: tuple[ZipMember, ...], length: int, limits: WheelLimits) -> None:
        size = sum(member.size for member in members)
        if size > limits.size:
            raise WheelBomb(f"{self.filename}: {size} bytes inflated, and {limits.size} are allowed", hint=_HINT)
        if size > limits.ratio_from and size > limits.ratio * length:
            raise WheelBomb(f"{self.filename}: {length} bytes inflate to {size}", hint=_HINT)

    def _dist_info(self) -> str:
        """The only top-level *.dist-info directory, which must fit the wheel's file name."""
        tops = {name.partition("/")[0] for name in self.members if "/" in name}
        found = sorted(top for top in tops if top.endswith(".dist-info"))
        if len(found) != 1:
            self.refuse(f"it has {len(found)} dist-info directories")
        name, _, version = found[0].removesuffix(".dist-info").partition("-")
        named, _, rest = self.filename.partition("-")
        if canonicalize_name(name) != canonicalize_name(named) or not _same_version(version, rest.partition("-")[0]):
            self.refuse(f"its name does not fit its {found[0]}")
        return found[0]

    def _records(self) -> Mapping[str, Hash]:
        """The hash of each file by path, after a comparison of RECORD with the members in both directions."""
        record = self.members.get(f"{self.dist_info}/RECORD")
        rows = 2 * len(self.members) + _MORE_ROWS
        if record is not None and record.size > rows * _ROW + sum(map(len, self.members)) * 4:
            raise WheelRecord(f"{self.filename}: its RECORD has more bytes than its files can need", hint=_HINT)
        text = self.document("RECORD")
        if text is None:
            raise WheelRecord(f"{self.filename}: it has no RECORD", hint=_HINT)
        problems: list[str] = []
        records: dict[str, RecordEntry] = {}
        try:
            for number, row in enumerate(parse_record_file(io.StringIO(text, newline=""))):
                if number > rows:
                    raise WheelRecord(f"{self.filename}: its RECORD has more rows than it has files", hint=_HINT)
                entry = RecordEntry.from_elements(*row)
                if records.setdefault(entry.path, entry) != entry:
                    problems.append(f"{entry.path!r} has two different rows")
        except (InvalidRecordEntry, ValueError, csv.Error) as error:
            raise WheelRecord(f"{self.filename}: its RECORD can't be read", hint=_HINT) from error
        unrecorded = self.unrecorded
        for name in self.members.keys() - unrecorded:
            problems += _row_problems(self.members[name], records.get(name))
        phantoms = [path for path in records if path not in self.members and not path.endswith("/")]
        problems += [f"{path!r} is listed and absent" for path in phantoms if path not in unrecorded]
        if problems:
            shown = "; ".join(sorted(problems)[:_MOST_NAMED])
            more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
            raise WheelRecord(f"{self.filename}: its RECORD is wrong: {shown}{more}"[:2000], hint=_HINT)
        return {path: entry.hash_ for path, entry in records.items() if path not in unrecorded and entry.hash_}

    @property
    def unrecorded(self) -> frozenset[str]:
        """RECORD and its signatures, which have no hash in RECORD."""
        return frozenset(f"{self.dist_info}/{name}" for name in ("RECORD", "RECORD.jws", "RECORD.p7s"))


class ContentCheck:
    """Compares a member's content, piece by piece, with its size, its CRC and its row in RECORD."""

    def __init__(self, archive: WheelArchive, member: ZipMember) -> None:
        self._archive = archive
        self._member = member
        self._expected = archive.records.get(member.name)
        self._hash = hashlib.new(self._expected.name if self._expected is not None else "sha256")
        self._size = 0
        self._crc = 0

    def __call__(self, piece: bytes) -> None:
        self._size += len(piece)
        self._hash.update(piece)
        self._crc = isal_zlib.crc32(piece, self._crc)

    def end(self) -> None:
        """WheelUnsafe where size or CRC differ, WheelRecord where the hash does."""
        if (self._size, self._crc) != (self._member.size, self._member.crc):
            self._archive.refuse(f"{self._member.name!r} is damaged: its size or CRC differs")
        digest = urlsafe_b64encode(self._hash.digest()).decode().rstrip("=")
        if self._expected is not None and digest != self._expected.value.rstrip("="):
            raise WheelRecord(f"{self._archive.filename}: {self._member.name!r} is not what RECORD says", hint=_HINT)


_HINT = "the file on the index is damaged or hostile: pin another version of the package"


def _same_version(one: str, other: str) -> bool:
    """A wheel's name and its directory may spell a version differently (`1.0_1`, `1.0-1`)."""
    try:
        return Version(one.replace("_", "-")) == Version(other.replace("_", "-"))
    except InvalidVersion:
        return one == other


def _row_problems(member: ZipMember, entry: RecordEntry | None) -> list[str]:
    name = member.name
    if entry is None:
        return [f"{name!r} is not listed"]
    if entry.hash_ is None:
        return [f"{name!r} has no hash"]
    if entry.hash_.name not in _ALGORITHMS:
        return [f"{name!r} has a hash by {entry.hash_.name[:20]!r}"]
    if entry.size not in {None, member.size}:  # the size is optional
        return [f"{name!r} has the size {entry.size} and is {member.size} bytes long"]
    return []


# --- licences ---------------------------------------------------------------------------------------------------------
#: A longer field holds a licence's text, not its name.
_LONGEST = 100
#: Classifiers that mean exactly one SPDX licence; others count by their last part.
_CLASSIFIERS = {
    "Academic Free License (AFL)": "AFL-3.0",
    "Apache Software License": "Apache-2.0",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "Zope Public License": "ZPL-2.1",
}
_PREFIX = "License :: "


def licence(metadata: bytes) -> str:
    """A wheel's licence by its METADATA: an SPDX expression or a name; empty if it names none.

    The first of these counts: License-Expression, one clear classifier, a License field of one short line.
    """
    text = metadata.decode("utf-8", "replace").replace("\r\n", "\n").partition("\n\n")[0]
    headers = HeaderParser().parsestr(text[:_LARGEST_HEADERS])
    expression = _short(headers.get("License-Expression"))
    if expression:
        return expression
    classified = [
        line.removeprefix(_PREFIX).rpartition(" :: ")[2]
        for line in map(str, headers.get_all("Classifier") or [])
        if line.startswith(_PREFIX) and line != f"{_PREFIX}OSI Approved"
    ]
    if len(classified) == 1 and classified[0] in _CLASSIFIERS:
        return _CLASSIFIERS[classified[0]]
    return _short(headers.get("License")) or _short("; ".join(classified))


def _short(value: object) -> str:
    text = str(value or "").strip()
    return text if len(text) <= _LONGEST and not _CONTROL.search(text) and text.upper() != "UNKNOWN" else ""
