"""Wheels by hash: fetched once, verified while they arrive, kept in a directory."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

from flops import http
from flops.errors import BuildError, IndexUnreachable, WheelHash
from flops.files import replacing
from flops.http import Retry, Transient, is_transient, retry_after
from flops.locking.index import HINT
from flops.oci.blobs import disk_full, used

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from flops.locking.lock import LockedWheel

#: Attempts before a download counts as failed.
ATTEMPTS = 4
#: Seconds: longest wait for one read, and longest pause between two attempts.
SECONDS = 30.0
PAUSE = 10.0
#: Bytes hashed and written at a time; more than the 16 KiB that TLS gives, so that threads wait less for each other.
PIECE = 256 * 1024
#: Attempts after which a wrong hash counts as failure.
HASH_ATTEMPTS = 2
#: Bytes that are read at most if the lock has no size: the index could send without end.
LARGEST = 16 * 1024**3


class WheelCache:
    """Wheels under `root`, named by their sha256. Safe between threads and processes; `with` closes its connections."""

    def __init__(
        self,
        root: Path,
        *,
        index_url: str | None = None,
        ca_bundle: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        workers: int = 8,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._root = root
        self._workers = workers
        self._retry = Retry(tries=ATTEMPTS, first=0.5, longest=PAUSE, sleep=sleep)
        self._origin, self._user = _credentials(index_url)
        self._ca_bundle = ca_bundle
        self._transport = transport
        self._opening = threading.Lock()
        self._opened: httpx.Client | None = None
        self.written = 0
        """Bytes that this process wrote into the cache."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.close()

    @property
    def _client(self) -> httpx.Client:
        """Opened with the first download: often the cache has everything."""
        import httpx  # noqa: PLC0415 - slow to import

        with self._opening:
            if self._opened is None:
                self._opened = http.client(
                    self._ca_bundle,
                    transport=self._transport,
                    seconds=SECONDS,
                    follow_redirects=True,
                    limits=httpx.Limits(max_connections=self._workers),
                    headers={"Accept-Encoding": "identity"},
                )
            return self._opened

    def path(self, wheel: LockedWheel) -> Path:
        """The wheel's path, whether it is there or not."""
        return self._root / wheel.sha256[:2] / f"{wheel.sha256}.whl"

    def has(self, wheel: LockedWheel) -> bool:
        """Whether the wheel is here, whole by its size (its bytes were verified when it was fetched)."""
        size = used(self.path(wheel))
        return size is not None and wheel.size in {None, size}

    def auth(self, wheel: LockedWheel) -> tuple[str, str] | None:
        """The index's credentials (user name, password), if the wheel is on the index's own origin."""
        parts = urlsplit(wheel.url)
        return self._user if (parts.scheme, parts.netloc) == self._origin else None

    def fetch(self, wheel: LockedWheel, *, on_bytes: Callable[[int], None] | None = None) -> Path:
        """Fetch a wheel unless it is here; returns its path.

        `on_bytes` gets the size of each piece, and a negative number if an attempt starts over.
        WheelHash, IndexUnreachable, DiskFull.
        """
        path = self.path(wheel)
        if self.has(wheel):
            return path
        self._retry.run(lambda: self._download(wheel, path, on_bytes or _ignore))
        return path

    def _download(self, wheel: LockedWheel, path: Path, on_bytes: Callable[[int], None]) -> None:
        """One attempt: to a temporary file beside its place, which it takes when the hash is right."""
        try:
            with replacing(path) as file:
                self._stream(wheel, file.fileno(), on_bytes)
            self.written += path.stat().st_size
        except OSError as error:
            raise _no_room(self._root, error) from error

    def _stream(self, wheel: LockedWheel, descriptor: int, on_bytes: Callable[[int], None]) -> None:
        received, reported, sha256 = 0, 0, hashlib.sha256()
        try:
            for piece in self._pieces(wheel):
                received += len(piece)
                if received > (LARGEST if wheel.size is None else wheel.size):
                    break
                sha256.update(piece)
                _write(descriptor, piece)
                on_bytes(len(piece))
                reported = received
            _verify(wheel, sha256.hexdigest(), received)
        except BaseException:
            on_bytes(-reported)
            raise

    def _pieces(self, wheel: LockedWheel) -> Iterator[bytes]:
        """The body as it arrives; Transient where another attempt may help, IndexUnreachable where it can't."""
        import httpx  # noqa: PLC0415 - slow to import

        from flops.oci.responses import pace  # noqa: PLC0415 - httpx is slow to import, and a check may need none

        try:
            with self._client.stream("GET", wheel.url, auth=self.auth(wheel)) as response:
                _check(wheel, response)
                pace(response)
                yield from response.iter_raw(PIECE)
        except (httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: a host that is no IDNA name
            raise IndexUnreachable(f"{wheel.filename} has an address that can't be used") from error
        except httpx.HTTPError as error:
            why, hint = http.reason(error)
            failure = IndexUnreachable(f"{wheel.filename} can't be fetched: {why}", hint=hint or HINT)
            raise (failure if hint else Transient(failure)) from error


def _verify(wheel: LockedWheel, sha256: str, received: int) -> None:
    if sha256 != wheel.sha256 or wheel.size not in {None, received}:
        failure = WheelHash(
            f"{wheel.filename} is not the file that was locked (sha256 or size differs)",
            hint="lock again with --upgrade; if it stays so, the package index or a proxy changes files",
        )
        raise Transient(failure, tries=HASH_ATTEMPTS)


def _check(wheel: LockedWheel, response: httpx.Response) -> None:
    status = response.status_code
    if is_transient(status):
        failure = IndexUnreachable(f"{wheel.filename} can't be fetched: status {status}", hint=HINT)
        raise Transient(failure, after=retry_after(response))
    if not response.is_success:
        raise IndexUnreachable(
            f"{wheel.filename} can't be fetched: status {status}",
            hint="the stored lock may name a file that is gone, lock again with --upgrade; or credentials are missing",
        )


def _credentials(index_url: str | None) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
    """The index's origin and the credentials in its URL, which go to that origin only."""
    parts = urlsplit(index_url or "")
    if parts.username is None:
        return None, None
    user = (unquote(parts.username), unquote(parts.password or ""))
    return (parts.scheme, parts.netloc.rpartition("@")[2]), user


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _no_room(root: Path, error: OSError) -> BuildError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return disk_full(root)
    return BuildError(f"{root} can't be written: {error.strerror}", hint="set FLOPS_CACHE_DIR to a place of your own")


def _ignore(_: int) -> None:
    pass
