"""Layers with the bytecode of wheels' sources, several at once: sources that they share are compiled once."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

from flops.base.bytecode import BytecodeTarget, write_bytecode
from flops.oci.layer import LayerWriter
from flops.wheels.wheel_layer import open_wheels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.base.bytecode import Interpreter
    from flops.images.plan import BytecodeLayer
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.recipe import Compression
    from flops.wheels.wheel_layer import WheelFile

#: Packages' own tests: an eighth of all sources, and no actor imports them.
_NOT_IMPORTED = re.compile(r"/(?:tests?|SelfTest)/")


def make(
    layers: Mapping[BytecodeLayer, Sequence[WheelFile]],
    *,
    interpreter: Interpreter,
    blobs: BlobStore,
    compression: Compression,
    workers: int,
) -> list[Layer]:
    """Compile the sources of each layer's wheels and write each layer, in the order given."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(blobs.writer()) for _ in layers]
        writers = [LayerWriter(output, compression=compression) for output in outputs]
        targets = []
        for (layer, wheels), writer in zip(layers.items(), writers, strict=True):
            opened = stack.enter_context(open_wheels(wheels, prefix=layer.prefix, python=layer.python))
            sources = {path: read for path, read in opened.sources().items() if not _NOT_IMPORTED.search(path)}
            targets.append(BytecodeTarget(writer=writer, sources=sources))
        write_bytecode(interpreter, targets, workers=workers)
        made = []
        for layer, writer, output in zip(layers, writers, outputs, strict=True):
            made.append(writer.close(comment=layer.title))
            output.commit(made[-1].digest)
    return made
