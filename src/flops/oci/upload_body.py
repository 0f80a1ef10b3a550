"""The bytes of an upload: a file that is opened anew for each try, whole or in parts, and what of it counts as done."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, BinaryIO

from flops.errors import Cancelled, RegistryDigest
from flops.oci.transport import PIECE

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator


class FileBody:
    """A blob here, and how much of it is on the other side."""

    def __init__(
        self,
        opener: Callable[[], BinaryIO],
        size: int,
        *,
        on_bytes: Callable[[int], None],
        stop: threading.Event | None = None,
    ) -> None:
        self.open = opener
        self.size = size
        self.stop = stop
        self._on_bytes = on_bytes
        self._counted = 0

    def part(self, start: int, size: int) -> Part:
        """A request's body; each time that it is read, what came before it counts as done and no more."""
        return Part(self, start, size)

    def count(self, done: int) -> None:
        """So many bytes are done, in all."""
        change, self._counted = done - self._counted, done
        if change:
            self._on_bytes(change)

    def take_back(self) -> None:
        """What was sent counts for nothing: the try failed."""
        self.count(0)

    def count_all(self) -> None:
        """All of it is in place."""
        self.count(self.size)

    def read_digest(self) -> str:
        """Of the bytes as they lie here."""
        digest = hashlib.sha256()
        with self.open() as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        return f"sha256:{digest.hexdigest()}"


class Part:
    """Bytes from `start` to `end` (exclusive), to be read more than once.

    RegistryDigest where the file has not the size it should have, Cancelled once stopped.
    """

    def __init__(self, body: FileBody, start: int, size: int) -> None:
        self._body = body
        self.start = start
        self.size = size
        self.end = start + size

    def __iter__(self) -> Iterator[bytes]:
        at, body = self.start, self._body
        body.count(at)
        with body.open() as file:
            if at:
                file.seek(at)
            # One byte more than wanted at the file's end tells that it has grown.
            while piece := file.read(min(PIECE, self.end - at + (self.end == body.size))):
                if body.stop is not None and body.stop.is_set():
                    raise Cancelled("the transfer was stopped")
                at += len(piece)
                if at > self.end:
                    break
                body.count(at)
                yield piece
                if at == self.end != body.size:
                    return
        if at != self.end:
            raise RegistryDigest("a blob on this machine changed its size", hint="delete the cache and build again")
