"""`flops check`: what a build would install, fetch, make and push, told in seconds and before anything of it is done."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops.errors import FlopsError
from flops.images import runtime
from flops.images.plan import WheelsLayer, cache_key, ml_layers, runtime_layers
from flops.progress import Reporter, Silent, Stage
from flops.use_cases.parts import BuildParts
from flops.use_cases.result import Amount, Preflight, PythonUsed, Rebuild, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flops.images.plan import PlannedLayer
    from flops.locking.lock import Lock
    from flops.locking.pylock import LockedWheel
    from flops.platforms import Platform
    from flops.repair.pythons import PythonChoice
    from flops.request import Request
    from flops.settings import Settings
    from flops.store.shared import SharedCache

#: Records of layers that are asked for at the same time.
ASKING = 8


@dataclass(frozen=True, kw_only=True)
class AskedRegistry:
    """A registry that is asked which layers it holds."""

    name: str
    holds: Callable[[str, str], bool]
    """Whether it holds a layer (by its digest) of this repository (its image path); FlopsError."""
    shared: SharedCache | None = None
    """What builders share there; a check reads it, so that it reports what a build would take."""


def check(
    request: Request, *, settings: Settings, reporter: Reporter | None = None, registry: AskedRegistry | None = None
) -> Report:
    """Everything up to the locks; no layers, no wheels. The same errors as `build` up to there."""
    settings.check_cache()
    reporter = reporter or Silent()
    registry = _answering(request, registry, reporter)
    with ExitStack() as stack:
        parts = BuildParts(request, settings, reporter, stack, registry.shared if registry else None)
        inspection = parts.inspect()
        with parts.resolving():
            resolution = parts.resolve(inspection)
            estimate = Estimate(parts=parts, repository=inspection.checkout.repository, registry=registry)
            rebuild = estimate.rebuild(resolution.locks, resolution.python)
            notes = parts.bases.notes(parts.wish(inspection), resolution.python)
        return Report(
            repository=inspection.checkout.source,
            commit=inspection.checkout.commit,
            recipe=request.recipe.digest,
            python=PythonUsed.of(resolution.python, inspection.requirements.python, flag=request.recipe.python),
            adjustments=(*inspection.requirements.adjustments, *resolution.adjustments),
            findings=(*inspection.structure.notes, *inspection.requirements.notes, *resolution.findings, *notes),
            locks=resolution.locks,
            seconds=parts.clock.seconds(),
            preflight=Preflight(
                sizes={
                    platform: Amount(count=len(lock.wheels), bytes=lock.bytes)
                    for platform, lock in resolution.locks.items()
                },
                accelerator=request.recipe.accelerator.value,
                cuda=resolution.cuda,
                cpu_refusal=resolution.cpu_refusal,
                rebuild=rebuild,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Compares what is locked with what is here already, and with what a registry holds."""

    parts: BuildParts
    repository: str
    """The images' path, `acme/digits`."""
    registry: AskedRegistry | None

    def rebuild(self, locks: Mapping[Platform, Lock], python: PythonChoice) -> Rebuild:
        planned: dict[PlannedLayer, None] = {}
        with_runtime = True
        for platform, lock in locks.items():
            planned |= dict.fromkeys(ml_layers(lock, python.minor))
            known = runtime.known_lock(self.parts.locker, platform=platform, python=python.runtime, glibc=python.glibc)
            with_runtime = with_runtime and known is not None
            if known is not None:
                planned |= dict.fromkeys(runtime_layers(known, python.runtime_minor, bytecode=False))
        return self._compared([layer for layer in planned if isinstance(layer, WheelsLayer)], with_runtime)

    def _compared(self, layers: list[WheelsLayer], with_runtime: bool) -> Rebuild:
        wanted: dict[str, LockedWheel] = {}
        make: list[int] = []
        push: list[int] = []
        keep: list[int] = []
        registry = self.registry
        compression = self.parts.request.recipe.compression
        keys = {layer: key for layer in layers if (key := cache_key(layer, compression))}
        here = {layer: self.parts.layers.known(key) for layer, key in keys.items()}
        lacking = [layer for layer, known in here.items() if known is None]
        with ThreadPoolExecutor(ASKING) as pool:
            recorded = dict(
                zip(lacking, pool.map(lambda layer: self.parts.layers.shared(keys[layer]), lacking), strict=True)
            )
        for layer, known in here.items():
            if there := recorded.get(layer):
                keep.append(there.size)  # it is mounted, not pushed
            elif known is None:
                size = sum(wheel.size or 0 for wheel in layer.wheels)
                wanted |= {wheel.sha256: wheel for wheel in layer.wheels}
                make.append(size)
                push.append(size)
            elif registry is not None and not registry.holds(self.repository, known[0]):
                push.append(known[1])
            else:
                keep.append(known[1])
        return Rebuild(
            fetch=Amount.of(wheel.size or 0 for wheel in wanted.values() if not self.parts.wheels.has(wheel)),
            make=Amount.of(make),
            push=Amount.of(push),
            keep=Amount.of(keep),
            registry=registry.name if registry else None,
            runtime=with_runtime,
        )


def _answering(request: Request, registry: AskedRegistry | None, reporter: Reporter) -> AskedRegistry | None:
    """The registry, or None where it does not answer: a check goes on without."""
    if registry is not None:
        try:
            registry.holds(request.source.repository, "sha256:" + 64 * "0")
        except FlopsError as error:
            reporter.warning(Stage.RESOLVE, f"the registry was not asked what it holds: {error.message}")
            return None
    return registry
