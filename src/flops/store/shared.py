"""Documents that builders share through a registry, by kind and key, in one repository beside the images.

Each is an artifact (OCI image-spec 1.1) under the tag KIND-KEY. Anyone who can push there decides which locks and layers
other builders use, just as anyone who can push an image decides what runs. So builders that don't trust each other need
registries, or prefixes, of their own. A registry that can't keep these documents costs a warning, never a build.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops.errors import BadImage, Cancelled, FlopsError
from flops.oci.artifacts import Content
from flops.oci.descriptor import Descriptor, canonical
from flops.progress import Stage

if TYPE_CHECKING:
    from flops.oci.blobs import BlobStore
    from flops.oci.client import RegistryClient
    from flops.oci.layer import Layer
    from flops.progress import Reporter

#: The repository of the documents, under the registry's prefix.
REPOSITORY = ("flops", "cache")
#: Raised when the shape of the documents changes.
FORMAT = 1
LAYER, LOCK, BASE, PROVIDES = "layer", "lock", "base", "provides"
#: Documents that are uploaded at the same time, in the background.
WORKERS = 2
#: Seconds by which another builder's clock may be ahead of ours.
SKEW = 300.0


@dataclass(frozen=True, kw_only=True)
class SharedDocument:
    """A document that another builder left."""

    content: Any
    """JSON values, which the caller has to check."""
    age: float
    """Seconds since it was made."""
    blobs: tuple[Descriptor, ...]
    """Blobs of the artifact beside the document."""


class SharedCache:
    """The shared documents of one registry. Safe between threads; each document is asked for once.

    After the first failure of the registry nothing is shared any more in this build, with one warning.
    """

    def __init__(self, client: RegistryClient, repository: str, reporter: Reporter, *, read_only: bool = False) -> None:
        self.client = client
        self.repository = repository
        self.uploaded = 0
        """Bytes of documents and layers that were uploaded here."""
        self.uploaded_layers = 0
        self._reporter = reporter
        self._read_only = read_only
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="share")
        self._uploads: list[Future[None]] = []
        self._guard = threading.Lock()
        self._off = False
        self._found: dict[tuple[str, str], SharedDocument | None] = {}

    @property
    def available(self) -> bool:
        """Whether the registry has not failed so far."""
        return not self._off

    def find(self, kind: str, key: str) -> SharedDocument | None:
        """The document under this key (64 hexadecimal digits); None if there is none, or it can't be read."""
        if self._off:
            return None
        with self._guard:
            if (kind, key) in self._found:
                return self._found[kind, key]
        found = self._find(kind, key)
        with self._guard:
            self._found[kind, key] = found
        return found

    def _find(self, kind: str, key: str) -> SharedDocument | None:
        try:
            found = self.client.get_artifact(self.repository, f"{kind}-{key}", artifact_type=media_type(kind))
            return None if found is None else _read(found.content, kind, key, found.blobs[1:])
        except (BadImage, ValueError, KeyError, TypeError, RecursionError) as error:
            self.ignore(kind, key, error.message if isinstance(error, FlopsError) else "it can't be read")
        except Cancelled:
            raise
        except FlopsError as error:
            self._stop(f"read: {error.message}")
        return None

    def ignore(self, kind: str, key: str, reason: str) -> None:
        """Warn that a document is not used."""
        self._reporter.warning(
            Stage.RESOLVE,
            f"{self.repository}:{kind}-{key[:12]}... on {self.client.registry.host} is ignored: {reason:.200}",
            hint="it is made again; anyone who can push there can write such documents",
        )

    def size(self, digest: str) -> int | None:
        """Size in bytes of a blob in this repository; None if it is absent."""
        try:
            return self.client.blob_size(self.repository, digest)
        except Cancelled:
            raise
        except FlopsError as error:
            self._stop(f"read: {error.message}")
            return None

    def put(
        self, kind: str, key: str, content: Any, *, layer: Layer | None = None, store: BlobStore | None = None
    ) -> None:
        """Upload a document in the background, and the layer that it describes (whose bytes `store` has), if any."""
        if self._off or self._read_only:
            return
        document = {"format": FORMAT, "kind": kind, "key": key, "created": round(time.time()), "content": content}
        with self._guard:
            self._uploads.append(self._pool.submit(self._upload, kind, key, canonical(document), layer, store))

    def wait(self) -> None:
        """Wait for the uploads; failures were reported as a warning."""
        for future in self._uploads:
            future.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _upload(self, kind: str, key: str, document: bytes, layer: Layer | None, store: BlobStore | None) -> None:
        if self._off:
            return
        blobs = []
        try:
            if layer is not None and store is not None:
                self._upload_layer(layer, store)
                blobs = [Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)]
            content = Content(data=document, media_type=media_type(kind))
            annotations = {"org.opencontainers.image.created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            self.client.put_artifact(
                self.repository, f"{kind}-{key}", media_type(kind), content, blobs=blobs, annotations=annotations
            )
        except Cancelled:
            return  # the build is cancelled too
        except (FlopsError, OSError) as error:
            self._stop(f"written: {error.message if isinstance(error, FlopsError) else error.strerror}")
            return
        with self._guard:
            self.uploaded += len(document)

    def _upload_layer(self, layer: Layer, store: BlobStore) -> None:
        from flops.oci.upload import PushedBlob  # noqa: PLC0415 - httpx is slow to import, and a check uploads no layers

        how = self.client.push_blob(self.repository, layer.digest, layer.size, lambda: store.open(layer.digest))
        if how is PushedBlob.UPLOADED:
            with self._guard:
                self.uploaded += layer.size
                self.uploaded_layers += layer.size

    def _stop(self, what: str) -> None:
        with self._guard:
            stopped, self._off = self._off, True
        if not stopped:
            self._reporter.warning(
                Stage.RESOLVE,
                f"the documents that builders share in {self.repository} can't be {what}",
                hint="the build goes on without them; FLOPS_REUSE=local uses none",
            )


def media_type(kind: str) -> str:
    return f"application/vnd.flops.{kind}.v1+json"


def _read(data: bytes, kind: str, key: str, blobs: tuple[Descriptor, ...]) -> SharedDocument:
    """KeyError, TypeError or ValueError where the document is not as `put` writes it, or has another key."""
    document = json.loads(data)
    if [document["format"], document["kind"], document["key"]] != [FORMAT, kind, key]:
        raise ValueError("another document")
    age = time.time() - float(document["created"])
    if not age >= -SKEW:
        raise BadImage("it is from the future")
    return SharedDocument(content=document["content"], age=max(0.0, age), blobs=blobs)
