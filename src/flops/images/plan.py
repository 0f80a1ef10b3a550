"""Which file goes into which layer of which image: values in, values out, nothing read or written.

Bottom to top (docs/decisions.md, D5): base, FL runtime (wheels for every machine, then this one's own, each with their
bytecode), ML packages, shims, the ML repository, the actor's own. Layers that are equal by value are made once, whatever images hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops import actors
from flops.actors import Actor
from flops.errors import BuildError
from flops.wheels.wheel_layer import group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.locking.lock import Lock, LockedWheel
    from flops.oci.entries import Entry
    from flops.platforms import Platform

#: Container runtimes cap an image at 127 layers; this leaves room for those who build upon ours.
MOST_LAYERS = 100


@dataclass(frozen=True, kw_only=True)
class BaseLayer:
    """A finished layer of the base, by its place in it."""

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
    """Of the interpreter that compiles, `3.11.2`."""
    origin: str = ""
    """Whose interpreter that is: empty for Debian's, else the base image's digest."""
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
        """Each distinct layer that is to be made, those that take longest first (most bytes of wheels)."""
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

    `interpreter` is the base's Python (`/usr/bin/python3.11`), `python` its minor version; without `bytecode` the FL
    runtime's sources are compiled at every start. `ml_interpreter` and its minor version `ml_python`: the ML environment's,
    where it has its own.
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
            f"the image would have {most} layers, and {MOST_LAYERS} are the most that runtimes take well",
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
    """An environment of ours: wheels that fit every machine (layers that all platforms share), then the machine's own; bytecode of each."""
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
    """The user's packages, grouped by docs/decisions.md, D5."""
    return tuple(
        WheelsLayer(title=_title(wheels), prefix=actors.ML, python=python, wheels=tuple(wheels))
        for wheels in group(lock.wheels)
    )


def _title(wheels: Sequence[LockedWheel]) -> str:
    names = [f"{wheel.name} {wheel.version}" for wheel in wheels]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004


def cost(layer: PlannedLayer) -> int:
    """How long a layer takes to make, in no unit."""
    match layer:
        case WheelsLayer():
            return sum(wheel.size or 0 for wheel in layer.wheels)
        case BytecodeLayer():
            # compiling is the longest single piece of work: as soon as its wheels are there
            return 4 * sum(wheel.size or 0 for wheel in layer.wheels)
        case _:
            return 0
