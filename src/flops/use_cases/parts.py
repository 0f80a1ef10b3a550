"""What a build's images are made of, decided: Python and locks, while base, FL runtime and wheels are already begun."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flops.base.bases import Bases
from flops.errors import InternalError
from flops.images import runtime
from flops.images.assemble import Assembly, LayerTools
from flops.images.layer_cache import LayerCache
from flops.images.plan import ml_layers, runtime_layers
from flops.locking.lock import Locker
from flops.locking.lock_store import LockStore
from flops.oci.blobs import BlobStore
from flops.progress import Reporter, Stage, StageClock
from flops.repair.inspection import FILES, Inspection, inspect
from flops.repair.pythons import STANDALONE, Wish
from flops.repair.resolve import LockRequest, Resolution, resolve
from flops.repository.source_lines import SourceLineReporter, source_lines
from flops.wheels.provides import Provides
from flops.wheels.shared_layers import SharedLayers
from flops.wheels.wheel_cache import WheelCache

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from flops.base.bytecode import Interpreter
    from flops.errors import Finding
    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.publishing.publish import Target
    from flops.repair.doctor import FoundLocks, PythonChoice
    from flops.request import Request
    from flops.settings import Settings
    from flops.store.shared import SharedCache


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What images are made of, decided."""

    resolution: FoundLocks
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
    """The parts that one run works with; what `stack` closes is gone afterwards."""

    def __init__(
        self, request: Request, settings: Settings, reporter: Reporter, stack: ExitStack, shared: SharedCache | None
    ) -> None:
        self.request = request
        self.shared = shared
        self.settings = settings
        self.blobs = BlobStore(settings.cache_dir)
        self.records = SharedLayers(shared, self.blobs) if shared else None
        self.room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flops-", ignore_cleanup_errors=True)))
        stack.enter_context(source_lines(self.room / FILES))
        self.reporter = reporter = SourceLineReporter(reporter, self.room / FILES)
        self.clock = StageClock(reporter)
        self.foundation = stack.enter_context(
            Bases(request, settings=settings, blobs=self.blobs, reporter=reporter, shared=shared, records=self.records)
        )
        self.locker = Locker(
            settings.cache_dir,
            index_url=settings.index_url,
            torch_index=settings.torch_index,
            ca_bundle=settings.ca_bundle,
            upgrade=request.upgrade,
            store=LockStore(settings.cache_dir / "locks", shared=shared),
        )
        self.wheels = stack.enter_context(
            WheelCache(settings.cache_dir / "wheels", index_url=settings.index_url, ca_bundle=settings.ca_bundle)
        )
        self._pythons: dict[str, PythonChoice] = {}

    def inspect(self) -> Inspection:
        return inspect(self.request, self.room, settings=self.settings, clock=self.clock, reporter=self.reporter)

    def wish(self, seen: Inspection) -> Wish | None:
        return Wish.read(seen.requirements.python, self.request.recipe.python)

    def notes(self, seen: Inspection, python: PythonChoice) -> tuple[Finding, ...]:
        """Where the ML environment's Python comes from, where there is something to tell."""
        notes = self.foundation.notes(self.wish(seen), python)
        if python.provider == STANDALONE:  # the lack of one was told when it was noticed
            for note in notes:
                self.reporter.finding(note)
        return notes

    def settle(self, seen: Inspection) -> Resolution:
        return resolve(
            seen,
            LockRequest(
                platforms=self.request.platforms,
                pythons=self.foundation.choices(self.wish(seen)),
                recipe=self.request.recipe,
                reporter=self.reporter,
            ),
            locker=self.locker,
            provides=Provides(
                self.settings.cache_dir / "provides",
                self.wheels,
                ca_bundle=self.settings.ca_bundle,
                shared=self.shared,
            ),
        )

    def workshop(self, target: Target, seen: Inspection) -> LayerTools:
        return LayerTools(
            wheels=self.wheels,
            layers=LayerCache(self.settings.cache_dir / "layers", self.blobs, self.records),
            blobs=self.blobs,
            compression=self.request.recipe.compression,
            interpreter=self.interpreter,
            workers=self.settings.workers or max(2, os.cpu_count() or 2),
            offer=lambda layer: target.offer(seen.checkout.repository, layer, self.blobs),
            reporter=self.reporter,
        )

    def interpreter(self, version: str) -> Interpreter:
        """Of the base with this Python; there is one wherever a plan has bytecode in it."""
        choice = self._pythons.get(version)
        interpreter = self.foundation.interpreter(choice) if choice else None
        if interpreter is None:
            raise InternalError("bytecode was planned without an interpreter that could make it")
        return interpreter

    def provision(self, seen: Inspection, assembly: Assembly) -> Inputs:
        """Python and locks. What does not depend on the user's requirements is begun before they are locked."""
        names = ", ".join(map(str, self.request.platforms))
        with self.clock.stage(Stage.RESOLVE, f"locks for {names}"), ThreadPoolExecutor(1) as pool:
            wish = self.wish(seen)
            likely = self.foundation.likely(wish)
            early = pool.submit(self._begin, likely, assembly)
            for choice in self.foundation.choices(wish):
                if choice.provider == STANDALONE:  # fetched while the locks are made
                    self.foundation.start(choice)
            settled = self._settled(seen, assembly)
            if not self.foundation.obtained(wish, settled.resolution.python):
                settled = self._settled(seen, assembly)
            found = settled.resolution
            notes = (*settled.findings, *self.notes(seen, found.python))
            runtime_locks, compiler = early.result()
            if (found.python.suite, found.python.runtime) != (likely.suite, likely.runtime):
                runtime_locks, compiler = self._begin(found.python, assembly)
        return Inputs(resolution=found, runtime=runtime_locks, compiler=compiler, findings=notes)

    def _settled(self, seen: Inspection, assembly: Assembly) -> Resolution:
        """Python and locks, and their layers begun."""
        settled = self.settle(seen)
        found = settled.resolution
        for platform in self.request.platforms:
            assembly.add(ml_layers(found.locks[platform], found.python.minor))
        return settled

    def _begin(self, python: PythonChoice, assembly: Assembly) -> tuple[dict[Platform, Lock], str | None]:
        """Start with the base and the FL runtime for a Python; the runtime's locks, and whose interpreter makes bytecode."""
        self._pythons[python.runtime] = python
        self.foundation.start(python)
        platforms = self.request.platforms
        with ThreadPoolExecutor(len(platforms)) as pool:
            found = pool.map(
                lambda platform: runtime.lock(
                    self.locker, platform=platform, python=python.runtime, glibc=python.glibc
                ),
                platforms,
            )
            locks = dict(zip(platforms, found, strict=True))
        interpreter = None if python.suite else self.foundation.interpreter(python)
        compiler = "" if python.suite else interpreter.origin if interpreter else None
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
