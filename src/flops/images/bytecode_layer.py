"""Layers with the bytecode of wheels' sources, several at once: what they share is compiled once."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

from flops.base.bytecode import BYTECODE_VERSION, BytecodeTarget, write_bytecode
from flops.oci.layer import FORMAT_VERSION, LayerWriter, compressor_tag
from flops.wheels.wheel_layer import WheelFile, open_wheels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flops.base.bytecode import Interpreter
    from flops.images.plan import BytecodeLayer
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.recipe import Compression

#: Raised whenever other sources would be compiled.
CHOICE_VERSION = 2
#: Packages' own tests: an eighth of all sources, and no actor imports them.
_NOT_IMPORTED = re.compile(r"/(?:tests?|SelfTest)/")


def key(layer: BytecodeLayer, compression: Compression) -> str:
    """What the layer's bytes depend on; the interpreter counts by its full version, and by whose it is."""
    parts = {
        "bytecode": [BYTECODE_VERSION, CHOICE_VERSION],
        "format": FORMAT_VERSION,
        "wheels": sorted(wheel.sha256 for wheel in layer.wheels),
        "prefix": layer.prefix,
        "python": [layer.python_full, layer.origin],
        "compressor": compressor_tag(compression),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def make(
    layers: Sequence[BytecodeLayer],
    paths: Mapping[str, Path],
    *,
    interpreter: Interpreter,
    blobs: BlobStore,
    compression: Compression,
    workers: int,
) -> dict[BytecodeLayer, Layer]:
    """Compile the sources of the wheels (`paths`: where each lies, by sha256) and write each layer."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(blobs.writer()) for _ in layers]
        writers = [LayerWriter(output, compression=compression) for output in outputs]
        targets = []
        for layer, writer in zip(layers, writers, strict=True):
            files = [
                WheelFile(path=paths[wheel.sha256], sha256=wheel.sha256, filename=wheel.filename)
                for wheel in layer.wheels
            ]
            opened = stack.enter_context(open_wheels(files, prefix=layer.prefix, python=layer.python))
            sources = {path: read for path, read in opened.sources().items() if not _NOT_IMPORTED.search(path)}
            targets.append(BytecodeTarget(writer=writer, sources=sources))
        write_bytecode(interpreter, targets, workers=workers)
        made = {}
        for layer, writer, output in zip(layers, writers, outputs, strict=True):
            made[layer] = writer.close(comment=layer.title)
            output.commit(made[layer].digest)
    return made
