"""The central directory of a zip (APPNOTE.TXT 6.3), read strictly: bytes in, values out.

Python's zipfile trusts the directory, and does not check whether members overlap or have other values in their own
headers. Then programs that read the one or the other unpack different files, so here both must agree.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<2H")
_LONGEST_COMMENT = 0xFFFF
_LARGEST_DIRECTORY = 64 * 1024 * 1024
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 0x1, 0x8, 0x800
#: Flags that change how a member is read; both headers of a member must have the same.
_MEANING = _ENCRYPTED | _DESCRIPTOR | _UTF8
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_ZIP64 = 1


class ZipError(ValueError):
    """Not a zip, or one that programs may read differently."""


class ZipOverlap(ZipError):
    """Members share bytes, as in zip bombs."""


class ZipTooLarge(ZipError):
    """The zip has more members than allowed, or its directory is too large."""


@dataclass(frozen=True, kw_only=True)
class ZipMember:
    """A member; the central directory and its own header agree on it."""

    name: str
    method: int
    """STORED or DEFLATED."""
    crc: int
    compressed_size: int
    size: int
    mode: int
    """Unix type and permissions; 0 if the zip has none."""
    flags: int
    header: int
    """Offset of its local header."""
    start: int = 0
    """Offset of its data."""

    @property
    def is_directory(self) -> bool:
        return self.name.endswith("/")

    @property
    def is_executable(self) -> bool:
        return bool(self.mode & 0o111)


def read_directory(read: Callable[[int, int], bytes], length: int, *, most: int) -> tuple[ZipMember, ...]:
    """All members, in the directory's order. `read(offset, size)` reads a file of `length` bytes.

    ZipError, ZipOverlap; ZipTooLarge above `most` members.
    """
    members, offset = _directory(read, length, most)
    located = tuple(_located(read, member, offset) for member in members)
    _refuse_overlap(located)
    return located


def list_members(read: Callable[[int, int], bytes], length: int, *, most: int) -> tuple[ZipMember, ...]:
    """All members by the directory alone, which is enough to list a file but not to unpack it. Errors as above.

    Reads at most three times, only at the end of the file.
    """
    return _directory(read, length, most)[0]


def _directory(read: Callable[[int, int], bytes], length: int, most: int) -> tuple[tuple[ZipMember, ...], int]:
    count, size, offset = _end(read, length)
    if count > most:
        raise ZipTooLarge(f"it has {count} members, and {most} are allowed")
    if size > _LARGEST_DIRECTORY:
        raise ZipTooLarge(f"its directory has {size} bytes")
    return tuple(_members(read(offset, size), count)), offset


def _end(read: Callable[[int, int], bytes], length: int) -> tuple[int, int, int]:
    """Number of members, and size and offset of their directory; it must end where the end record begins."""
    tail_at = max(0, length - _END.size - _LONGEST_COMMENT)
    tail = read(tail_at, length - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise ZipError("it is not a zip, or was cut off")
    _, disk, start_disk, here, count, size, offset, comment = _END.unpack_from(tail, at)
    end = tail_at + at
    if end + _END.size + comment != length:
        raise ZipError("bytes follow its end")
    large = _end64(read, end)
    if large is None and (_MAX16 in (here, count) or _MAX32 in (size, offset)):
        raise ZipError("it lacks the end record for large files")
    if large is not None:
        # the small record has the same values, or the highest one, which refers to the large record
        small = (disk, start_disk, here, count, size, offset)
        highest = (_MAX16, _MAX16, _MAX16, _MAX16, _MAX32, _MAX32)
        if any(few not in {many, top} for few, many, top in zip(small, large, highest, strict=False)):
            raise ZipError("its two end records differ")
        disk, start_disk, here, count, size, offset, end = large
    if disk or start_disk or here != count:
        raise ZipError("it is one of several parts")
    if offset + size != end:
        raise ZipError("its directory is not right before its end")
    return count, size, offset


def _end64(read: Callable[[int, int], bytes], end: int) -> tuple[int, int, int, int, int, int, int] | None:
    """The end record for large files, and where it begins; None where there is none."""
    locator_at = end - _END64_LOCATOR.size
    if locator_at < 0:
        return None
    signature, disk, at, disks = _END64_LOCATOR.unpack(_exactly(read, locator_at, _END64_LOCATOR.size))
    if signature != b"PK\x06\x07":
        return None
    if disk or disks != 1 or at + _END64.size != locator_at:
        raise ZipError("its end record for large files is damaged")
    record = _END64.unpack(_exactly(read, at, _END64.size))
    if record[0] != b"PK\x06\x06" or record[1] != _END64.size - 12:
        raise ZipError("its end record for large files is damaged")
    _, _, _, _, number, start_disk, here, count, size, offset = record
    return number, start_disk, here, count, size, offset, at


def _members(directory: bytes, count: int) -> Iterator[ZipMember]:
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise ZipError("its directory is shorter than its number of members")
        fields = _CENTRAL.unpack_from(directory, at)
        name_size, extra_size, comment_size = fields[10:13]
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_size
        at = extra_at + extra_size + comment_size
        if fields[0] != b"PK\x01\x02" or at > len(directory):
            raise ZipError("its directory is damaged")
        yield _member(fields, directory[name_at:extra_at], directory[extra_at : extra_at + extra_size])
    if at != len(directory):
        raise ZipError("its directory is longer than its number of members")


def _member(fields: tuple[int, ...], raw: bytes, extra: bytes) -> ZipMember:
    flags, method = fields[3:5]
    crc, compressed, size = fields[7:10]
    disk, attributes, header = fields[13], fields[15], fields[16]
    name = _name(raw, flags)
    size, compressed, header, disk = _wide(
        extra, ((size, _MAX32), (compressed, _MAX32), (header, _MAX32), (disk, _MAX16)), name
    )
    if flags & ~(_DESCRIPTOR | _UTF8 | 0x6):  # 0x6: how hard the compressor tried
        raise ZipError(f"{name!r} is encrypted, or of a kind that wheels don't use")
    if method not in {STORED, DEFLATED}:
        raise ZipError(f"{name!r} is compressed by method {method}; wheels use deflate")
    if disk:
        raise ZipError(f"{name!r} is in another part")
    if method == STORED and compressed != size:
        raise ZipError(f"{name!r} has two sizes")
    mode = attributes >> 16
    kind = stat.S_IFMT(mode)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise ZipError(f"{name!r} is a link or a special file")
    if name.endswith("/") and size:
        raise ZipError(f"{name!r} is a directory with content")
    if kind == stat.S_IFDIR and not name.endswith("/"):
        raise ZipError(f"{name!r} is a directory by its mode and a file by its name")
    return ZipMember(
        name=name, method=method, crc=crc, compressed_size=compressed, size=size, mode=mode, flags=flags, header=header
    )


def _name(raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise ZipError(f"a member's name is not UTF-8: {raw[:100]!r}") from error


def _wide(extra: bytes, fields: tuple[tuple[int, int], ...], name: str) -> list[int]:
    """Replace each field that has its highest value by the next number of the zip64 extra field."""
    large: bytes | None = None
    at = 0
    while at + _EXTRA.size <= len(extra):
        kind, size = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if at + size > len(extra):
            raise ZipError(f"{name!r} has a damaged extra field")
        if kind == _ZIP64:
            if large is not None:
                raise ZipError(f"{name!r} has two extra fields for large files")
            large = extra[at : at + size]
        at += size
    values, used = [], 0
    for value, highest in fields:
        width = 8 if highest == _MAX32 else 4
        if value == highest and large is not None and used + width <= len(large):
            values.append(int.from_bytes(large[used : used + width], "little"))
            used += width
        elif value == highest and highest == _MAX32:
            raise ZipError(f"{name!r} lacks the extra field for large files")
        else:
            values.append(value)
    return values


def _exactly(read: Callable[[int, int], bytes], at: int, size: int) -> bytes:
    data = read(at, size)
    if len(data) != size:
        raise ZipError("it was cut off")
    return data


def _located(read: Callable[[int, int], bytes], member: ZipMember, directory: int) -> ZipMember:
    """Compare a member's own header with the directory, and find the offset of its data."""
    if member.header + _LOCAL.size > directory:
        raise ZipOverlap(f"{member.name!r} is outside of the members' part")
    # most names and extra fields fit into this first read
    data = read(member.header, _LOCAL.size + len(member.name.encode()) + 64)
    fields = _LOCAL.unpack_from(data)
    signature, _, flags, method, _, _, crc, compressed, size, name_size, extra_size = fields
    rest = name_size + extra_size
    if _LOCAL.size + rest > len(data):
        data = _exactly(read, member.header, _LOCAL.size + rest)
    extra = data[_LOCAL.size + name_size : _LOCAL.size + rest]
    name = _name(data[_LOCAL.size : _LOCAL.size + name_size], flags)
    if signature != b"PK\x03\x04" or name != member.name or method != member.method:
        raise ZipError(f"{member.name!r} has another name or method in its own header")
    if (flags ^ member.flags) & _MEANING:
        raise ZipError(f"{member.name!r} has other flags in its own header")
    size, compressed = _wide(extra, ((size, _MAX32), (compressed, _MAX32)), name)
    found = (crc, compressed, size)
    expected = (member.crc, member.compressed_size, member.size)
    start = member.header + _LOCAL.size + rest
    if start + member.compressed_size > directory:
        raise ZipOverlap(f"{member.name!r} overlaps the directory")
    if flags & _DESCRIPTOR:
        if any(value not in {0, wanted} for value, wanted in zip(found, expected, strict=True)):
            raise ZipError(f"{member.name!r} has another size or CRC in its own header")
        _check_descriptor(read, member, start + member.compressed_size)
    elif found != expected:
        raise ZipError(f"{member.name!r} has another size or CRC in its own header")
    return ZipMember(**{**member.__dict__, "start": start})


def _check_descriptor(read: Callable[[int, int], bytes], member: ZipMember, at: int) -> None:
    data = read(at, 24)
    numbers = [
        struct.pack(form, member.crc, member.compressed_size & mask, member.size & mask)
        for form, mask in (("<LLL", _MAX32), ("<LQQ", (1 << 64) - 1))
    ]
    if not any(data.startswith(mark + value) for mark in (b"PK\x07\x08", b"") for value in numbers):
        raise ZipError(f"{member.name!r} has another size or CRC after its data")


def _refuse_overlap(members: tuple[ZipMember, ...]) -> None:
    end, before = 0, ""
    for member in sorted(members, key=lambda member: member.header):
        if member.header < end:
            raise ZipOverlap(f"{member.name!r} overlaps {before!r}")
        end, before = member.start + member.compressed_size + (12 if member.flags & _DESCRIPTOR else 0), member.name
