"""The layers of every image, planned: values in, values out, nothing is read or written.

Bottom to top (docs/decisions.md, D5): base, FL runtime (wheels for every platform, then those for one, each with their
bytecode), ML packages, shims, the ML repository, the actor's own files. Layers that are equal by value are made once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops import actors
from flops.actors import Actor
from flops.base.bytecode import BYTECODE_VERSION
from flops.errors import BuildError
from flops.oci.entries import File, Link
from flops.oci.layer import FORMAT_VERSION, compressor_tag
from flops.wheels.layer_cache import layer_key
from flops.wheels.wheel_layer import group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.locking.lock import Lock, LockedWheel
    from flops.oci.entries import Entry
    from flops.platforms import Platform
    from flops.recipe import Compression

#: Raised whenever bytecode of other sources of a wheel would be in a layer.
SOURCES_VERSION = 2
#: Container runtimes allow 127 layers; the rest is left to images that are built upon ours.
MOST_LAYERS = 100


@dataclass(frozen=True, kw_only=True)
class BaseLayer:
    """A finished layer of the base, by its position in the base."""

    platform: Platform
    number: int


@dataclass(frozen=True, kw_only=True)
class WheelsLayer:
    """Wheels unpacked under a prefix."""

    title: str
    prefix: str
    python: str
    """The minor version, `3.11`."""
    wheels: tuple[LockedWheel, ...]


@dataclass(frozen=True, kw_only=True)
class BytecodeLayer:
    """Bytecode of the wheels' sources under a prefix, made by the base's own interpreter."""

    title: str
    prefix: str
    python: str
    python_full: str
    """The full version of the interpreter that compiles, `3.11.2`."""
    origin: str = ""
    """Where that interpreter comes from: empty for Debian, else the base image's digest."""
    wheels: tuple[LockedWheel, ...]


@dataclass(frozen=True, kw_only=True)
class FilesLayer:
    """Files that come from no wheel."""

    title: str
    entries: tuple[Entry, ...]


PlannedLayer = BaseLayer | WheelsLayer | BytecodeLayer | FilesLayer


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """The layers of every image, bottom to top."""

    images: Mapping[tuple[Actor, Platform], tuple[PlannedLayer, ...]]

    @property
    def layers(self) -> tuple[PlannedLayer, ...]:
        """Each distinct layer that has to be made, the slowest ones first."""
        distinct = {layer: None for layers in self.images.values() for layer in layers}
        made = [layer for layer in distinct if not isinstance(layer, BaseLayer)]
        return tuple(sorted(made, key=cost, reverse=True))


def plan(
    *,
    interpreter: str,
    python: str,
    bytecode: bool,
    origin: str = "",
    base_layers: Mapping[Platform, int],
    runtime: Mapping[Platform, Lock],
    ml: Mapping[Platform, Lock],
    repository: Sequence[Entry],
    ml_interpreter: str = "",
    ml_python: str = "",
) -> ImagePlan:
    """Lay out both actors' images for every platform of `ml`; BuildError above 100 layers.

    `interpreter` is the base's Python (`/usr/bin/python3.11`) and `python` its minor version; without `bytecode` the FL
    runtime's sources are compiled at every start. `ml_interpreter` and `ml_python` are the same for the ML environment,
    if it has a Python of its own.
    """
    shims = FilesLayer(
        title="FLOps shims",
        entries=actors.shims(interpreter, python, ml_interpreter=ml_interpreter, ml_minor=ml_python),
    )
    own = {actor: FilesLayer(title=f"{actor.value} actor", entries=actors.main_file(actor)) for actor in Actor}
    user = FilesLayer(title="ML repository", entries=tuple(repository))
    images: dict[tuple[Actor, Platform], tuple[PlannedLayer, ...]] = {}
    for platform, lock in ml.items():
        below = (
            *(BaseLayer(platform=platform, number=number) for number in range(base_layers[platform])),
            *runtime_layers(runtime[platform], python, bytecode=bytecode, origin=origin),
            *ml_layers(lock, ml_python or python),
            shims,
            user,
        )
        for actor in Actor:
            images[actor, platform] = (*below, own[actor])
    most = max(map(len, images.values()))
    if most > MOST_LAYERS:
        raise BuildError(
            f"the image would have {most} layers, and at most {MOST_LAYERS} are allowed",
            hint="use a base image with fewer layers (--base-image)",
        )
    return ImagePlan(images=images)


def runtime_layers(
    lock: Lock,
    python: str,
    *,
    bytecode: bool,
    origin: str = "",
    prefix: str = actors.RUNTIME,
    title: str = "FL runtime",
) -> tuple[PlannedLayer, ...]:
    """The layers of an environment of ours: wheels for every platform, then those for one; each with its bytecode."""
    parts = {
        f"{title}, every machine": [wheel for wheel in lock.wheels if wheel.filename.endswith("-any.whl")],
        f"{title}, {lock.platform}": [wheel for wheel in lock.wheels if not wheel.filename.endswith("-any.whl")],
    }
    layers: list[PlannedLayer] = []
    for part, wheels in parts.items():
        if wheels:
            layers.append(WheelsLayer(title=part, prefix=prefix, python=python, wheels=tuple(wheels)))
        if wheels and bytecode:
            layers.append(
                BytecodeLayer(
                    title=f"{part}, bytecode",
                    prefix=prefix,
                    python=python,
                    python_full=lock.python,
                    origin=origin,
                    wheels=tuple(wheels),
                )
            )
    return tuple(layers)


def ml_layers(lock: Lock, python: str) -> tuple[PlannedLayer, ...]:
    """The user's packages, shared out over layers (docs/decisions.md, D5)."""
    return tuple(
        WheelsLayer(title=_title(wheels), prefix=actors.ML, python=python, wheels=tuple(wheels))
        for wheels in group(lock.wheels)
    )


def _title(wheels: Sequence[LockedWheel]) -> str:
    names = [f"{wheel.name} {wheel.version}" for wheel in wheels]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004


def wheels_of(layer: PlannedLayer) -> tuple[LockedWheel, ...]:
    """The wheels that a layer is made of."""
    return layer.wheels if isinstance(layer, WheelsLayer | BytecodeLayer) else ()


def wheel_bytes(layer: PlannedLayer) -> int:
    """Bytes of these wheels: what progress counts."""
    return sum(wheel.size or 0 for wheel in wheels_of(layer))


def cost(layer: PlannedLayer) -> int:
    """How long a layer takes to make, in no unit; bytecode is begun first, as compiling takes longest."""
    return wheel_bytes(layer) * (4 if isinstance(layer, BytecodeLayer) else 1)


def cache_key(layer: PlannedLayer, compression: Compression) -> str | None:
    """What a layer's bytes depend on, as 64 hexadecimal digits; None for a layer that is never remembered."""
    match layer:
        case WheelsLayer():
            hashes = [wheel.sha256 for wheel in layer.wheels]
            return layer_key(hashes, prefix=layer.prefix, python=layer.python, compression=compression)
        case BytecodeLayer():
            value: dict[str, object] = {
                "bytecode": [BYTECODE_VERSION, SOURCES_VERSION],
                "wheels": sorted(wheel.sha256 for wheel in layer.wheels),
                "prefix": layer.prefix,
                "python": [layer.python_full, layer.origin],
            }
        case FilesLayer():
            entries = [_content(entry) for entry in sorted(layer.entries, key=lambda entry: entry.path)]
            if None in entries:  # a repository's files are of no use to another commit
                return None
            value = {"files": entries}
        case _:
            return None
    value |= {"format": FORMAT_VERSION, "compressor": compressor_tag(compression)}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _content(entry: Entry) -> list[object] | None:
    """An entry as a key has it; None for a file of this machine."""
    match entry:
        case File(data=bytes() as data):
            return [entry.path, hashlib.sha256(data).hexdigest(), entry.executable, entry.owner]
        case File():
            return None
        case Link():
            return [entry.path, "->", entry.target]
        case _:
            return [entry.path, "/", entry.owner, entry.mode]
