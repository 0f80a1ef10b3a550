"""Bounds on what a server sends: documents that are read whole, and the pace of what streams."""

from __future__ import annotations

import threading
import time
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from flops.errors import RegistryRefused, RegistryUnreachable
from flops.http import Transient

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


#: Seconds that a request waits for its turn at most: its turn may depend on what its own thread holds elsewhere.
_PATIENCE = 60.0
#: Answers of registries that have too much to do.
OVERLOADED = {408, 429, 503, 504}


class Pressure:
    """Additive increase, multiplicative decrease, as in TCP: one more for each round of successes, half after an overload.

    From any thread; a thread that has a turn already takes no second one.
    """

    def __init__(self, *, start: int, most: int) -> None:
        self.limit = float(min(start, most))
        """Requests at the same time, rounded down."""
        self._most = most
        self._running = 0
        self._cuts = 0
        self._turn = threading.Condition()
        self._held = threading.local()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and have it; what is raised in it, or is not, moves the limit."""
        if getattr(self._held, "depth", 0):
            yield
            return
        with self._turn:
            self._turn.wait_for(lambda: self._running < int(self.limit), _PATIENCE)
            self._running += 1
            cuts = self._cuts
        self._held.depth = 1
        try:
            yield
        except Transient as transient:
            if _is_overload(transient):
                self._decrease(cuts)
            raise
        else:
            self._increase()
        finally:
            self._held.depth = 0
            with self._turn:
                self._running -= 1
                self._turn.notify_all()

    def _increase(self) -> None:
        with self._turn:
            self.limit = min(float(self._most), self.limit + 1 / self.limit)

    def _decrease(self, cuts: int) -> None:
        """Once for all requests that were under way together: they tell of one overload."""
        with self._turn:
            if cuts == self._cuts:
                self.limit = max(1.0, self.limit / 2)
                self._cuts += 1


def _is_overload(transient: Transient) -> bool:
    return transient.status in OVERLOADED or isinstance(transient.__cause__, httpx.TimeoutException)
