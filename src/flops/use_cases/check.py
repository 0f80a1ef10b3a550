"""`flops check`: what a build would install, fetch, make and push, told in seconds and before anything of it is done."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops.base.bases import Bases
from flops.errors import FlopsError
from flops.images import runtime
from flops.images.layer_cache import LayerCache, layer_key
from flops.images.plan import WheelsLayer, ml_layers, runtime_layers
from flops.locking.lock import Locker
from flops.oci.blobs import BlobStore
from flops.progress import Reporter, Silent, Stage, StageClock
from flops.repair.inspection import FILES, Inspection, inspect
from flops.repair.pythons import Wish
from flops.repair.resolve import LockRequest, Resolution, resolve
from flops.repository.source_lines import SourceLineReporter, source_lines
from flops.use_cases.result import PythonUsed, Report
from flops.wheels.provides import Provides
from flops.wheels.wheel_cache import WheelCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from flops.images.plan import PlannedLayer
    from flops.locking.lock import Lock, LockedWheel
    from flops.platforms import Platform
    from flops.recipe import Compression
    from flops.repair.accelerator import Carried
    from flops.repair.doctor import PythonChoice
    from flops.request import Request
    from flops.settings import Settings

    #: Whether the registry holds a layer (by its digest) of this repository (its image path); FlopsError.
    Holds = Callable[[str, str], bool]


#: Records of layers that are asked for at the same time.
ASKING = 8


@dataclass(frozen=True, kw_only=True)
class Amount:
    count: int
    bytes: int
    """As far as the index tells sizes. A layer that is not made yet counts as large as its wheels, which is nearly so."""

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Amount:
        known = list(sizes)
        return cls(count=len(known), bytes=sum(known))


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """What building now would take, as far as wheels go: the base and the repository's own files are not in it."""

    fetch: Amount
    """Wheels that are neither in the cache nor in a layer that is remembered, here or in the registry."""
    make: Amount
    """Layers that are not remembered."""
    push: Amount
    """Layers that the registry does not hold; without a registry, those that are not remembered."""
    keep: Amount
    """The other layers."""
    registry: str | None
    """The one that was asked."""
    runtime: bool
    """Whether the FL runtime's layers are in these figures: they are once its lock is known."""


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """The parts of a report that are about size."""

    sizes: Mapping[Platform, Amount]
    """Packages of the ML environment, to be fetched in all."""
    accelerator: str
    cuda: Mapping[Platform, Carried]
    cpu_refusal: str
    """Why PyTorch's CPU builds were not taken although they were wanted; empty otherwise."""
    rebuild: Rebuild

    def to_json(self) -> dict[str, Any]:
        return {
            "sizes": {
                platform.value: {"packages": size.count, "bytes": size.bytes} for platform, size in self.sizes.items()
            },
            "accelerator": {
                "wanted": self.accelerator,
                "cpu_refusal": self.cpu_refusal,
                "cuda": {
                    platform.value: {"packages": list(one.packages), "bytes": one.bytes}
                    for platform, one in self.cuda.items()
                    if one.packages
                },
            },
            "rebuild": asdict(self.rebuild),
        }


def check(
    request: Request, *, settings: Settings, reporter: Reporter | None = None, registry: Registered | None = None
) -> Report:
    """Everything up to the locks; no layers, no wheels. The same errors as `build` up to there."""
    settings.check_cache()
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flops-", ignore_cleanup_errors=True)))
        stack.enter_context(source_lines(room / FILES))
        told = SourceLineReporter(reporter or Silent(), room / FILES)
        clock = StageClock(told)
        blobs = BlobStore(settings.cache_dir)
        cache = settings.cache_dir
        wheels = stack.enter_context(
            WheelCache(cache / "wheels", index_url=settings.index_url, ca_bundle=settings.ca_bundle)
        )
        foundation = stack.enter_context(Bases(request, settings=settings, blobs=blobs, reporter=told))
        locker = Locker(
            cache,
            index_url=settings.index_url,
            torch_index=settings.torch_index,
            ca_bundle=settings.ca_bundle,
            upgrade=request.upgrade,
        )
        seen = inspect(request, room, settings=settings, clock=clock, reporter=told)
        with clock.stage(Stage.RESOLVE, f"locks for {', '.join(map(str, request.platforms))}"):
            wish = Wish.read(seen.requirements.python, request.recipe.python)
            question = LockRequest(
                platforms=request.platforms, pythons=foundation.choices(wish), recipe=request.recipe, reporter=told
            )
            provides = Provides(cache / "provides", wheels, ca_bundle=settings.ca_bundle)
            settled = resolve(seen, question, locker=locker, provides=provides)
            estimate = Estimate(
                wheels=wheels,
                layers=LayerCache(cache / "layers", blobs),
                compression=request.recipe.compression,
                repository=seen.checkout.repository,
                registry=registry,
                reporter=told,
            )
            python = settled.resolution.python
            rebuild = estimate.rebuild(settled.resolution.locks, python, locker)
            settled = replace(settled, findings=(*settled.findings, *foundation.notes(wish, python)))
        return _report(request, seen, settled, rebuild, clock)


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A registry that can be asked which layers it holds."""

    name: str
    holds: Holds
    recorded: Callable[[str], int | None] = lambda _key: None
    """Bytes of the layer that another builder recorded there under this key; None where there is none, or none is asked for."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Compares what is locked with what is here already, and with what a registry holds."""

    wheels: WheelCache
    layers: LayerCache
    compression: Compression
    repository: str
    """The images' path, `acme/digits`."""
    registry: Registered | None
    reporter: Reporter

    def rebuild(self, locks: Mapping[Platform, Lock], python: PythonChoice, locker: Locker) -> Rebuild:
        planned: dict[PlannedLayer, None] = {}
        with_runtime = True
        for platform, lock in locks.items():
            planned |= dict.fromkeys(ml_layers(lock, python.minor))
            known = runtime.known_lock(locker, platform=platform, python=python.runtime, glibc=python.glibc)
            with_runtime = with_runtime and known is not None
            if known is not None:
                planned |= dict.fromkeys(runtime_layers(known, python.runtime_minor, bytecode=False))
        return self._compared([layer for layer in planned if isinstance(layer, WheelsLayer)], with_runtime)

    def _compared(self, layers: list[WheelsLayer], with_runtime: bool) -> Rebuild:
        wanted: dict[str, LockedWheel] = {}
        make: list[int] = []
        push: list[int] = []
        keep: list[int] = []
        holds = self._holds()
        keys = {layer: self._key(layer) for layer in layers}
        here = {layer: self.layers.known(key) for layer, key in keys.items()}
        recorded = self._recorded([keys[layer] for layer, known in here.items() if known is None]) if holds else {}
        for layer, known in here.items():
            there = recorded.get(keys[layer])
            if there is not None:
                keep.append(there)  # it is mounted, not pushed
            elif known is None:
                size = sum(wheel.size or 0 for wheel in layer.wheels)
                wanted |= {wheel.sha256: wheel for wheel in layer.wheels}
                make.append(size)
                push.append(size)
            elif holds is not None and not holds(known[0]):
                push.append(known[1])
            else:
                keep.append(known[1])
        return Rebuild(
            fetch=Amount.of(wheel.size or 0 for wheel in wanted.values() if not self.wheels.has(wheel)),
            make=Amount.of(make),
            push=Amount.of(push),
            keep=Amount.of(keep),
            registry=self.registry.name if holds is not None and self.registry else None,
            runtime=with_runtime,
        )

    def _key(self, layer: WheelsLayer) -> str:
        hashes = [wheel.sha256 for wheel in layer.wheels]
        return layer_key(hashes, prefix=layer.prefix, python=layer.python, compression=self.compression)

    def _recorded(self, keys: list[str]) -> dict[str, int | None]:
        if self.registry is None:
            return {}
        with ThreadPoolExecutor(ASKING) as pool:
            return dict(zip(keys, pool.map(self.registry.recorded, keys), strict=True))

    def _holds(self) -> Callable[[str], bool] | None:
        """None where there is no registry, or none that answers: a check goes on without."""
        registry = self.registry
        if registry is None:
            return None
        try:
            registry.holds(self.repository, "sha256:" + 64 * "0")
        except FlopsError as error:
            self.reporter.warning(Stage.RESOLVE, f"the registry was not asked what it holds: {error.message}")
            return None
        return lambda digest: registry.holds(self.repository, digest)


def _report(request: Request, seen: Inspection, settled: Resolution, rebuild: Rebuild, clock: StageClock) -> Report:
    found, chosen = settled.resolution, settled.chosen
    return Report(
        repository=seen.checkout.source,
        commit=seen.checkout.commit,
        recipe=request.recipe.digest,
        python=PythonUsed.of(found.python, seen.requirements.python, flag=request.recipe.python),
        adjustments=(*seen.requirements.adjustments, *settled.adjustments),
        findings=(*seen.structure.notes, *seen.requirements.notes, *settled.findings),
        locks=found.locks,
        seconds=clock.seconds(),
        preflight=Preflight(
            sizes={
                platform: Amount(count=len(lock.wheels), bytes=lock.bytes) for platform, lock in found.locks.items()
            },
            accelerator=request.recipe.accelerator.value,
            cuda=chosen.carried,
            cpu_refusal=chosen.refusal,
            rebuild=rebuild,
        ),
    )
