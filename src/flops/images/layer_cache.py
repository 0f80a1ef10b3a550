"""Layers of wheels, remembered by what they are made of: a wheel is converted once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from typing import TYPE_CHECKING

from flops.files import replacing
from flops.oci.blobs import disk_errors
from flops.oci.entries import File, Link
from flops.oci.layer import FORMAT_VERSION, LayerWriter, compressor_tag
from flops.wheels.wheel_layer import WheelFile, WheelLayer, write_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from flops.images.plan import FilesLayer
    from flops.oci.blobs import BlobStore
    from flops.oci.layer import Layer
    from flops.recipe import Compression
    from flops.wheels.shared_layers import SharedLayers

#: Raised whenever the same wheels would give another layer; beside the tar writer's own version.
WHEEL_LAYER_VERSION = 1
#: How a description begins, by the order of `Layer`'s fields, and the characters that this surely takes.
_HEAD = re.compile(r'\{"digest": "(?P<digest>sha256:[0-9a-f]{64})", "diff_id": "[^"]*", "size": (?P<size>\d+), ')
_HEAD_SIZE = 512


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


def files_key(layer: FilesLayer, compression: Compression) -> str | None:
    """What a layer of files depends on; None where it holds files of this machine: a repository's are nobody else's."""
    entries = []
    for entry in sorted(layer.entries, key=lambda entry: entry.path):
        if isinstance(entry, File):
            if not isinstance(entry.data, bytes):
                return None
            what = hashlib.sha256(entry.data).hexdigest()
            entries.append([entry.path, what, entry.executable, entry.owner])
        elif isinstance(entry, Link):
            entries.append([entry.path, "->", entry.target])
        else:
            entries.append([entry.path, "/", entry.owner, entry.mode])
    value = {"files": entries, "format": FORMAT_VERSION, "compressor": compressor_tag(compression)}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class LayerCache:
    """Descriptions of layers under `root`, their bytes in `blobs`. Safe between threads and processes.

    Two that miss at once both make the layer, and get the same bytes. `records` are those of other builders.
    """

    def __init__(self, root: Path, blobs: BlobStore, records: SharedLayers | None = None) -> None:
        self._root = root
        self._blobs = blobs
        self.records = records

    def get(self, key: str) -> WheelLayer | None:
        """A layer whose bytes are here, whole by their size; None otherwise."""
        layer = self._described(key)
        if layer is None or not self._blobs.use(layer.digest, layer.size):
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path(key))
        return layer

    def recorded(self, key: str) -> WheelLayer | None:
        """A layer that another builder recorded; its bytes need not be here."""
        return self.records.find(key, known=self._described(key)) if self.records else None

    def record(self, key: str, layer: Layer) -> None:
        """Tell other builders of a layer that this build made."""
        if self.records is not None:
            self.records.keep(key, layer)

    def known(self, key: str) -> tuple[str, int] | None:
        """Digest and size of a layer whose bytes are here; None otherwise.

        They stand at the beginning: the list of files behind them, of some hundred kilobytes, is not read.
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
        """The layer of these wheels, made where it is not remembered.

        WheelUnsafe, WheelBomb, WheelRecord, LayerConflict, DiskFull: then nothing is left behind.
        """
        hashes = [wheel.sha256 for wheel in wheels]
        key = layer_key(hashes, prefix=prefix, python=python, compression=compression)
        known = self.get(key)
        if known is not None:
            return known
        with self._blobs.writer() as blob:
            writer = LayerWriter(blob, compression=compression)
            layer = write_layer(wheels, prefix=prefix, python=python, writer=writer)
            blob.commit(layer.digest)
        self.put(key, layer)
        return layer

    def put(self, key: str, layer: WheelLayer) -> None:
        """Remember a layer whose bytes were committed to the store."""
        with disk_errors(self._root), replacing(self._path(key)) as file:
            file.write(json.dumps(layer.to_json()).encode())

    def _described(self, key: str) -> WheelLayer | None:
        try:
            return WheelLayer.from_json(json.loads(self._path(key).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):  # none, another version of ours, or a torn file: made again
            return None

    def _path(self, key: str) -> Path:
        return self._root / f"{key}.json"
