"""Layers that other builders made and recorded in the registry: taken by key without a wheel, an interpreter or a byte.

A record names the layer and its files; its bytes stay where they are, and are fetched only where this machine reads them
(then the diff id is checked). Only what a build made itself is recorded.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

from flops.errors import BadImage, FlopsError, RecordUnusable, RegistryError
from flops.oci.blobs import diff_id, digest_hex
from flops.oci.layer import MEDIA_TYPES
from flops.store.shared import LAYER
from flops.wheels.wheel_layer import FileEntry, PathConflict, WheelLayer, WheelLicence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flops.oci.blobs import BlobStore
    from flops.oci.layer import Layer
    from flops.store.shared import SharedCache, SharedDocument

#: Characters of a layer's comment.
_COMMENT = 4096
#: Bytes of a layer, compressed or not; a larger one is a lie.
_LARGEST = 1 << 40
_T = TypeVar("_T")


class SharedLayers:
    """Records of one registry, for the blobs of this machine. Safe between threads; each key is asked for once."""

    def __init__(self, shared: SharedCache, blobs: BlobStore) -> None:
        self._shared = shared
        self._blobs = blobs
        self._guard = threading.Lock()
        self._asked: dict[str, WheelLayer | None] = {}

    def find(self, key: str, *, known: Layer | None = None) -> WheelLayer | None:
        """The layer recorded under a key, if its bytes are there; None where it has to be made.

        `known`: what this machine made for the same key, whose bytes it no longer has; a record that says otherwise is
        ignored, with a warning, as is one that can't be read or names what is not there.
        """
        with self._guard:
            if key in self._asked:
                return self._asked[key]
        found = self._found(key, known)
        if found is not None:
            self._blobs.lend(found.digest, lambda: self._fetch(found))
        with self._guard:
            return self._asked.setdefault(key, found)

    def keep(self, key: str, layer: Layer) -> None:
        """Record a layer that this build made, whose bytes are in the store; in the background."""
        content = layer.to_json()
        if isinstance(layer, WheelLayer):
            content["files"] = [[file.path, file.digest, file.size] for file in layer.files]
        self._shared.keep(LAYER, key, content, layer=layer, store=self._blobs)

    def _found(self, key: str, known: Layer | None) -> WheelLayer | None:
        note = self._shared.find(LAYER, key)
        if note is None:
            return None
        try:
            layer = _layer(note)
        except (FlopsError, ValueError, KeyError, TypeError):
            self._shared.ignore(LAYER, key, "it can't be read")
            return None
        if known is not None and (known.digest, known.diff_id) != (layer.digest, layer.diff_id):
            self._shared.ignore(LAYER, key, "this machine made another layer of the same")
            return None
        size = self._shared.size(layer.digest)
        if size != layer.size:
            if self._shared.answers:
                self._shared.ignore(LAYER, key, "its layer is not there, or of another size")
            return None
        return layer

    def _fetch(self, layer: Layer) -> None:
        """The layer's bytes, from the registry to this machine; RecordUnusable where they are not what was recorded."""

        def write(pieces: Iterator[bytes]) -> None:
            with self._blobs.writer() as blob:
                for piece in pieces:
                    blob.write(piece)
                blob.commit(layer.digest)

        path = self._blobs.path(layer.digest)
        try:
            self._shared.client.fetch_blob(self._shared.repository, layer.digest, write)
            if diff_id(path, layer.media_type, most=layer.uncompressed_size) != layer.diff_id:
                raise BadImage("it does not hold the files that its record tells of")
        except RegistryError as error:
            path.unlink(missing_ok=True)
            raise RecordUnusable(f"the recorded layer {layer.digest} can't be used: {error.message}") from error


def _layer(note: SharedDocument) -> WheelLayer:
    """KeyError, TypeError, ValueError or BadImage where a record is not as we write it."""
    content = dict(_typed(note.content, dict))
    files = [_file(*_typed(entry, list)) for entry in _typed(content.pop("files", []), list)]
    conflicts = [PathConflict(**_texts(entry)) for entry in _typed(content.pop("conflicts", []), list)]
    licences = [WheelLicence(**_texts(entry)) for entry in _typed(content.pop("licences", []), list)]
    layer = WheelLayer(**content, files=tuple(files), conflicts=tuple(conflicts), licences=tuple(licences))
    for digest in (layer.digest, layer.diff_id):
        digest_hex(_typed(digest, str))
    for size in (layer.size, layer.uncompressed_size):
        if not 0 < _typed(size, int) < _LARGEST:
            raise ValueError("no size")
    if layer.media_type not in MEDIA_TYPES.values():
        raise ValueError("no media type of ours")
    if len(_typed(layer.comment, str)) > _COMMENT or not layer.comment.isprintable():
        raise ValueError("no comment")
    named = [(blob.media_type, blob.digest, blob.size) for blob in note.blobs]
    if named != [(layer.media_type, layer.digest, layer.size)]:
        raise ValueError("the record's blobs are not its layer")
    return layer


def _file(path: Any, digest: Any, size: Any) -> FileEntry:
    return FileEntry(path=_typed(path, str), digest=_typed(digest, str), size=_typed(size, int))


def _texts(entry: Any) -> dict[str, str]:
    return {name: _typed(value, str) for name, value in _typed(entry, dict).items()}


def _typed(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"no {kind.__name__}")
    return value
