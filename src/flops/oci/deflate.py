"""Deflate streams (RFC 1951) and the gzip members around them (RFC 1952): written without a compressor, read in bounds."""

from __future__ import annotations

import re
import struct
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from isal import igzip_lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: A gzip member's header: deflate, no name, no time, unknown system (RFC 1952, 2.3).
MEMBER_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
#: Inflated data come in pieces of at most this many bytes.
PIECE = 1024 * 1024
#: A stored block's length field has 16 bits (RFC 1951, 3.2.4).
STORED_BLOCK = 0xFFFF

_LONGEST_MATCH = 258
_SHORTEST_MATCH = 3
_LAST_FIXED_BLOCK = 0b011, 3  # BFINAL, then BTYPE 01, in the order in which the bits are packed
_SHIFTED = 4096
_RUNS = re.compile(rb"\x00{5,}|0{6,}")  # what tar headers are mostly made of


class DeflateError(ValueError):
    """A stream that is damaged, or not as long as it should be."""


class DeflateOverlong(DeflateError):
    """A stream that holds more than it is said to: the mark of a bomb."""


def member_trailer(crc: int, size: int) -> bytes:
    """CRC-32 and size (modulo 2**32) of a member's uncompressed data."""
    return struct.pack("<II", crc, size & 0xFFFFFFFF)


def _reversed(code: int, bits: int) -> int:
    """Huffman codes are packed from their most significant bit on, all else from the least (RFC 1951, 3.1.1)."""
    return int(f"{code:0{bits}b}"[::-1], 2)


def _literal(byte: int) -> tuple[int, int]:
    """Code and number of bits of a literal in the fixed alphabet (RFC 1951, 3.2.6)."""
    return (_reversed(0x30 + byte, 8), 8) if byte < 144 else (_reversed(0x190 + byte - 144, 9), 9)  # noqa: PLR2004


_LITERALS = tuple(_literal(byte) for byte in range(256))
#: ASCII literals have 8 bits each: a text is encoded by one translation.
_ASCII = bytes(code & 0xFF for code, _ in _LITERALS)


@cache
def _match(length: int) -> tuple[int, int]:
    """A match of 3 to 258 bytes at distance 1, the byte before: length symbol, extra bits, distance symbol 0 (5 bits)."""
    if length == _LONGEST_MATCH:
        symbol, extra, extra_bits = 285, 0, 0
    else:
        extra_bits = max(0, (length - _SHORTEST_MATCH).bit_length() - 3)
        symbol = 257 + (extra_bits << 2) + ((length - _SHORTEST_MATCH) >> extra_bits)
        extra = (length - _SHORTEST_MATCH) & ((1 << extra_bits) - 1)
    code, bits = (symbol - 256, 7) if symbol < 280 else (0xC0 + symbol - 280, 8)  # noqa: PLR2004
    return _reversed(code, bits) | extra << bits, bits + extra_bits + 5


@lru_cache(maxsize=4096)
def _run(byte: int, length: int) -> tuple[int, int]:
    """One literal, then matches that repeat it."""
    value, bits = _LITERALS[byte]
    rest = length - 1
    while rest:
        take = min(rest, _LONGEST_MATCH)
        code, width = _match(take) if take >= _SHORTEST_MATCH else _LITERALS[byte]
        rest -= take if take >= _SHORTEST_MATCH else 1
        value |= code << bits
        bits += width
    return value, bits


def encode(data: bytes) -> bytes:
    """One final block in the fixed alphabet, with matches for runs of NUL and "0" only.

    A function of `data` alone: no compressor's version has a say in it. Made for tar headers (512 bytes become about 110).
    """
    out = bytearray()
    value, bits = _LAST_FIXED_BLOCK
    position = 0
    for run in _RUNS.finditer(data):
        start, end = run.span()
        code, width = _text(data[position:start])
        value |= code << bits
        bits += width
        code, width = _run(data[start], end - start)
        value |= code << bits
        bits += width
        position = end
        if bits > _SHIFTED:  # shifting a long number costs its length
            whole = bits >> 3
            out += (value & ((1 << (whole << 3)) - 1)).to_bytes(whole, "little")
            value >>= whole << 3
            bits &= 7
    code, width = _text(data[position:])
    value |= code << bits
    bits += width
    out += value.to_bytes((bits + 7 + 7) >> 3, "little")  # the end of the block is seven zeros
    return bytes(out)


def _text(data: bytes) -> tuple[int, int]:
    if data.isascii():
        return int.from_bytes(data.translate(_ASCII), "little"), len(data) << 3
    value, bits = 0, 0
    for byte in data:
        code, width = _LITERALS[byte]
        value |= code << bits
        bits += width
    return value, bits


def stored(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks of at most STORED_BLOCK bytes as they are, and an empty one at the end."""
    for block in blocks:
        yield struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF)
        yield block
    yield b"\x01\x00\x00\xff\xff"


class Blocks:
    """Cuts what comes in pieces of any size into blocks of one size, so that output never depends on the pieces."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        position = 0
        if self._rest:
            position = self._size - len(self._rest)
            self._rest += data[:position]
            if len(self._rest) < self._size:
                return
            yield self._take()
        for start in range(position, len(data) - self._size + 1, self._size):
            yield data[start : start + self._size]
            position = start + self._size
        self._rest += data[position:]

    def end(self) -> Iterator[bytes]:
        if self._rest:
            yield self._take()

    def _take(self) -> bytes:
        block = bytes(self._rest)
        self._rest.clear()
        return block


def inflate(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Inflate a raw deflate stream into pieces of at most PIECE bytes.

    DeflateError where the stream is damaged, does not end with the chunks, or does not hold exactly `size` bytes;
    never inflates more than one byte too many.
    """
    decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
    left = size
    for chunk in chunks:
        if decompressor.eof:
            raise DeflateError("bytes follow the end of the compressed data")
        feed = chunk
        while True:
            try:
                piece = decompressor.decompress(feed, min(PIECE, left + 1))
            except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub declares an instance
                raise DeflateError(f"damaged compressed data ({error})") from error
            left -= len(piece)
            if left < 0:
                raise DeflateOverlong(f"the data are longer than the {size} bytes they are said to have")
            if piece:
                yield piece
            if decompressor.eof or decompressor.needs_input:
                break
            feed = b""
    if not decompressor.eof or decompressor.unused_data:
        what = "bytes follow the end of" if decompressor.eof else "no end of"
        raise DeflateError(f"{what} the compressed data")
    if left:
        raise DeflateError(f"the data are {left} bytes shorter than the {size} bytes they are said to have")
