"""One blob's way into a repository, try by try (distribution specification, "Pushing a blob monolithically")."""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO

from flops.errors import Cancelled, RegistryDigest
from flops.oci.retry import Transient
from flops.oci.transport import PIECE, error_codes

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    import httpx

    from flops.oci.transport import Session

#: The tries that a blob whose digest did not match gets in all.
_DIGEST_TRIES = 2


class PushedBlob(Enum):
    """How a blob came to be in a repository, as the client first found it."""

    EXISTED = "existed"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


class FileBody:
    """A request's body that is opened anew for each try; counts what was sent.

    RegistryDigest where the file has not the size it should have, Cancelled once stopped.
    """

    def __init__(
        self,
        opener: Callable[[], BinaryIO],
        size: int,
        *,
        on_bytes: Callable[[int], None],
        stop: threading.Event | None = None,
    ) -> None:
        self._open = opener
        self._on_bytes = on_bytes
        self._counted = 0
        self.size = size
        self.stop = stop

    def __iter__(self) -> Iterator[bytes]:
        self.take_back()
        with self._open() as file:
            while piece := file.read(PIECE):
                if self.stop is not None and self.stop.is_set():
                    raise Cancelled("the transfer was stopped")
                if self._counted + len(piece) > self.size:
                    break
                self._count(len(piece))
                yield piece
        if piece or self._counted != self.size:
            raise RegistryDigest("a blob on this machine changed its size", hint="delete the cache and build again")

    def take_back(self) -> None:
        """What was sent counts for nothing: the try failed."""
        self._count(-self._counted)

    def count_all(self) -> None:
        """All of it is in place."""
        self._count(self.size - self._counted)

    def read_digest(self) -> str:
        """Of the bytes as they lie here."""
        digest = hashlib.sha256()
        with self._open() as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        return f"sha256:{digest.hexdigest()}"

    def _count(self, number: int) -> None:
        self._counted += number
        if number:
            self._on_bytes(number)


class Upload:
    """POST for a Location, PUT the whole body to it; each try begins at the POST with the body from its start."""

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
        self._begun = begun
        """The Location that a refused mount left, used by the first try."""
        self._tried = False
        self._mismatches = 0

    def attempt(self) -> None:
        """One try; Transient where another one may help."""
        if self._tried and self._arrived():
            return
        self._tried = True
        location, self._begun = self._begun or self._begin(), None
        try:
            self._finish(location)
        except BaseException:
            self._body.take_back()
            raise

    def _arrived(self) -> bool:
        """An answer that got lost may have been a yes."""
        path = f"/v2/{self._repository}/blobs/{self._digest}"
        if self._session.send("HEAD", path, expect={200, 404}, scope=self._scope).is_success:
            self._body.count_all()
            return True
        return False

    def _begin(self) -> httpx.URL:
        path = f"/v2/{self._repository}/blobs/uploads/"
        answer = self._session.send("POST", path, expect={202}, scope=self._scope, headers={"Content-Length": "0"})
        return self._session.location(answer)

    def _finish(self, location: httpx.URL) -> None:
        query = b"&".join(
            part for part in (location.query, b"digest=" + self._digest.replace(":", "%3A").encode()) if part
        )
        answer = self._session.send(
            "PUT",
            location.copy_with(query=query),
            expect={200, 201, 204, 400, 404, 416},
            scope=self._scope,
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(self._body.size)},
            content=self._body,
        )
        if answer.is_success:
            if answer.headers.get("docker-content-digest", self._digest) != self._digest:
                raise self._mismatch()
            return
        codes = error_codes(answer)
        if "DIGEST_INVALID" in codes:
            raise self._mismatch()
        failure = self._session.refusal(answer)
        if answer.status_code != 400 or codes & {"BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN"}:  # noqa: PLR2004
            raise Transient(failure)  # the registry lost the upload: begin it again
        raise failure

    def _mismatch(self) -> Exception:
        """Bytes may change on the way once; a file that is wrong on this disk stays wrong."""
        self._mismatches += 1
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
