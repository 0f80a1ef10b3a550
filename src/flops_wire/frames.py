"""Frames between an actor and its worker over a Unix socket: a JSON header, then the bytes of arrays. Never pickle.

    4 bytes    length of the header, big-endian
    header     JSON object; under "arrays" one {"dtype", "shape"} for each array that follows
    bytes      the arrays, one after the other, in C order

The two sides may hold different versions of NumPy; a dtype travels as `numpy.dtype.str` ("<f8") and is closed to
what every platform reads alike: no objects, no strings, no long doubles.
"""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

HEADER_LIMIT = 16 * 1024 * 1024
ARRAYS_LIMIT = 100_000
DIMENSIONS_LIMIT = 32
#: Bytes of all arrays of one frame.
BODY_LIMIT = 64 * 1024**3
#: Bytes by which a reader's memory grows.
PIECE = 16 * 1024 * 1024

_LENGTH = struct.Struct(">I")
_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
_RESERVED = "arrays"


class FrameError(Exception):
    """The bytes are no frame, break a limit, or hold an array that can't travel."""


class Disconnected(FrameError):
    """The other side closed the connection; `clean` where it did so between two frames."""

    def __init__(self, message: str, *, clean: bool = False) -> None:
        super().__init__(message)
        self.clean = clean


class Array(NamedTuple):
    """An array as bytes. `numpy.frombuffer(data, dtype).reshape(shape)` makes it one again, writable after receive()."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


class Frame(NamedTuple):
    header: dict[str, Any]
    arrays: tuple[Array, ...]


def item_size(dtype: str) -> int:
    """Bytes of one element of a dtype that may travel; FrameError for every other."""
    kind, digits = dtype[1:2], dtype[2:]
    size = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 2 else 0  # noqa: PLR2004 - "c16"
    orders = "|" if size == 1 else "<>"
    if dtype[:1] not in orders or size not in _SIZES.get(kind, ()) or dtype != f"{dtype[:1]}{kind}{size}":
        raise FrameError(
            f"an array of dtype {dtype[:40]!r} can't travel: bool, int, float and complex of fixed size can"
        )
    return size


def pack(array: Any) -> Array:
    """A `numpy.ndarray` (any memory order, 0-d too) as bytes in C order; FrameError for a dtype that can't travel."""
    dtype = str(array.dtype.str)
    item_size(dtype)
    return Array(dtype, tuple(int(size) for size in array.shape), array.tobytes(order="C"))


def send(connection: socket.socket, header: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Send one frame; FrameError where it would break a limit, before a byte is sent."""
    if _RESERVED in header:
        raise FrameError(f"a header must not hold {_RESERVED!r} itself")
    described = []
    for array in arrays:
        if memoryview(array.data).nbytes != _size(array.dtype, array.shape):
            raise FrameError(f"{memoryview(array.data).nbytes} bytes are no {array.dtype} array of shape {array.shape}")
        described.append({"dtype": array.dtype, "shape": list(array.shape)})
    document = json.dumps({**header, _RESERVED: described}, separators=(",", ":")).encode()
    _check_limits(len(document), arrays)
    connection.sendall(_LENGTH.pack(len(document)) + document)
    for array in arrays:
        connection.sendall(memoryview(array.data).cast("B") if array.data else b"")


def receive(connection: socket.socket) -> Frame:
    """Wait for one frame. Disconnected at the end of the stream; FrameError for anything that is no frame."""
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size, first=True))
    if not 0 < length <= HEADER_LIMIT:
        raise FrameError(f"a header of {length} bytes: the limit is {HEADER_LIMIT}")
    try:
        header = json.loads(_read(connection, length).decode())
        described = header.pop(_RESERVED)
        wanted = [Array(entry["dtype"], tuple(entry["shape"]), b"") for entry in described]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FrameError(f"a header that is none: {type(error).__name__}") from error
    _check_limits(length, wanted)
    return Frame(header, tuple(a._replace(data=_read(connection, _size(a.dtype, a.shape))) for a in wanted))


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    if not isinstance(dtype, str):
        raise FrameError("a dtype that is no text")
    if len(shape) > DIMENSIONS_LIMIT or any(type(n) is not int or n < 0 for n in shape):
        raise FrameError(f"a shape that is none: {str(shape)[:80]}")
    return item_size(dtype) * math.prod(shape)


def _check_limits(header: int, arrays: Sequence[Array]) -> None:
    body = sum(_size(array.dtype, array.shape) for array in arrays)
    for what, value, limit in (
        ("bytes of header", header, HEADER_LIMIT),
        ("arrays", len(arrays), ARRAYS_LIMIT),
        ("bytes of arrays", body, BODY_LIMIT),
    ):
        if value > limit:
            raise FrameError(f"a frame with {value} {what}: the limit is {limit}")


def _read(connection: socket.socket, size: int, *, first: bool = False) -> bytearray:
    data, done = bytearray(min(size, PIECE)), 0  # grows with what has come: a header may claim anything
    while done < size:
        if done == len(data):
            data += bytes(min(size - done, PIECE))
        try:
            with memoryview(data)[done:] as view:
                count = connection.recv_into(view)
        except ConnectionError as error:
            raise Disconnected(f"the other side is gone: {error}") from error
        if count == 0:
            raise Disconnected("the other side closed the connection", clean=first and done == 0)
        done += count
    return data
