"""One blob's way into a repository, try by try (distribution specification, "Pushing blobs").

In one PUT as a rule. After a cut it goes on where the registry says that it stopped, if it can say so; in chunks where a
body of that size was refused, or where the client was told to.
"""

from __future__ import annotations

import hashlib
import re
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO

from flops.errors import Cancelled, RegistryDigest, RegistryRefused
from flops.http import Transient
from flops.oci.transport import PIECE, error_codes

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    import httpx

    from flops.oci.transport import Session


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

    def part(self, start: int, size: int) -> BodyPart:
        """A request's body; each time that it is read, what came before it counts as done and no more."""
        return BodyPart(self, start, size)

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


class BodyPart:
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


#: The tries that a blob whose digest did not match gets in all.
_DIGEST_TRIES = 2
#: Bytes that are sent again rather than asked about.
_SMALL = 1024 * 1024
#: The smallest and the first chunk after a body was refused as too large; proxies allow 1 MiB and more.
_LEAST_CHUNK, _FIRST_CHUNK = 512 * 1024, 64 * 1024 * 1024
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
#: Answers to a chunk of registries that take none.
_NO_CHUNKS = {400, 405, 501}
#: And of those that lost the upload, or are elsewhere in it.
_LOST = {404, 416}
_UNKNOWN = {"BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN"}
_TOO_LARGE = 413


class PushedBlob(Enum):
    """How a blob came to be in a repository, as the client first found it."""

    EXISTED = "existed"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


class Upload:
    """POST for a Location, then the bytes to it; `attempt` is one try, and knows what the one before achieved."""

    def __init__(
        self,
        session: Session,
        repository: str,
        digest: str,
        body: FileBody,
        *,
        scope: tuple[str, ...],
        begun: httpx.URL | None = None,
    ) -> None:
        self._session = session
        self._repository = repository
        self._digest = digest
        self._body = body
        self._scope = scope
        self._location = begun
        """The newest one; a refused mount leaves one too."""
        self._least = 0
        """Bytes of a chunk at least, as the registry told (`OCI-Chunk-Min-Length`)."""
        self._offset = self._start = 0
        """Bytes that the registry has, and that it had when the last try began."""
        self._chunkless = False
        """It takes no chunks."""
        self._tried = False
        self._mismatches = 0

    def attempt(self) -> None:
        """One try; Transient where another one may help."""
        progressed = False
        if self._tried:
            if self._arrived():
                return
            before, self._offset = self._start, self._continued()
            self._start, progressed = self._offset, self._offset > before
        self._tried = True
        try:
            self._send()
        except BaseException as error:
            self._body.take_back()
            if isinstance(error, Transient):
                error.progressed = progressed
            raise

    def _send(self) -> None:
        while True:
            if self._location is None:
                self._begin()
            chunk = self._session.chunk
            whole = chunk is None or self._chunkless or self._body.size <= max(chunk, self._least)
            if self._whole() if whole and not self._offset else self._chunks():
                return

    def _begin(self) -> None:
        path = f"/v2/{self._repository}/blobs/uploads/"
        answer = self._session.send("POST", path, expect={202}, scope=self._scope, headers={"Content-Length": "0"})
        self._location, self._offset = self._session.location(answer), 0
        least = answer.headers.get("oci-chunk-min-length", "")
        self._least = int(least) if least.isascii() and least.isdigit() and len(least) < 12 else 0  # noqa: PLR2004

    def _arrived(self) -> bool:
        """An answer that got lost may have been a yes."""
        path = f"/v2/{self._repository}/blobs/{self._digest}"
        if self._session.send("HEAD", path, expect={200, 404}, scope=self._scope).is_success:
            self._body.count_all()
            return True
        return False

    def _continued(self) -> int:
        """Where the registry says that the last try stopped; 0, and no Location, where it is to begin anew."""
        location = self._location
        if location is None or self._mismatches or self._chunkless or self._body.size <= _SMALL:
            self._location = None
            return 0
        answer = self._session.send("GET", location, expect={200, 202, 204, 400, 404, 405, 416, 501}, scope=self._scope)
        told = _received(answer) if answer.is_success else None
        going = told is not None and 1 < told <= self._body.size
        self._location = self._next(answer, location) if going else None
        return told if told is not None and going else 0

    def _whole(self) -> bool:
        """All of it in one PUT; False where it was too large, and chunks are to be tried."""
        answer = self._put(self._body.part(0, self._body.size))
        if answer.status_code == _TOO_LARGE:
            self._smaller(answer, self._body.size)
            self._location = None
            return False
        return True

    def _chunks(self) -> bool:
        """PATCH by PATCH from the offset on, then an empty PUT; False where the registry takes no chunks."""
        while self._offset < self._body.size:
            limit = max(self._session.chunk or self._body.size, self._least)
            part = self._body.part(self._offset, min(limit, self._body.size - self._offset))
            answer = self._patch(part)
            if answer.status_code == _TOO_LARGE:
                self._smaller(answer, part.size)
                continue
            if answer.status_code in _LOST or error_codes(answer) & _UNKNOWN:
                raise Transient(self._session.refusal(answer))
            if not answer.is_success:
                self._chunkless, self._location, self._offset = True, None, 0
                return False
            self._offset = self._advanced(answer, part)
        self._put(None)
        return True

    def _advanced(self, answer: httpx.Response, part: BodyPart) -> int:
        """What the registry has after a chunk; it may have taken a part of it."""
        told = _received(answer)
        if told is None:
            return part.end
        if not self._offset < told <= part.end:
            self._location = None
            host = self._session.registry.host
            raise Transient(RegistryRefused(f"{host} has {told} bytes of an upload of which {part.end} were sent"))
        return told

    def _patch(self, part: BodyPart) -> httpx.Response:
        location = self._location
        assert location is not None  # noqa: S101 - for the type checker: an upload was begun
        answer = self._session.send(
            "PATCH",
            location,
            expect={200, 201, 202, 204, _TOO_LARGE, *_NO_CHUNKS, *_LOST},
            scope=self._scope,
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(part.size),
                "Content-Range": f"{part.start}-{part.end - 1}",
            },
            content=part,
        )
        if answer.is_success:
            self._location = self._next(answer, location)
        return answer

    def _put(self, part: BodyPart | None) -> httpx.Response:
        """The end of the upload, with all of its bytes or none; an answer that is a yes, or 413."""
        location = self._location
        assert location is not None  # noqa: S101 - for the type checker: an upload was begun
        query = b"&".join(
            part for part in (location.query, b"digest=" + self._digest.replace(":", "%3A").encode()) if part
        )
        answer = self._session.send(
            "PUT",
            location.copy_with(query=query),
            expect={200, 201, 204, 400, _TOO_LARGE, *_LOST},
            scope=self._scope,
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(part.size if part else 0)},
            content=part if part is not None else b"",
        )
        self._judge(answer)
        return answer

    def _judge(self, answer: httpx.Response) -> None:
        if answer.is_success:
            if answer.headers.get("docker-content-digest", self._digest) != self._digest:
                raise self._mismatch()
            return
        if answer.status_code == _TOO_LARGE:
            return
        codes = error_codes(answer)
        if "DIGEST_INVALID" in codes:
            raise self._mismatch()
        failure = self._session.refusal(answer)
        if answer.status_code in _LOST or codes & _UNKNOWN:
            self._location = None
            raise Transient(failure)  # the registry lost the upload: begin it again
        raise failure

    def _smaller(self, answer: httpx.Response, size: int) -> None:
        """Half of what was refused, for all uploads from now on; RegistryTooLarge where that is less than it may be."""
        least = max(_LEAST_CHUNK, self._least)
        if self._chunkless or size <= least:
            raise self._session.refusal(answer)
        half = max(least, min(size // 2, _FIRST_CHUNK))
        self._session.chunk = min(half, self._session.chunk or half)
        self._body.count(self._offset)

    def _next(self, answer: httpx.Response, location: httpx.URL) -> httpx.URL:
        return self._session.location(answer) if "location" in answer.headers else location

    def _mismatch(self) -> Exception:
        """Bytes may change on the way once; a file that is wrong on this disk stays wrong."""
        self._mismatches += 1
        self._location = None
        if self._body.read_digest() != self._digest:
            return RegistryDigest(
                f"a blob on this machine is not what its digest says ({self._digest})",
                hint="delete the cache and build again",
            )
        failure = RegistryDigest(
            f"{self._session.registry.host} received other bytes than were sent ({self._digest})",
            hint="something between us and the registry changes uploads",
        )
        return failure if self._mismatches >= _DIGEST_TRIES else Transient(failure)


def _received(answer: httpx.Response) -> int | None:
    """Bytes that a registry has, by the Range of its answer; None where it does not tell."""
    match = _RANGE.fullmatch(answer.headers.get("range", "").strip())
    return int(match[1]) + 1 if match else None
