"""A registry's blobs: what is where, reading, and the cheapest way in: it is there, it is mounted, or it is uploaded."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from flops.errors import RegistryAuth, RegistryDigest, RegistryRefused
from flops.http import Transient
from flops.oci import responses
from flops.oci.authentication import pulling, pushing
from flops.oci.transport import PIECE
from flops.oci.upload import PushedBlob, Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import httpx

    from flops.oci.transport import Session
    from flops.oci.upload import FileBody


class RemoteBlobs:
    """The requests; see RegistryClient for what they promise."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[tuple[str, str], PushedBlob] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()

    def has(self, repository: str, digest: str) -> bool:
        return self._has(repository, digest, pulling(repository))

    def size(self, repository: str, digest: str) -> int | None:
        """None where there is no such blob, -1 where the registry does not tell."""
        path = f"/v2/{repository}/blobs/{digest}"
        answer = self._session.request("HEAD", path, expect={200, 404}, scope=pulling(repository))
        told = answer.headers.get("content-length", "")
        return None if not answer.is_success else int(told) if told.isdecimal() else -1

    @contextmanager
    def get(self, repository: str, digest: str) -> Iterator[Iterator[bytes]]:
        """One try, its bytes checked at their end; Transient where another one may help."""
        path = f"/v2/{repository}/blobs/{digest}"
        with self._session.stream("GET", path, expect={200}, scope=pulling(repository), unread=True) as response:
            yield self._checked(response, digest)

    def fetch(self, repository: str, digest: str, write: Callable[[Iterator[bytes]], None]) -> None:
        """Hand a blob's bytes to `write`, from the start again where a try failed."""

        def attempt() -> None:
            with self.get(repository, digest) as pieces:
                write(pieces)

        self._session.retry.run(attempt)

    def push(self, repository: str, digest: str, body: FileBody, mount_from: Iterable[str]) -> PushedBlob:
        """One thread at a time works on a digest, in all repositories."""
        with self._guard:
            lock = self._locks[digest]
        with lock:
            known = self._known.get((repository, digest))
            if known is None:
                known = self._push(repository, digest, body, self._holders(repository, digest, mount_from))
                self._known[repository, digest] = known
                if known is PushedBlob.UPLOADED:
                    return known
            body.count_all()
            return known

    def forget(self, repository: str, digests: Iterable[str]) -> None:
        for digest in digests:
            self._known.pop((repository, digest), None)

    def _checked(self, response: httpx.Response, digest: str) -> Iterator[bytes]:
        received, host = hashlib.sha256(), self._session.registry.host
        responses.pace(response)
        for piece in response.iter_raw(PIECE):
            received.update(piece)
            yield piece
        if f"sha256:{received.hexdigest()}" != digest:
            failure = RegistryDigest(f"{host} sent other bytes than {digest}", hint="try again")
            raise Transient(failure, tries=2)

    def _has(self, repository: str, digest: str, scope: tuple[str, ...]) -> bool:
        answer = self._session.request("HEAD", f"/v2/{repository}/blobs/{digest}", expect={200, 404}, scope=scope)
        return answer.status_code == 200  # noqa: PLR2004

    def _holders(self, repository: str, digest: str, others: Iterable[str]) -> list[str]:
        """Other repositories that hold the blob, those that we know first; the given ones are asked when needed."""
        seen = [name for name, other in list(self._known) if other == digest]
        return [name for name in dict.fromkeys([*seen, *others]) if name != repository]

    def _push(self, repository: str, digest: str, body: FileBody, holders: Sequence[str]) -> PushedBlob:
        if self._has(repository, digest, pushing(repository)):
            return PushedBlob.EXISTED
        begun = None
        for holder in holders:
            mounted, begun = self._mount(repository, digest, holder)
            if mounted:
                return PushedBlob.MOUNTED
            if begun is not None:
                break
        upload = Upload(self._session, repository, digest, body, scope=pushing(repository), begun=begun)
        self._session.retry.run(upload.attempt, stop=body.stop)
        return PushedBlob.UPLOADED

    def _mount(self, repository: str, digest: str, holder: str) -> tuple[bool, httpx.URL | None]:
        """Whether it was mounted; else the upload that the registry began instead, if it did."""
        scope = (*pushing(repository), *pulling(holder))
        if (holder, digest) not in self._known:
            try:
                if not self._has(holder, digest, pulling(holder)):
                    return False, None
            except (RegistryAuth, RegistryRefused):
                return False, None
        path = f"/v2/{repository}/blobs/uploads/?{urlencode({'mount': digest, 'from': holder})}"
        answer = self._session.request("POST", path, expect={201, 202, 400, 401, 403, 404, 405}, scope=scope)
        if answer.status_code == 202:  # noqa: PLR2004
            return False, self._session.location(answer)
        return answer.status_code == 201, None  # noqa: PLR2004
