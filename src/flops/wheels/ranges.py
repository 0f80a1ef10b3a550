"""Wheels read in pieces: by range requests (RFC 9110, 14) from an index, or from their file.

The end is read first, since a zip's last bytes list all its members.
"""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Self

from flops import http
from flops.errors import IndexUnreachable
from flops.locking.index import HINT
from flops.wheels.zip_directory import DEFLATED, STORED, ZipError, list_members

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from flops.locking.lock import LockedWheel
    from flops.wheels.wheel_cache import WheelCache
    from flops.wheels.zip_directory import ZipMember

#: Bytes of the first request: the end record with the longest comment, and the directory of most wheels.
TAIL = 72 * 1024
MOST_MEMBERS = 200_000
MOST_METADATA = 4 * 1024 * 1024
#: Of one answer; the largest real directories have about 2 MB.
MOST_BYTES = 32 * 1024 * 1024
SECONDS = 20.0
#: Of a member's own header: the fixed part, and room for its name and extra fields.
_LOCAL, _LOCAL_ROOM = 30, 512


class ByteSource:
    """A wheel that can be read in pieces."""

    def __init__(self, read: Callable[[int, int], bytes], length: int, *, held: int = 0) -> None:
        self.read = read
        self.length = length
        self.held = held
        """Offset from which on reading costs no request."""

    @cached_property
    def members(self) -> tuple[ZipMember, ...]:
        return list_members(self.read, self.length, most=MOST_MEMBERS)


class NoRanges(Exception):
    """The server sends only whole files."""


class Ranges:
    """Range requests; the connection is opened with the first one."""

    def __init__(self, ca_bundle: Path | None, transport: httpx.BaseTransport | None) -> None:
        self._client = http.client(
            ca_bundle,
            transport=transport,
            seconds=SECONDS,
            follow_redirects=True,
            headers={"Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def open(self, wheel: LockedWheel, wheels: WheelCache) -> ByteSource:
        """Fetch the wheel's end; other parts are requested when they are read. NoRanges."""
        auth = wheels.auth(wheel)
        first = max(0, wheel.size - TAIL) if wheel.size is not None else None
        tail, start, length = self._get(wheel, auth, f"{first}-" if first is not None else f"-{TAIL}")
        if wheel.size not in {None, length}:
            raise ZipError("it has another size than was locked")

        def read(offset: int, size: int) -> bytes:
            if offset >= start:
                return tail[offset - start : offset - start + size]
            return self._get(wheel, auth, f"{offset}-{min(offset + size, length) - 1}")[0]

        return ByteSource(read, length, held=start)

    def _get(self, wheel: LockedWheel, auth: tuple[str, str] | None, what: str) -> tuple[bytes, int, int]:
        """The bytes, their offset, and the length of the whole file."""
        import httpx  # noqa: PLC0415 - slow to import, and not needed where everything is remembered

        try:
            with self._client.stream("GET", wheel.url, headers={"Range": f"bytes={what}"}, auth=auth) as response:
                if response.status_code in {200, 416, 501}:
                    raise NoRanges
                if response.status_code != httpx.codes.PARTIAL_CONTENT:
                    raise IndexUnreachable(f"{wheel.filename} can't be read: status {response.status_code}")
                unit, _, place = response.headers.get("Content-Range", "").partition(" ")
                span, _, length = place.partition("/")
                start, _, end = span.partition("-")
                if unit != "bytes" or not (start.isdecimal() and end.isdecimal() and length.isdecimal()):
                    raise NoRanges
                return _bounded(response, int(end) - int(start) + 1), int(start), int(length)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why, hint = http.reason(error)
            raise IndexUnreachable(f"{wheel.filename} can't be read: {why}", hint=hint or HINT) from error


def _bounded(response: httpx.Response, size: int) -> bytes:
    """The body, which must not be longer than its header says."""
    if size > MOST_BYTES:
        raise ZipError(f"its directory has more than {MOST_BYTES} bytes")
    data = bytearray()
    for piece in response.iter_raw():
        data += piece
        if len(data) > size:
            raise NoRanges
    return bytes(data)


def local(path: Path) -> ByteSource:
    """A wheel on this machine."""

    def read(offset: int, size: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    return ByteSource(read, path.stat().st_size)


def content(source: ByteSource, member: ZipMember) -> bytes:
    """A small text of a wheel, inflated; ZipError, zlib.error."""
    if max(member.size, member.compressed_size) > MOST_METADATA:
        raise ZipError(f"{member.name} is larger than any text needs")
    data = source.read(member.header, _LOCAL + _LOCAL_ROOM + member.compressed_size)
    skipped = _LOCAL + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
    if len(data) < skipped + member.compressed_size:
        data = source.read(member.header, skipped + member.compressed_size)
    raw = data[skipped : skipped + member.compressed_size]
    if member.method == STORED:
        return raw
    if member.method != DEFLATED:
        raise ZipError(f"{member.name} is compressed in a way that wheels don't use")
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, MOST_METADATA)
