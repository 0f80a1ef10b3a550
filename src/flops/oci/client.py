"""A registry client (OCI distribution specification 1.1): blobs, manifests, tags; whole images by `push` and `pull`."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Self
from urllib.parse import urlencode

from flops.errors import RegistryDigest, RegistryRefused
from flops.oci import answers, pull, push
from flops.oci.authentication import pulling, pushing
from flops.oci.manifests import Manifests
from flops.oci.retry import Transient
from flops.oci.transport import PIECE, Session
from flops.oci.upload import FileBody, PushedBlob, Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    import httpx

    from flops.oci.blobs import BlobStore
    from flops.oci.credentials import Credentials
    from flops.oci.image import ImageIndex
    from flops.oci.layer import Layer
    from flops.oci.manifests import Manifest
    from flops.oci.pull import PulledImage, RemoteImage
    from flops.oci.push import Progress, PushReport
    from flops.oci.reference import Reference, Registry
    from flops.oci.retry import Retry
    from flops.platforms import Platform


class RegistryClient:
    """Talks to one registry, from any thread; remembers which blobs it saw where, and mounts rather than uploads.

    Without `credentials` it is nobody. `verify` names a file of trusted certificates; `realms` are further hosts that may
    give tokens. RegistryError and its kinds for everything that goes wrong.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        credentials: Credentials | None = None,
        transport: httpx.BaseTransport | None = None,
        verify: Path | None = None,
        workers: int = 4,
        realms: Collection[str] = (),
        retry: Retry | None = None,
    ) -> None:
        self.registry = registry
        self.workers = workers
        self._session = Session(
            registry,
            credentials=credentials,
            transport=transport,
            verify=verify,
            connections=2 * workers + 2,
            realms=realms,
            retry=retry,
        )
        self._manifests = Manifests(self._session)
        self._known: dict[tuple[str, str], PushedBlob] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def ping(self) -> None:
        """See that there is a registry that talks to us; RegistryUnreachable, RegistryAuth, RegistryRefused."""
        self._session.request("GET", "/v2/", expect={200})

    # --- blobs ---
    def has_blob(self, repository: str, digest: str) -> bool:
        return self._has(repository, digest, pulling(repository))

    @contextmanager
    def get_blob(self, repository: str, digest: str) -> Iterator[Iterator[bytes]]:
        """Stream a blob's bytes in one try; RegistryDigest at their end where they are not what the digest says."""
        try:
            with self._blob(repository, digest) as pieces:
                yield pieces
        except Transient as transient:
            raise transient.failure from transient

    def fetch_blob(self, repository: str, digest: str, write: Callable[[Iterator[bytes]], None]) -> None:
        """Hand a blob's bytes to `write`, from the start again where a try failed; it must read to the end."""

        def attempt() -> None:
            with self._blob(repository, digest) as pieces:
                write(pieces)

        self._session.retry.run(attempt)

    def push_blob(
        self,
        repository: str,
        digest: str,
        size: int,
        opener: Callable[[], BinaryIO],
        *,
        mount_from: Iterable[str] = (),
        on_bytes: Callable[[int], None] = lambda _count: None,
        stop: threading.Event | None = None,
    ) -> PushedBlob:
        """See that a repository holds a blob: it is there, or it is mounted from another one, or uploaded.

        `opener` gives its bytes, for each try anew. `on_bytes` hears of bytes done (negative where a try failed), also
        of those that needed no upload. One thread at a time works on a digest, in all repositories.
        """
        with self._guard:
            lock = self._locks[digest]
        with lock:
            known = self._known.get((repository, digest))
            if known is None:
                body = FileBody(opener, size, on_bytes=on_bytes, stop=stop)
                known = self._push(repository, digest, body, self._holders(repository, digest, mount_from))
                self._known[repository, digest] = known
                if known is PushedBlob.UPLOADED:
                    return known
            on_bytes(size)
            return known

    def push_blobs(
        self,
        repository: str,
        layers: Iterable[Layer],
        store: BlobStore,
        *,
        mount_from: Iterable[str] = (),
        progress: Progress | None = None,
    ) -> PushReport:
        """Upload layers before their image is whole; a later `push_index` of this client finds them done."""
        return push.push_blobs(self, repository, layers, store, mount_from=tuple(mount_from), progress=progress)

    def forget(self, repository: str, digests: Iterable[str]) -> None:
        """Ask the registry again for these blobs: it said that it does not hold one of them."""
        for digest in digests:
            self._known.pop((repository, digest), None)

    # --- manifests ---
    def put_manifest(self, repository: str, reference: str, media_type: str, document: bytes) -> str:
        """Push a manifest or index under a tag or its digest, and see that it is there; the digest.

        ManifestIncomplete where the registry does not hold what it names, RegistryDigest where it kept another one.
        """
        return self._manifests.put(repository, reference, media_type, document)

    def get_manifest(self, repository: str, reference: str) -> Manifest | None:
        """A manifest or index by tag or digest; None where there is none. RegistryDigest where it is not what it says."""
        return self._manifests.get(repository, reference)

    def tags(self, repository: str) -> tuple[str, ...]:
        """All tags, in the registry's order; none where there is no such repository."""
        return self._manifests.tags(repository)

    # --- images ---
    def push_index(
        self,
        repository: str,
        index: ImageIndex,
        store: BlobStore,
        tags: Sequence[str],
        *,
        mount_from: Iterable[str] = (),
        progress: Progress | None = None,
        before_tags: Callable[[], None] | None = None,
    ) -> PushReport:
        """Push an image over platforms: blobs in parallel, manifests, the index; `before_tags()`; then the tags.

        `progress(done, total)` counts bytes of blobs, from any thread. A failure before the tags leaves them untouched.
        """
        return push.push_index(
            self,
            repository,
            index,
            store,
            tags,
            mount_from=tuple(mount_from),
            progress=progress,
            before_tags=before_tags,
        )

    def images(self, repository: str, reference: str) -> dict[Platform, RemoteImage] | None:
        """The documents of each platform's image under a tag or digest; None where there is none. No layers."""
        return pull.images(self, repository, reference)

    def pull(self, reference: Reference, store: BlobStore, platform: Platform) -> PulledImage:
        """Fetch one platform's image into a store, every digest checked on the way; ImageNotFound."""
        return pull.pull(self, reference, store, platform)

    @contextmanager
    def _blob(self, repository: str, digest: str) -> Iterator[Iterator[bytes]]:
        path = f"/v2/{repository}/blobs/{digest}"
        with self._session.stream("GET", path, expect={200}, scope=pulling(repository), unread=True) as response:
            yield self._checked(response, digest)

    def _checked(self, response: httpx.Response, digest: str) -> Iterator[bytes]:
        received = hashlib.sha256()
        answers.pace(response)
        for piece in response.iter_raw(PIECE):
            received.update(piece)
            yield piece
        if f"sha256:{received.hexdigest()}" != digest:
            failure = RegistryDigest(f"{self.registry.host} sent other bytes than {digest}", hint="try again")
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
            except RegistryRefused:
                return False, None
        path = f"/v2/{repository}/blobs/uploads/?{urlencode({'mount': digest, 'from': holder})}"
        answer = self._session.request("POST", path, expect={201, 202, 400, 401, 403, 404, 405}, scope=scope)
        if answer.status_code == 202:  # noqa: PLR2004
            return False, self._session.location(answer)
        return answer.status_code == 201, None  # noqa: PLR2004
