"""What builders tell each other through a registry: documents by kind and key, in one repository beside the images.

Each is an artifact (OCI image-spec 1.1) under the tag KIND-KEY. Whoever may push there decides what others take for a lock
or a layer, as whoever may push an image decides what runs: builders of different trust get registries, or prefixes, of
their own. A registry that keeps nothing of this costs a warning, never a build.
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

#: Where it lies, under the registry's prefix.
REPOSITORY = ("flops", "cache")
#: Raised when the shape of what is kept changes.
FORMAT = 1
LAYER, LOCK, BASE, PROVIDES = "layer", "lock", "base", "provides"
#: Documents that are kept at the same time, beside all other work.
WORKERS = 2
#: Seconds by which another builder's clock may be ahead of ours.
SKEW = 300.0


@dataclass(frozen=True, kw_only=True)
class SharedDocument:
    """A document that another builder left."""

    content: Any
    """JSON values; whoever asked judges them."""
    age: float
    """Seconds since it was made."""
    blobs: tuple[Descriptor, ...]
    """What it holds beside the document."""


class SharedCache:
    """One registry's. Safe between threads; the first answer that is no answer ends it for this build, with a warning.

    What was asked for once is not asked for again.
    """

    def __init__(self, client: RegistryClient, repository: str, reporter: Reporter, *, read_only: bool = False) -> None:
        self.client = client
        self.repository = repository
        self.uploaded = 0
        """Bytes that keeping took, layers among them that went here first."""
        self.uploaded_layers = 0
        self._reporter = reporter
        self._read_only = read_only
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="keep")
        self._keeping: list[Future[None]] = []
        self._guard = threading.Lock()
        self._off = False
        self._found: dict[tuple[str, str], SharedDocument | None] = {}

    @property
    def answers(self) -> bool:
        """Whether it is worth asking."""
        return not self._off

    def find(self, kind: str, key: str) -> SharedDocument | None:
        """What is kept under this key (64 hexadecimal digits); None where there is nothing, or nothing that can be read."""
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
            self._end(f"asked: {error.message}")
        return None

    def ignore(self, kind: str, key: str, reason: str) -> None:
        """Tell that a document is left alone."""
        self._reporter.warning(
            Stage.RESOLVE,
            f"{self.repository}:{kind}-{key[:12]}... on {self.client.registry.host} is ignored: {reason:.200}",
            hint="it is made anew; whoever can push there can write it",
        )

    def size(self, digest: str) -> int | None:
        """Of a blob in this repository; None where there is none."""
        try:
            return self.client.blob_size(self.repository, digest)
        except Cancelled:
            raise
        except FlopsError as error:
            self._end(f"asked: {error.message}")
            return None

    def keep(
        self, kind: str, key: str, content: Any, *, layer: Layer | None = None, store: BlobStore | None = None
    ) -> None:
        """Leave a document for others, in the background; with a layer (whose bytes `store` has), it is kept there too."""
        if self._off or self._read_only:
            return
        document = {"format": FORMAT, "kind": kind, "key": key, "created": round(time.time()), "content": content}
        with self._guard:
            self._keeping.append(self._pool.submit(self._keep, kind, key, canonical(document), layer, store))

    def wait(self) -> None:
        """Until all that shall be kept is; it has been told what could not be."""
        for future in self._keeping:
            future.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _keep(self, kind: str, key: str, document: bytes, layer: Layer | None, store: BlobStore | None) -> None:
        if self._off:
            return
        blobs = []
        try:
            if layer is not None and store is not None:
                self._keep_layer(layer, store)
                blobs = [Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)]
            content = Content(data=document, media_type=media_type(kind))
            annotations = {"org.opencontainers.image.created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            self.client.put_artifact(
                self.repository, f"{kind}-{key}", media_type(kind), content, blobs=blobs, annotations=annotations
            )
        except Cancelled:
            return  # so is the build
        except (FlopsError, OSError) as error:
            self._end(f"told: {error.message if isinstance(error, FlopsError) else error.strerror}")
            return
        with self._guard:
            self.uploaded += len(document)

    def _keep_layer(self, layer: Layer, store: BlobStore) -> None:
        from flops.oci.upload import PushedBlob  # noqa: PLC0415 - httpx is slow to import, and a check keeps no layers

        how = self.client.push_blob(self.repository, layer.digest, layer.size, lambda: store.open(layer.digest))
        if how is PushedBlob.UPLOADED:
            with self._guard:
                self.uploaded += layer.size
                self.uploaded_layers += layer.size

    def _end(self, what: str) -> None:
        with self._guard:
            ended, self._off = self._off, True
        if not ended:
            self._reporter.warning(
                Stage.RESOLVE,
                f"what builders share in {self.repository} can't be {what}",
                hint="the build goes on without; FLOPS_REUSE=local does not ask",
            )


def media_type(kind: str) -> str:
    return f"application/vnd.flops.{kind}.v1+json"


def _read(data: bytes, kind: str, key: str, blobs: tuple[Descriptor, ...]) -> SharedDocument:
    """KeyError, TypeError or ValueError where the document is none of ours, or another one's."""
    document = json.loads(data)
    if [document["format"], document["kind"], document["key"]] != [FORMAT, kind, key]:
        raise ValueError("another document")
    age = time.time() - float(document["created"])
    if not age >= -SKEW:
        raise BadImage("it is from the future")
    return SharedDocument(content=document["content"], age=max(0.0, age), blobs=blobs)
