"""How a tar becomes a layer's bytes: a chain of gzip members (RFC 1952, 2.2), or one zstd frame (RFC 8878)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Protocol

import zstandard
from isal import isal_zlib

from flops.oci import deflate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flops.oci.blobs import Writable

#: On the base and on bytecode, level 4 takes half the time of zlib's default and gives 3 % more bytes.
GZIP_LEVEL = 4
ZSTD_LEVEL = 3
#: Compressors are fed blocks of this size: nothing promises that their output does not depend on how input is cut.
_BLOCK = 128 * 1024
#: Headers gather up to here before they become a member, although nothing spliced follows.
_PENDING = 64 * 1024
#: Stored files up to here ride in the members of the headers.
_SMALL = 4 * 1024


def zlib_version() -> str:
    """Of the library in use: zlib and its replacements compress differently."""
    return zlib.ZLIB_RUNTIME_VERSION


def zstd_version() -> str:
    return ".".join(map(str, zstandard.ZSTD_VERSION))


class Encoder(Protocol):
    """Takes the parts of a tar in order. `head` is what stands between the last file's data and this one's."""

    def metadata(self, data: bytes) -> None:
        """Headers and padding."""

    def file(self, head: bytes, pieces: Iterable[bytes], size: int, *, stored: bool) -> None: ...

    def deflated(self, head: bytes, chunks: Iterable[bytes], size: int, crc: int) -> Iterator[bytes]:
        """Yields the inflated pieces; DeflateError where they aren't `size` bytes. The caller compares the CRC."""

    def close(self) -> None: ...


class GzipChain:
    """Members of three kinds: headers in our own fixed encoding, spliced or stored files, and what zlib compressed.

    Neighbours that zlib compresses share a member: the standard library is 12 % smaller so, its bytecode 32 %.
    """

    def __init__(self, output: Writable) -> None:
        self._output = output
        self._pending = bytearray()
        self._member: _ZlibMember | None = None

    def metadata(self, data: bytes) -> None:
        if self._member is not None:
            self._member.write(data)
            return
        self._pending += data
        if len(self._pending) > _PENDING:
            self._flush()

    def file(self, head: bytes, pieces: Iterable[bytes], size: int, *, stored: bool) -> None:
        if stored:
            self._end_member()
            self.metadata(head)
            self._store(pieces, size)
            return
        if self._member is None:
            self._flush()
            self._member = _ZlibMember(self._output)
        self._member.write(head)
        for piece in pieces:
            self._member.write(piece)

    def deflated(self, head: bytes, chunks: Iterable[bytes], size: int, crc: int) -> Iterator[bytes]:
        self._end_member()
        self.metadata(head)
        if size == 0:  # a member for nothing would cost twenty bytes
            yield from deflate.inflate(chunks, size)
            return
        self._flush()
        self._output.write(deflate.MEMBER_HEADER)
        yield from deflate.inflate(self._copied(chunks), size)
        self._output.write(deflate.member_trailer(crc, size))

    def close(self) -> None:
        self._end_member()
        self._flush()

    def _copied(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._output.write(chunk)
            yield chunk

    def _store(self, pieces: Iterable[bytes], size: int) -> None:
        if size <= _SMALL:
            self.metadata(b"".join(pieces))
            return
        self._flush()
        crc = 0

        def blocks() -> Iterator[bytes]:
            nonlocal crc
            cut = deflate.Blocks(deflate.STORED_BLOCK)
            for piece in pieces:
                crc = isal_zlib.crc32(piece, crc)
                yield from cut.feed(piece)
            yield from cut.end()

        self._output.write(deflate.MEMBER_HEADER)
        for part in deflate.stored(blocks()):
            self._output.write(part)
        self._output.write(deflate.member_trailer(crc, size))

    def _flush(self) -> None:
        if self._pending:
            data = bytes(self._pending)
            self._pending.clear()
            trailer = deflate.member_trailer(isal_zlib.crc32(data), len(data))
            self._output.write(deflate.MEMBER_HEADER + deflate.encode(data) + trailer)

    def _end_member(self) -> None:
        if self._member is not None:
            self._member.close()
            self._member = None


class _ZlibMember:
    def __init__(self, output: Writable) -> None:
        self._output = output
        self._compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._blocks = deflate.Blocks(_BLOCK)
        self._crc = 0
        self._size = 0
        output.write(deflate.MEMBER_HEADER)

    def write(self, data: bytes) -> None:
        self._crc = isal_zlib.crc32(data, self._crc)
        self._size += len(data)
        for block in self._blocks.feed(data):
            self._output.write(self._compressor.compress(block))

    def close(self) -> None:
        for block in self._blocks.end():
            self._output.write(self._compressor.compress(block))
        self._output.write(self._compressor.flush() + deflate.member_trailer(self._crc, self._size))


class ZstdFrame:
    """Everything recompressed as one frame, by one thread: several would make the bytes depend on their number."""

    def __init__(self, output: Writable) -> None:
        self._output = output
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True, threads=0).compressobj()
        self._blocks = deflate.Blocks(_BLOCK)

    def metadata(self, data: bytes) -> None:
        for block in self._blocks.feed(data):
            self._output.write(self._compressor.compress(block))

    def file(self, head: bytes, pieces: Iterable[bytes], size: int, *, stored: bool) -> None:  # noqa: ARG002
        self.metadata(head)
        for piece in pieces:
            self.metadata(piece)

    def deflated(self, head: bytes, chunks: Iterable[bytes], size: int, crc: int) -> Iterator[bytes]:  # noqa: ARG002
        self.metadata(head)
        for piece in deflate.inflate(chunks, size):
            self.metadata(piece)
            yield piece

    def close(self) -> None:
        for block in self._blocks.end():
            self._output.write(self._compressor.compress(block))
        self._output.write(self._compressor.flush())
