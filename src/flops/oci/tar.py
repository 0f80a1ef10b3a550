"""Tar headers: ustar, with an extended header (pax, POSIX.1-2001) only where ustar can't say it.

Written here and not by tarfile, whose bytes changed between versions of Python.
"""

from __future__ import annotations

import struct
from enum import Enum

BLOCK = 512
#: A tar ends with two blocks of zeros.
END = bytes(2 * BLOCK)

_NAME, _PREFIX = 100, 155
_LARGEST_SIZE = 8**11 - 1
_FIELDS = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")


class EntryType(Enum):
    FILE = b"0"
    LINK = b"2"
    DIRECTORY = b"5"
    EXTENDED = b"x"


def padding(size: int) -> bytes:
    """The zeros that fill a file's last block."""
    return bytes(-size % BLOCK)


def header(
    path: str, *, kind: EntryType, mode: int, mtime: int, size: int = 0, uid: int = 0, gid: int = 0, target: str = ""
) -> bytes:
    """The block, or the three or more blocks, that stand before an entry's data. User and group have no names."""
    name = path.encode() + (b"/" if kind is EntryType.DIRECTORY else b"")
    link = target.encode()
    extended: dict[str, bytes] = {}
    place = _place(name)
    if place is None:
        extended["path"] = name
        place = _stand_in(name), b""
    if len(link) > _NAME or not link.isascii():
        extended["linkpath"] = link
        link = _stand_in(link)
    if size > _LARGEST_SIZE:
        extended["size"] = str(size).encode()
    block = _block(*place, kind, link, mode=mode, uid=uid, gid=gid, size=0 if "size" in extended else size, mtime=mtime)
    if not extended:
        return block
    records = b"".join(_record(key, value) for key, value in sorted(extended.items()))
    before = _block(
        b"././@PaxHeader", b"", EntryType.EXTENDED, b"", mode=0o644, uid=0, gid=0, size=len(records), mtime=mtime
    )
    return before + records + padding(len(records)) + block


def _place(name: bytes) -> tuple[bytes, bytes] | None:
    """Name and prefix as ustar holds them; None where they don't fit. ASCII only, as POSIX asks of ustar."""
    if not name.isascii():
        return None
    if len(name) <= _NAME:
        return name, b""
    cut = name.rfind(b"/", 0, min(len(name) - 1, _PREFIX + 1))
    return (name[cut + 1 :], name[:cut]) if cut > 0 and len(name) - cut - 1 <= _NAME else None


def _stand_in(name: bytes) -> bytes:
    """What a reader sees that does not know extended headers."""
    return name.decode().encode("ascii", "replace")[:_NAME]


def _record(key: str, value: bytes) -> bytes:
    """`LENGTH key=value` and a line feed, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    while rest + len(str(length)) != length:
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key.encode(), value)


def _block(
    name: bytes, prefix: bytes, kind: EntryType, link: bytes, *, mode: int, uid: int, gid: int, size: int, mtime: int
) -> bytes:
    block = _FIELDS.pack(
        name,
        b"%07o" % mode,
        b"%07o" % uid,
        b"%07o" % gid,
        b"%011o" % size,
        b"%011o" % mtime,
        b" " * 8,
        kind.value,
        link,
        b"ustar\x00",
        b"00",
        b"",
        b"",
        b"",
        b"",
        prefix,
    )
    return block[:148] + b"%06o\x00 " % sum(block) + block[156:]
