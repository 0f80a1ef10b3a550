"""Layers remembered by what they are made of: on this machine, and in the registry where builders share one.

A shared record names a layer and its files, so the layer is taken without a wheel or an interpreter. Its bytes stay in the
registry and are fetched only when this machine reads them; then the diff id is checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from flops.errors import BadImage, FlopsError, RecordUnusable, RegistryError
from flops.files import replacing
from flops.oci.blobs import diff_id, digest_hex, disk_errors
from flops.oci.layer import FORMAT_VERSION, MEDIA_TYPES, Layer, LayerWriter, compressor_tag
from flops.store.shared import LAYER
from flops.wheels.wheel_layer import FileEntry, PathConflict, WheelFile, WheelLayer, WheelLicence, write_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from flops.oci.blobs import BlobStore
    from flops.recipe import Compression
    from flops.store.shared import SharedCache, SharedDocument

#: Raised whenever the same wheels would give another layer; beside the tar writer's own version.
WHEEL_LAYER_VERSION = 1
#: How a description begins, by the order of `Layer`'s fields, and the number of characters that hold it.
_HEAD = re.compile(r'\{"digest": "(?P<digest>sha256:[0-9a-f]{64})", "diff_id": "[^"]*", "size": (?P<size>\d+), ')
_HEAD_SIZE = 512
#: Longest comment that a shared record may have, in characters.
_COMMENT = 4096
#: Bytes of a layer, compressed or not, above which a shared record is not believed.
_LARGEST = 1 << 40
_T = TypeVar("_T")


def layer_key(hashes: Iterable[str], *, prefix: str, python: str, compression: Compression) -> str:
    """What a layer of wheels depends on, as 64 hexadecimal digits. `hashes` are the wheels' sha256, in any order."""
    value = {
        "wheels": sorted(hashes),
        "prefix": prefix.strip("/"),
        "python": python,
        "format": [FORMAT_VERSION, WHEEL_LAYER_VERSION],
        "compression": compressor_tag(compression, spliced=True),
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class LayerCache:
    """Descriptions of layers under `root`, their bytes in `blobs`. Safe between threads and processes.

    Two threads that both miss a layer both make it, and get the same bytes. With `registry`, layers that other builders
    recorded there are found too; only layers that this build made are recorded.
    """

    def __init__(self, root: Path, blobs: BlobStore, registry: SharedCache | None = None) -> None:
        self._root = root
        self._blobs = blobs
        self._registry = registry
        self._guard = threading.Lock()
        self._asked: dict[str, Layer | None] = {}

    @property
    def is_shared(self) -> bool:
        """Whether a registry is asked too."""
        return self._registry is not None

    def find(self, key: str) -> Layer | None:
        """The layer under this key, from this machine or else from the registry."""
        return self.local(key) or self.shared(key)

    def local(self, key: str) -> Layer | None:
        """A layer whose bytes are on this machine, whole by their size; None otherwise."""
        layer = self._described(key)
        if layer is None or not self._blobs.use(layer.digest, layer.size):
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path(key))
        return layer

    def shared(self, key: str) -> Layer | None:
        """A layer that another builder recorded and whose bytes are in the registry; None where it has to be made.

        A record is ignored, with a warning, if it can't be read, names bytes that are absent, or contradicts what this
        machine made for the same key. Each key is asked for once.
        """
        if self._registry is None:
            return None
        with self._guard:
            if key in self._asked:
                return self._asked[key]
        found = self._recorded(self._registry, key)
        if found is not None:
            self._blobs.lend(found.digest, lambda: self._fetch(found))
        with self._guard:
            return self._asked.setdefault(key, found)

    def known(self, key: str) -> tuple[str, int] | None:
        """Digest and size of a layer whose bytes are on this machine; None otherwise.

        Reads only the beginning of the description: the list of files after it has some hundred kilobytes.
        """
        try:
            with self._path(key).open(encoding="utf-8") as file:
                found = _HEAD.match(file.read(_HEAD_SIZE))
        except (OSError, UnicodeDecodeError):
            return None
        if found is None:
            return None
        digest, size = found["digest"], int(found["size"])
        return (digest, size) if self._blobs.size(digest) == size else None

    def layer_for(
        self, wheels: Sequence[WheelFile], *, prefix: str, python: str, compression: Compression
    ) -> WheelLayer:
        """The layer of these wheels, made unless this machine has it.

        WheelUnsafe, WheelBomb, WheelRecord, LayerConflict, DiskFull: then nothing is left behind.
        """
        key = layer_key((wheel.sha256 for wheel in wheels), prefix=prefix, python=python, compression=compression)
        known = self.local(key)
        if isinstance(known, WheelLayer):
            return known
        with self._blobs.writer() as blob:
            writer = LayerWriter(blob, compression=compression)
            layer = write_layer(wheels, prefix=prefix, python=python, writer=writer)
            blob.commit(layer.digest)
        self.put(key, layer)
        return layer

    def keep(self, key: str, layer: Layer) -> None:
        """Remember a layer that this build made, here and for other builders."""
        self.put(key, layer)
        self.share(key, layer)

    def put(self, key: str, layer: Layer) -> None:
        """Remember a layer whose bytes were committed to the store."""
        with disk_errors(self._root), replacing(self._path(key)) as file:
            file.write(json.dumps(layer.to_json()).encode())

    def share(self, key: str, layer: Layer) -> None:
        """Record a layer that this build made for other builders, in the background."""
        if self._registry is None:
            return
        content = layer.to_json()
        if isinstance(layer, WheelLayer):
            content["files"] = [[file.path, file.digest, file.size] for file in layer.files]
        self._registry.put(LAYER, key, content, layer=layer, store=self._blobs)

    def _described(self, key: str) -> Layer | None:
        try:
            value = json.loads(self._path(key).read_bytes())
            return (WheelLayer if "files" in value else Layer).from_json(value)
        except (OSError, ValueError, KeyError, TypeError):  # absent, torn, or of another version: it is made again
            return None

    def _path(self, key: str) -> Path:
        return self._root / f"{key}.json"

    def _recorded(self, registry: SharedCache, key: str) -> Layer | None:
        document = registry.find(LAYER, key)
        if document is None:
            return None
        try:
            layer = _read_record(document)
        except (FlopsError, ValueError, KeyError, TypeError):
            registry.ignore(LAYER, key, "it can't be read")
            return None
        own = self._described(key)
        if own is not None and (own.digest, own.diff_id) != (layer.digest, layer.diff_id):
            registry.ignore(LAYER, key, "this machine made another layer of the same")
            return None
        if registry.size(layer.digest) != layer.size:
            if registry.available:
                registry.ignore(LAYER, key, "its layer is absent, or of another size")
            return None
        return layer

    def _fetch(self, layer: Layer) -> None:
        """Bring a layer's bytes from the registry; RecordUnusable where they are not what was recorded."""
        assert self._registry is not None  # noqa: S101 - only what it recorded is lent

        def write(pieces: Iterator[bytes]) -> None:
            with self._blobs.writer() as blob:
                for piece in pieces:
                    blob.write(piece)
                blob.commit(layer.digest)

        path = self._blobs.path(layer.digest)
        try:
            self._registry.client.fetch_blob(self._registry.repository, layer.digest, write)
            if diff_id(path, layer.media_type, most=layer.uncompressed_size) != layer.diff_id:
                raise BadImage("it does not hold the files that its record names")
        except RegistryError as error:
            path.unlink(missing_ok=True)
            raise RecordUnusable(f"the recorded layer {layer.digest} can't be used: {error.message}") from error


def _read_record(document: SharedDocument) -> Layer:
    """KeyError, TypeError, ValueError or BadImage where a record is not as `LayerCache.share` writes it."""
    content = dict(_typed(document.content, dict))
    if "files" in content:
        files = tuple(_file(*_typed(entry, list)) for entry in _typed(content.pop("files"), list))
        conflicts = tuple(PathConflict(**_texts(entry)) for entry in _typed(content.pop("conflicts", []), list))
        licences = tuple(WheelLicence(**_texts(entry)) for entry in _typed(content.pop("licences", []), list))
        layer: Layer = WheelLayer(**content, files=files, conflicts=conflicts, licences=licences)
    else:
        layer = Layer(**content)
    for digest in (layer.digest, layer.diff_id):
        digest_hex(_typed(digest, str))
    for size in (layer.size, layer.uncompressed_size):
        if not 0 < _typed(size, int) < _LARGEST:
            raise ValueError("not a layer's size")
    if layer.media_type not in MEDIA_TYPES.values():
        raise ValueError("not a layer's media type")
    if len(_typed(layer.comment, str)) > _COMMENT or not layer.comment.isprintable():
        raise ValueError("not a comment")
    named = [(blob.media_type, blob.digest, blob.size) for blob in document.blobs]
    if named != [(layer.media_type, layer.digest, layer.size)]:
        raise ValueError("the record's blobs are not its layer")
    return layer


def _file(path: Any, digest: Any, size: Any) -> FileEntry:
    return FileEntry(path=_typed(path, str), digest=_typed(digest, str), size=_typed(size, int))


def _texts(entry: Any) -> dict[str, str]:
    return {name: _typed(value, str) for name, value in _typed(entry, dict).items()}


def _typed(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"not a {kind.__name__}")
    return value
