"""Bounds on what a server sends: documents that are read whole, and the pace of what streams."""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

import httpx

from flops.errors import RegistryRefused, RegistryUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Most bytes of an answer that is read whole: a manifest has up to 4 MiB.
LIMIT = 4 * 1024 * 1024
#: From its first to its last byte; the timeout of a single read never ends an answer that comes in drops.
SECONDS = 180.0
#: A body that streams must bring so many bytes in each span of so many seconds; git is given the same floor.
PACE_BYTES, PACE_SECONDS = 60_000, 60.0
_GZIP = 16 + zlib.MAX_WBITS


class _Bounded(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, host: str) -> None:
        self._stream = stream
        self._host = host

    def __iter__(self) -> Iterator[bytes]:
        size, end = 0, time.monotonic() + SECONDS
        for piece in self._stream:
            size += len(piece)
            if size > LIMIT:
                raise _too_large(self._host)
            if time.monotonic() > end:
                raise RegistryUnreachable(f"{self._host} took more than {SECONDS:.0f} s for one answer")
            yield piece

    def close(self) -> None:
        self._stream.close()


class Paced(httpx.SyncByteStream):
    """A body of any size; httpx.ReadTimeout where it comes in drops, each of them in time for the timeout of one read."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size, since = 0, time.monotonic()
        for piece in self._stream:
            size += len(piece)
            if time.monotonic() - since > PACE_SECONDS:
                if size < PACE_BYTES:
                    raise httpx.ReadTimeout(f"only {size} bytes came in {PACE_SECONDS:.0f} s")
                size, since = 0, time.monotonic()
            yield piece

    def close(self) -> None:
        self._stream.close()


def pace(response: httpx.Response) -> None:
    """Hold a response that is about to be streamed to the pace."""
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = Paced(response.stream)


def read(response: httpx.Response) -> httpx.Response:
    """An answer with its body, at most 4 MiB also when unpacked; the given response keeps its bytes as they came.

    A content encoding is undone here, not by httpx: a few bytes may unpack to gigabytes. httpx itself reads what a login
    leaves behind, and finds it read. RegistryRefused, RegistryUnreachable.
    """
    host = response.request.url.netloc.decode("ascii", "replace")
    encoding = response.headers.pop("content-encoding", "").strip().lower()
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _Bounded(response.stream, host)
    body = response.read()
    if len(body) > LIMIT:  # it was there already
        raise _too_large(host)
    if encoding in {"gzip", "x-gzip"}:  # not asked for; some proxies do it all the same
        body = _gunzipped(body, host)
    return httpx.Response(response.status_code, headers=response.headers, content=body, request=response.request)


def _gunzipped(body: bytes, host: str) -> bytes:
    try:
        data = zlib.decompressobj(_GZIP).decompress(body, LIMIT + 1)
    except zlib.error as error:
        raise RegistryRefused(f"an answer of {host} is not the gzip that it says") from error
    if len(data) > LIMIT:
        raise _too_large(host)
    return data


def _too_large(host: str) -> RegistryRefused:
    return RegistryRefused(f"an answer of {host} is larger than {LIMIT} bytes")
