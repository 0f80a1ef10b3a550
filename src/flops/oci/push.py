"""Whole images into a registry: blobs, configs, manifests, index, tags, in this order, so that a tag is never half."""

from __future__ import annotations

import io
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from flops.errors import Cancelled, ManifestIncomplete, RegistryError, RegistryRefused
from flops.http import Transient
from flops.oci.authentication import pushing
from flops.oci.blobs import sha256
from flops.oci.descriptor import INDEX, MANIFEST, canonical
from flops.oci.transport import error_codes
from flops.oci.upload import PushedBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flops.oci.blobs import BlobStore
    from flops.oci.content_client import ContentClient
    from flops.oci.image import Image, ImageIndex
    from flops.oci.layer import Layer

    Progress = Callable[[int, int], None]

    import httpx

    from flops.oci.transport import Session


#: Tries for a manifest of which the registry says that it lacks a part.
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class PushReport:
    """What a push did, in bytes and in number of blobs (layers and configs), as this client first found each blob."""

    uploaded: int = 0
    reused: int = 0
    """Not uploaded: the repository held it, or it was mounted from another one."""
    mounted: int = 0
    """The part of `reused` that was mounted."""
    uploaded_blobs: int = 0
    reused_blobs: int = 0
    mounted_blobs: int = 0
    digest: str = ""
    """Of the index; empty where only blobs were pushed."""


@dataclass(frozen=True, kw_only=True)
class _Blob:
    digest: str
    size: int
    opener: Callable[[], BinaryIO]


def push_blobs(
    client: ContentClient,
    repository: str,
    layers: Iterable[Layer],
    store: BlobStore,
    *,
    mount_from: Sequence[str],
    progress: Progress | None,
) -> PushReport:
    """Layers alone, in parallel."""
    blobs = _distinct(_layer(layer, store) for layer in layers)
    meter = _Meter(progress, sum(blob.size for blob in blobs))
    return _report(blobs, _transfer(client, repository, blobs, mount_from, meter), "")


def push_index(
    client: ContentClient,
    repository: str,
    index: ImageIndex,
    store: BlobStore,
    tags: Sequence[str],
    *,
    mount_from: Sequence[str],
    progress: Progress | None,
    before_tags: Callable[[], None] | None,
) -> PushReport:
    """An image over platforms, whole; see RegistryClient.push_index."""
    layers = _distinct(_layer(layer, store) for image in index.images for layer in image.layers)
    configs = _distinct(_config(image) for image in index.images)
    meter = _Meter(progress, sum(blob.size for blob in (*layers, *configs)))
    outcomes = _transfer(client, repository, layers, mount_from, meter)
    outcomes |= _transfer(client, repository, configs, (), meter)
    for image in index.images:
        _push_image(client, repository, image, store)
    _push_document(client, repository, index, store, index.digest)
    if before_tags is not None:
        before_tags()
    push_tags(client, repository, index, store, tags)
    return _report([*layers, *configs], outcomes, index.digest)


def push_tags(client: ContentClient, repository: str, index: ImageIndex, store: BlobStore, tags: Sequence[str]) -> None:
    """Names for an index whose parts are in place; see RegistryClient.push_tags."""
    for tag in tags:
        _push_document(client, repository, index, store, tag)


def _push_image(client: ContentClient, repository: str, image: Image, store: BlobStore) -> None:
    """The manifest of one platform; where the registry lost a blob since, all of its blobs again."""
    for left in reversed(range(_TRIES)):
        try:
            client.put_manifest(repository, image.digest, MANIFEST, image.manifest)
        except ManifestIncomplete:
            if not left:
                raise
            blobs = _distinct([*(_layer(layer, store) for layer in image.layers), _config(image)])
            client.forget(repository, [blob.digest for blob in blobs])
            _transfer(client, repository, blobs, (), _Meter(None, 0))
        else:
            return


def _push_document(client: ContentClient, repository: str, index: ImageIndex, store: BlobStore, reference: str) -> None:
    """The index under its digest or a tag; where the registry lost a manifest since, those again."""
    for left in reversed(range(_TRIES)):
        try:
            client.put_manifest(repository, reference, INDEX, index.document)
        except ManifestIncomplete:
            if not left:
                raise
            for image in index.images:
                _push_image(client, repository, image, store)
        else:
            return


def _transfer(
    client: ContentClient, repository: str, blobs: Sequence[_Blob], mount_from: Sequence[str], meter: _Meter
) -> dict[str, PushedBlob]:
    """Push in parallel, the largest first; the first failure stops the others and is raised."""
    stop = threading.Event()

    def one(blob: _Blob) -> PushedBlob:
        if stop.is_set():
            raise Cancelled("another upload failed")
        try:
            return client.push_blob(
                repository, blob.digest, blob.size, blob.opener, mount_from=mount_from, on_bytes=meter.add, stop=stop
            )
        except BaseException:
            stop.set()
            raise

    ordered = sorted(blobs, key=lambda blob: (-blob.size, blob.digest))
    # More than the workers, for a registry that keeps up: the session decides how many run (`pressure`).
    with ThreadPoolExecutor(max_workers=client.workers + client.workers // 2, thread_name_prefix="flops-push") as pool:
        futures = {blob.digest: pool.submit(one, blob) for blob in ordered}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        except BaseException:  # an interrupt: the threads end at their next piece
            stop.set()
            raise
    failures = [failure for future in futures.values() if (failure := future.exception()) is not None]
    if failures:
        raise min(failures, key=lambda failure: isinstance(failure, Cancelled))
    return {digest: future.result() for digest, future in futures.items()}


class _Meter:
    """Adds up bytes from all threads, and tells each sum once, in order."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self._done += number
            if self._progress is not None:
                self._progress(self._done, self._total)


def _layer(layer: Layer, store: BlobStore) -> _Blob:
    return _Blob(digest=layer.digest, size=layer.size, opener=lambda: store.open(layer.digest))


def _config(image: Image) -> _Blob:
    return _Blob(digest=image.config_digest, size=len(image.config), opener=lambda: io.BytesIO(image.config))


def _distinct(blobs: Iterable[_Blob]) -> list[_Blob]:
    return list({blob.digest: blob for blob in blobs}.values())


def _report(blobs: Iterable[_Blob], outcomes: dict[str, PushedBlob], digest: str) -> PushReport:
    sizes: dict[PushedBlob, list[int]] = {outcome: [] for outcome in PushedBlob}
    for blob in blobs:
        sizes[outcomes[blob.digest]].append(blob.size)
    uploaded, mounted = sizes[PushedBlob.UPLOADED], sizes[PushedBlob.MOUNTED]
    reused = [*sizes[PushedBlob.EXISTED], *mounted]
    return PushReport(
        uploaded=sum(uploaded),
        reused=sum(reused),
        mounted=sum(mounted),
        uploaded_blobs=len(uploaded),
        reused_blobs=len(reused),
        mounted_blobs=len(mounted),
        digest=digest,
    )


_ANY = frozenset(range(200, 500)) - {401, 403, 408, 413, 429}
_UNSUPPORTED_TYPE = 415


def check_push(session: Session, repositories: Sequence[str]) -> None:
    """All repositories at once; RegistryAuth, RegistryRefused, RegistryUnreachable. What it begins there it takes back."""
    asked = [partial(_check_upload, session, repository) for repository in repositories]
    asked.append(partial(_check_index, session, repositories[0]))
    with ThreadPoolExecutor(max_workers=len(asked), thread_name_prefix="flops-check") as pool:
        for answer in [pool.submit(ask) for ask in asked]:
            answer.result()


def _check_upload(session: Session, repository: str) -> None:
    path, scope = f"/v2/{repository}/blobs/uploads/", pushing(repository)
    answer = session.request("POST", path, expect={202}, scope=scope, headers={"Content-Length": "0"})
    with suppress(RegistryError, Transient):  # not every registry takes an upload back; it ends by itself
        session.send("DELETE", session.location(answer), expect=_ANY, scope=scope)


def _check_index(session: Session, repository: str) -> None:
    """Offer an index of a manifest that is nowhere: it is refused for that, and for its type where that is not taken."""
    nowhere = {"mediaType": MANIFEST, "digest": sha256(b"a manifest that nobody has"), "size": 2}
    document = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [nowhere]})
    path, scope = f"/v2/{repository}/manifests/{sha256(document)}", pushing(repository)
    answer = session.request("PUT", path, expect=_ANY, scope=scope, headers={"Content-Type": INDEX}, content=document)
    if answer.is_success:  # a registry that does not look at what an index names
        with suppress(RegistryError, Transient):
            session.send("DELETE", path, expect=_ANY, scope=scope)
    elif _is_type_refused(answer):
        failure = session.refusal(answer)
        raise RegistryRefused(
            f"{session.registry.host} takes no images over platforms (OCI image indexes): {failure.message}",
            hint="push to a registry that takes the OCI image format, version 1",
        )


def _is_type_refused(answer: httpx.Response) -> bool:
    """Only where the registry says so: whatever else it says, the push itself will tell."""
    if answer.status_code == _UNSUPPORTED_TYPE:
        return True
    said = answer.text[:2000].lower().replace("-", " ").replace("_", " ")
    about_type = "media type" in said or "mediatype" in said or "content type" in said
    return bool(error_codes(answer) & {"UNSUPPORTED", "MANIFEST_INVALID"}) and about_type
