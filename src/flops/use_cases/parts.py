"""The parts that check and build share, and what they find out with them: Python and locks."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flops.base import BaseContext
from flops.base.bases import Bases
from flops.errors import InternalError
from flops.images import runtime
from flops.images.assemble import Assembly, LayerTools
from flops.images.plan import ml_layers, runtime_layers
from flops.locking.lock import Locker
from flops.oci.blobs import BlobStore
from flops.progress import Reporter, Stage, StageClock
from flops.repair.inspection import FILES, Inspection, inspect
from flops.repair.pythons import STANDALONE, PythonConstraint
from flops.repair.resolve import LockRequest, Resolution, resolve
from flops.repository.source_lines import SourceLineReporter, source_lines
from flops.store.document_store import DocumentStore
from flops.store.shared import LOCK
from flops.wheels.layer_cache import LayerCache
from flops.wheels.provides import Provides
from flops.wheels.wheel_cache import WheelCache

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager, ExitStack

    from flops.base.bytecode import Interpreter
    from flops.errors import Finding
    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.publishing.delivery import Target
    from flops.repair.pythons import PythonChoice
    from flops.request import Request
    from flops.settings import Settings
    from flops.store.shared import SharedCache


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a build's images are made of: Python, locks, and who compiles bytecode."""

    resolution: Resolution
    runtime: Mapping[Platform, Lock]
    compiler: str | None
    """Whose interpreter makes the FL runtime's bytecode (see BytecodeLayer.origin); None: there is none."""
    findings: tuple[Finding, ...] = ()

    def locks(self, platform: Platform) -> tuple[Lock, Lock]:
        return self.runtime[platform], self.resolution.locks[platform]

    @property
    def python(self) -> PythonChoice:
        return self.resolution.python

    @property
    def wheels(self) -> int:
        """How many distinct ones there are."""
        locks = (*self.runtime.values(), *self.resolution.locks.values())
        return len({wheel.sha256 for lock in locks for wheel in lock.wheels})


class BuildParts:
    """The parts that one check or build works with; what `stack` closes is gone afterwards.

    `shared`: what builders share through a registry, or None.
    """

    def __init__(
        self, request: Request, settings: Settings, reporter: Reporter, stack: ExitStack, shared: SharedCache | None
    ) -> None:
        self.request = request
        self.shared = shared
        self.settings = settings
        cache = settings.cache_dir
        self.blobs = BlobStore(cache)
        self.layers = LayerCache(cache / "layers", self.blobs, shared)
        self._work_dir = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="flops-", ignore_cleanup_errors=True))
        )
        stack.enter_context(source_lines(self._work_dir / FILES))
        self.reporter = SourceLineReporter(reporter, self._work_dir / FILES)
        self.clock = StageClock(self.reporter)
        context = BaseContext(
            settings=settings,
            blobs=self.blobs,
            request=request,
            reporter=self.reporter,
            shared=shared,
        )
        self.bases = stack.enter_context(Bases(context))
        self.locker = Locker(
            cache,
            index_url=settings.index_url,
            torch_index=settings.torch_index,
            ca_bundle=settings.ca_bundle,
            upgrade=request.upgrade,
            store=DocumentStore(cache / "locks", kind=LOCK, shared=shared),
        )
        self.wheels = stack.enter_context(
            WheelCache(cache / "wheels", index_url=settings.index_url, ca_bundle=settings.ca_bundle)
        )
        self.provides = Provides(cache / "provides", self.wheels, ca_bundle=settings.ca_bundle, shared=shared)
        self._pythons: dict[str, PythonChoice] = {}

    def inspect(self) -> Inspection:
        return inspect(self.request, self._work_dir, settings=self.settings, clock=self.clock, reporter=self.reporter)

    def wish(self, inspection: Inspection) -> PythonConstraint | None:
        """The Python that the repository or the request asks for."""
        return PythonConstraint.read(inspection.requirements.python, self.request.recipe.python)

    def resolve(self, inspection: Inspection) -> Resolution:
        """Python and locks for every platform; DependencyError and its kinds."""
        request = LockRequest(
            platforms=self.request.platforms,
            pythons=self.bases.choices(self.wish(inspection)),
            recipe=self.request.recipe,
            reporter=self.reporter,
        )
        return resolve(inspection, request, locker=self.locker, provides=self.provides)

    def layer_tools(self, target: Target, inspection: Inspection) -> LayerTools:
        return LayerTools(
            wheels=self.wheels,
            layers=self.layers,
            blobs=self.blobs,
            compression=self.request.recipe.compression,
            interpreter=self._interpreter,
            workers=self.settings.workers or max(2, os.cpu_count() or 2),
            offer=lambda layer: target.offer(inspection.checkout.repository, layer, self.blobs),
            reporter=self.reporter,
        )

    def _interpreter(self, version: str) -> Interpreter:
        """Of the base with this Python; there is one wherever a plan has bytecode in it."""
        choice = self._pythons.get(version)
        interpreter = self.bases.interpreter(choice) if choice else None
        if interpreter is None:
            raise InternalError("bytecode was planned without an interpreter that could make it")
        return interpreter

    def inputs(self, inspection: Inspection, assembly: Assembly) -> Inputs:
        """Python and locks. What does not depend on the user's requirements is begun before they are locked."""
        with self.resolving(), ThreadPoolExecutor(1) as pool:
            wish = self.wish(inspection)
            likely = self.bases.likely(wish)
            early = pool.submit(self._begin, likely, assembly)
            for choice in self.bases.choices(wish):
                if choice.provider == STANDALONE:  # fetched while the locks are made
                    self.bases.start(choice)
            resolution = self._begin_packages(inspection, assembly)
            if not self.bases.obtained(wish, resolution.python):
                resolution = self._begin_packages(inspection, assembly)
            notes = self.bases.notes(wish, resolution.python)
            if resolution.python.provider == STANDALONE:  # where there is none, `choices` has said so
                for note in notes:
                    self.reporter.finding(note)
            runtime_locks, compiler = early.result()
            if (resolution.python.suite, resolution.python.runtime) != (likely.suite, likely.runtime):
                runtime_locks, compiler = self._begin(resolution.python, assembly)
        return Inputs(
            resolution=resolution, runtime=runtime_locks, compiler=compiler, findings=(*resolution.findings, *notes)
        )

    def resolving(self) -> AbstractContextManager[None]:
        """Enclose the stage that finds the locks."""
        return self.clock.stage(Stage.RESOLVE, f"locks for {', '.join(map(str, self.request.platforms))}")

    def _begin_packages(self, inspection: Inspection, assembly: Assembly) -> Resolution:
        """Python and locks, and the layers of the user's packages begun."""
        resolution = self.resolve(inspection)
        for platform in self.request.platforms:
            assembly.add(ml_layers(resolution.locks[platform], resolution.python.minor))
        return resolution

    def _begin(self, python: PythonChoice, assembly: Assembly) -> tuple[dict[Platform, Lock], str | None]:
        """Start with the base and the FL runtime for a Python; the runtime's locks, and whose interpreter makes bytecode."""
        self._pythons[python.runtime] = python
        self.bases.start(python)
        platforms = self.request.platforms
        with ThreadPoolExecutor(len(platforms)) as pool:
            found = pool.map(
                lambda platform: runtime.lock(
                    self.locker, platform=platform, python=python.runtime, glibc=python.glibc
                ),
                platforms,
            )
            locks = dict(zip(platforms, found, strict=True))
        compiler = self.bases.compiler(python)
        if compiler is None:
            self.reporter.warning(
                Stage.RESOLVE,
                "the base image's Python can't be started here, so the FL runtime gets no bytecode: actors start slower",
                hint="install bubblewrap, and offer the base image for this machine's platform too",
            )
        assembly.add(
            [
                layer
                for lock in locks.values()
                for layer in runtime_layers(
                    lock, python.runtime_minor, bytecode=compiler is not None, origin=compiler or ""
                )
            ]
        )
        return locks, compiler
