"""Blobs and manifests of a registry (OCI distribution specification 1.1), one at a time."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Self

from flops.http import Transient
from flops.oci.manifests import Manifests
from flops.oci.referrers import Referrers, RemoteArtifacts
from flops.oci.remote_blobs import RemoteBlobs
from flops.oci.transport import Session
from flops.oci.upload import FileBody

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    import httpx

    from flops.addresses import PinnedHosts
    from flops.http import Retry
    from flops.oci.credentials import Credentials
    from flops.oci.manifests import Manifest
    from flops.oci.reference import Registry
    from flops.oci.upload import PushedBlob


class ContentClient:
    """The part of a RegistryClient that whole images are pushed and pulled by."""

    def __init__(
        self,
        registry: Registry,
        *,
        credentials: Credentials | None = None,
        transport: httpx.BaseTransport | None = None,
        verify: Path | None = None,
        workers: int = 4,
        chunk: int | None = None,
        realms: Collection[str] = (),
        retry: Retry | None = None,
        hosts: PinnedHosts | None = None,
    ) -> None:
        self.registry = registry
        self.workers = workers
        self._session = Session(
            registry,
            credentials=credentials,
            transport=transport,
            verify=verify,
            workers=workers,
            chunk=chunk,
            realms=realms,
            retry=retry,
            hosts=hosts,
        )
        self._manifests = Manifests(self._session)
        self._blobs = RemoteBlobs(self._session)
        self._referrers = Referrers(self._session, self._manifests)
        self._artifacts = RemoteArtifacts(self._blobs, self._manifests, self._referrers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def ping(self) -> None:
        """See that there is a registry that talks to us; RegistryUnreachable, RegistryAuth, RegistryRefused."""
        self._session.request("GET", "/v2/", expect={200})

    def has_blob(self, repository: str, digest: str) -> bool:
        return self._blobs.has(repository, digest)

    def blob_size(self, repository: str, digest: str) -> int | None:
        """In bytes, as the registry tells it; None where there is no such blob."""
        return self._blobs.size(repository, digest)

    @contextmanager
    def get_blob(self, repository: str, digest: str) -> Iterator[Iterator[bytes]]:
        """Stream a blob's bytes in one try; RegistryDigest at their end where they are not what the digest says."""
        try:
            with self._blobs.get(repository, digest) as pieces:
                yield pieces
        except Transient as transient:
            raise transient.failure from transient

    def fetch_blob(self, repository: str, digest: str, write: Callable[[Iterator[bytes]], None]) -> None:
        """Hand a blob's bytes to `write`, from the start again where a try failed; it must read to the end."""
        self._blobs.fetch(repository, digest, write)

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
        body = FileBody(opener, size, on_bytes=on_bytes, stop=stop)
        return self._blobs.push(repository, digest, body, mount_from)

    def forget(self, repository: str, digests: Iterable[str]) -> None:
        """Ask the registry again for these blobs: it said that it does not hold one of them."""
        self._blobs.forget(repository, digests)

    def put_manifest(self, repository: str, reference: str, media_type: str, document: bytes) -> str:
        """Push a manifest or index under a tag or its digest, and see that it is there; the digest.

        ManifestIncomplete where the registry does not hold what it names, RegistryDigest where it kept another one.
        """
        return self._manifests.put(repository, reference, media_type, document).digest

    def get_manifest(self, repository: str, reference: str) -> Manifest | None:
        """A manifest or index by tag or digest; None where there is none. RegistryDigest where it is not what it says."""
        return self._manifests.get(repository, reference)
