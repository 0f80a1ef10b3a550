"""Git repositories that are small to store and large to read: packs written by hand (gitformat-pack(5))."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {b"commit": 1, b"tree": 2, b"blob": 3}
REF_DELTA = 7


class Pack:
    """Objects in the order in which they are added."""

    def __init__(self) -> None:
        self.count, self.parts = 0, []

    def add(self, kind: bytes, data: bytes) -> bytes:
        self._entry(KINDS[kind], len(data), zlib.compress(data))
        return hashlib.sha1(b"%s %d\0" % (kind, len(data)) + data).digest()

    def tree(self, *entries: tuple[bytes, bytes, bytes]) -> bytes:
        return self.add(b"tree", b"".join(b"%s %s\0" % (mode, name) + object_id for mode, name, object_id in entries))

    def zeros(self, size: int) -> None:
        """A blob of about `size` zeros: a delta that copies 64 KB again and again, a byte for each."""
        base = self.add(b"blob", bytes(1 << 16))
        delta = _length(1 << 16) + _length(size >> 16 << 16) + b"\x80" * (size >> 16)
        self._entry(REF_DELTA, len(delta), base + zlib.compress(delta))

    def _entry(self, kind: int, size: int, body: bytes) -> None:
        head, rest = kind << 4 | size & 15 | (128 if size > 15 else 0), size >> 4
        self.parts.append(bytes([head]) + (_length(rest) if size > 15 else b"") + body)
        self.count += 1

    def serve(self, place: Path, tree: bytes) -> None:
        """A bare repository at `place` whose `main` is a commit of this tree, as a server may hold it: its git need not be able to read it."""
        author = b"A <a@example.org> 1700000000 +0000"
        told = b"tree %s\nauthor %s\ncommitter %s\n\nx\n" % (tree.hex().encode(), author, author)
        commit = self.add(b"commit", told).hex()
        data = b"PACK" + struct.pack(">II", 2, self.count) + b"".join(self.parts)
        data += hashlib.sha1(data).digest()
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(place)], check=True)
        pack = place / "objects" / "pack" / f"pack-{data[-20:].hex()}.pack"
        pack.write_bytes(data)
        subprocess.run(["git", "-C", str(place), "index-pack", str(pack)], check=True, capture_output=True)
        (place / "refs" / "heads" / "main").write_text(f"{commit}\n")
        (place / "info" / "refs").write_text(f"{commit}\trefs/heads/main\n")
        (place / "objects" / "info" / "packs").write_text(f"P {pack.name}\n\n")


def _length(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the highest bit."""
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


def deep(place: Path, levels: int) -> None:
    """One file below so many directories."""
    pack = Pack()
    tree = pack.tree((b"100644", b"f", pack.add(b"blob", b"x")))
    for _ in range(levels):
        tree = pack.tree((b"40000", b"d", tree))
    pack.serve(place, tree)


def wide(place: Path, levels: int, *, files: bool) -> None:
    """Ten to the power of `levels` directories, with a file each or none, of `levels` + 1 objects."""
    pack = Pack()
    tree = pack.tree((b"100644", b"f", pack.add(b"blob", b"x"))) if files else pack.add(b"tree", b"")
    for _ in range(levels):
        tree = pack.tree(*((b"40000", b"%d" % number, tree) for number in range(10)))
    pack.serve(place, tree)


def inflated(place: Path, size: int) -> None:
    """One small file, and an object of that many bytes beside it."""
    pack = Pack()
    pack.zeros(size)
    pack.serve(place, pack.tree((b"100644", b"f", pack.add(b"blob", b"x"))))
