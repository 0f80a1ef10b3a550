"""The main job: one commit of an ML repository becomes a learner and an aggregator image in their place.

`inspect` reads, `resolve` decides (Python and locks), `plan` lays out, `Assembly` makes, a Target publishes. Work overlaps:
the base is made and the FL runtime's layers are begun while the user's requirements are still being locked, and layers
travel while others are made.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flops.builder import runtime
from flops.builder.aside import Aside
from flops.builder.clock import Clock
from flops.builder.dependencies.decision import Question, Settlement, settle
from flops.builder.dependencies.inspection import FILES, Inspection, inspect
from flops.builder.dependencies.pythons import STANDALONE, Wish
from flops.builder.foundation import Foundation
from flops.builder.housekeeping.cache_bound import CacheBound
from flops.builder.images import actors, compose, verify
from flops.builder.images.actors import Actor
from flops.builder.images.assemble import Assembly, Workshop
from flops.builder.images.compose import Identity
from flops.builder.images.layer_cache import LayerCache
from flops.builder.images.plan import BaseLayer, ml_layers, plan, runtime_layers
from flops.builder.layer_records import LayerRecords
from flops.builder.locking.lock import Locker
from flops.builder.locking.lock_store import LockStore
from flops.builder.publishing import naming
from flops.builder.publishing.delivery import Delivery
from flops.builder.publishing.signing import sign_standing, signing_key
from flops.builder.quote import QuotingReporter, quoting
from flops.builder.records import Materials
from flops.builder.records.bills import Bills
from flops.builder.records.history import History
from flops.builder.records.recording import Recording
from flops.builder.result import PythonUsed, Result, actor_images, existing_images, kept_bytes
from flops.builder.wheels.provides import Provides
from flops.builder.wheels.wheel_cache import WheelCache
from flops.builder.wheels.wheel_layer import WheelLayer
from flops.errors import DiskFull, InternalError, OutputError, RecordUnusable, RegistryError
from flops.oci.blobs import BlobStore
from flops.progress import Reporter, Silent, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.builder.dependencies.doctor import PythonChoice, Resolution
    from flops.builder.images.plan import Plan
    from flops.builder.locking.lock import Lock
    from flops.builder.publishing.delivery import Existing, Move
    from flops.builder.publishing.publish import Target
    from flops.builder.request import Request
    from flops.builder.result import ActorImage
    from flops.builder.rootfs import Base
    from flops.builder.rootfs.bytecode import Interpreter
    from flops.builder.shared_cache import SharedCache
    from flops.errors import Adjustment, Finding
    from flops.oci.image import Image
    from flops.oci.signature import SigningKey
    from flops.platforms import Platform
    from flops.settings import Settings


def build(
    request: Request,
    target: Target,
    *,
    settings: Settings,
    reporter: Reporter | None = None,
    before_tags: Callable[[Move], None] = lambda _move: None,
) -> Result:
    """Build both actors' images and put them in place; names move last, after `before_tags`.

    Any FlopsError; then what stood under the names before still stands there.
    """
    told = reporter or Silent()
    try:
        return _build(request, target, settings, told, before_tags, reuse=settings.reuse == "registry")
    except RecordUnusable as error:
        told.warning(Stage.PUSH, f"{error.message}; the build begins again without such records")
        return _build(request, target, settings, told, before_tags, reuse=False)


def _build(
    request: Request,
    target: Target,
    settings: Settings,
    reporter: Reporter,
    before_tags: Callable[[Move], None],
    *,
    reuse: bool,
) -> Result:
    """With `reuse`, what other builders left in the registry is used, and what is made here is left there."""
    reporter = history = History(reporter)
    with ExitStack() as stack:
        key = signing_key(request, settings, target)
        reached = Aside(target.check)
        shared = target.shared(reporter) if reuse else None
        if shared is not None:
            stack.callback(shared.close)
        job = _Job(request, settings, reporter, stack, shared)
        seen = job.inspect()
        reached.result()
        settings.check_cache()
        bound = CacheBound(settings)
        bound.watch(job.blobs, job.wheels)
        stack.enter_context(bound.held())
        allowed = Aside(lambda: target.check_push(seen.checkout.repository))
        standing = {} if request.force or request.upgrade else naming.standing(request, seen.checkout, target)
        if standing:
            if key is not None:
                sign_standing(target, seen.checkout.repository, standing, key)
            try:
                naming.move_commit(request, seen.checkout, target, standing, before_tags=before_tags)
            except (RegistryError, OutputError, DiskFull) as error:
                commit = seen.checkout.commit[:12]
                reporter.warning(Stage.PUSH, f"the tag {commit}... can't be moved to the images that stand: {error}")
            return job.reused(seen, standing, target)
        allowed.result()
        assembly = stack.enter_context(Assembly(job.workshop(target, seen)))
        return _made(job, seen, target, assembly, history=history, key=key, before_tags=before_tags)


def _made(
    job: _Job,
    seen: Inspection,
    target: Target,
    assembly: Assembly,
    *,
    history: History,
    key: SigningKey | None,
    before_tags: Callable[[Move], None],
) -> Result:
    """From the locks to the tags."""
    provision = job.provision(seen, assembly)
    with job.clock.stage(Stage.FETCH, f"{provision.wheels} wheels"):
        assembly.wait_for_wheels(job.foundation.start(provision.python))
    images = job.assemble(seen, provision, assembly)
    with job.clock.stage(Stage.PUSH, target.registry or "writing"):
        assembly.wait_for_offers()
        published = target.publish(
            Delivery(
                repository=seen.checkout.repository,
                images=images,
                annotations=partial(compose.index_annotations, _identity(job.request, seen)),
                locks=job.locks(provision),
                tags=naming.free_tags(job.request, seen.checkout, target, job.reporter),
                store=job.blobs,
                before_tags=before_tags,
                on_bytes=lambda done, total: job.reporter.progress(Stage.PUSH, done=done, total=total),
                attachments=Recording(
                    materials=job.materials(seen, provision, images),
                    bills=Bills(job.settings.cache_dir / "records"),
                    history=history,
                    seconds=job.clock.seconds,
                    moved={"downloaded": assembly.downloaded},
                    adjustments=job.adjustments(seen, provision),
                    findings=job.findings(seen, provision),
                ).attachments(key),
            )
        )
        moved = job.moved(assembly, target)
    return job.result(seen, provision, actor_images(images, published), target.registry, moved)


@dataclass(frozen=True, kw_only=True)
class Provision:
    """What images are made of, decided."""

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


class _Job:
    """The parts that one run works with; what `stack` closes is gone afterwards."""

    def __init__(
        self, request: Request, settings: Settings, reporter: Reporter, stack: ExitStack, shared: SharedCache | None
    ) -> None:
        self.request = request
        self.shared = shared
        self.settings = settings
        self.blobs = BlobStore(settings.cache_dir)
        self.records = LayerRecords(shared, self.blobs) if shared else None
        self.room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flops-", ignore_cleanup_errors=True)))
        stack.enter_context(quoting(self.room / FILES))
        self.reporter = reporter = QuotingReporter(reporter, self.room / FILES)
        self.clock = Clock(reporter)
        self.foundation = stack.enter_context(
            Foundation(
                request.recipe,
                request.platforms,
                settings=settings,
                blobs=self.blobs,
                reporter=reporter,
                upgrade=request.upgrade,
                credentials=request.registry_credentials,
                shared=shared,
                records=self.records,
            )
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

    def settle(self, seen: Inspection) -> Settlement:
        return settle(
            seen,
            Question(
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

    def workshop(self, target: Target, seen: Inspection) -> Workshop:
        return Workshop(
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

    def provision(self, seen: Inspection, assembly: Assembly) -> Provision:
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
        return Provision(resolution=found, runtime=runtime_locks, compiler=compiler, findings=notes)

    def _settled(self, seen: Inspection, assembly: Assembly) -> Settlement:
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

    def assemble(self, seen: Inspection, provision: Provision, assembly: Assembly) -> dict[Actor, tuple[Image, ...]]:
        """Base and every layer, then each actor's image for each platform; with the proofs that `verify` asks for."""
        with self.clock.stage(Stage.ASSEMBLE, "base and layers"):
            bases = self.foundation.bases(provision.python)
            for layer in {layer.digest: layer for base in bases.values() for layer in base.layers}.values():
                assembly.offer(layer)
            layout = _plan(seen, provision, bases)
            assembly.add(layout.layers)
            made = assembly.finish(layout.layers)
        with self.clock.stage(Stage.VERIFY, "files of all packages"):
            if self.request.verify:
                verify.packages(layout, made, imports=seen.structure.imports, reporter=self.reporter)
        identity, locks = _identity(self.request, seen), self.locks(provision)
        images: dict[Actor, tuple[Image, ...]] = {}
        for actor in Actor:
            images[actor] = tuple(
                compose.compose_image(
                    identity,
                    actor,
                    platform=platform,
                    base=bases[platform],
                    lock=locks[platform],
                    layers=[
                        bases[platform].layers[layer.number] if isinstance(layer, BaseLayer) else made[layer]
                        for layer in layout.images[actor, platform]
                    ],
                )
                for platform in self.request.platforms
            )
        return images

    def locks(self, provision: Provision) -> dict[Platform, str]:
        """One digest for each platform, over base, FL runtime and the user's packages."""
        bases = self.foundation.bases(provision.python)
        parts = {platform: provision.locks(platform) for platform in self.request.platforms}
        return {
            platform: compose.locked([bases[platform].lock, *(one.digest for one in locks)])
            for platform, locks in parts.items()
        }

    def reused(self, seen: Inspection, standing: Mapping[Actor, Existing], target: Target) -> Result:
        """What there is to tell where matching images stand already."""
        tag = naming.tags(self.request, seen.checkout.commit)[1]
        images = existing_images(
            standing, self.request.platforms, lambda actor: target.reference(seen.checkout.repository, actor, tag)
        )
        return self.result(seen, None, images, target.registry, kept_bytes(images))

    def materials(self, seen: Inspection, provision: Provision, images: Mapping[Actor, Sequence[Image]]) -> Materials:
        """For the records."""
        layers = {layer.digest: layer for of in images.values() for image in of for layer in image.layers}
        told = [one for layer in layers.values() if isinstance(layer, WheelLayer) for one in layer.licences]
        return Materials(
            identity=_identity(self.request, seen),
            recipe=self.request.recipe,
            python=provision.python,
            bases=self.foundation.bases(provision.python),
            runtime=provision.runtime,
            ml=provision.resolution.locks,
            licences={one.sha256: one.licence for one in told},
        )

    def adjustments(self, seen: Inspection, provision: Provision | None) -> tuple[Adjustment, ...]:
        return (*seen.requirements.adjustments, *(provision.resolution.adjustments if provision else ()))

    def findings(self, seen: Inspection, provision: Provision | None) -> tuple[Finding, ...]:
        return (*seen.structure.notes, *seen.requirements.notes, *(provision.findings if provision else ()))

    def moved(self, assembly: Assembly, target: Target) -> dict[str, int]:
        """Bytes, for the report, once what is left for other builders is in place too."""
        moved = {"downloaded": assembly.downloaded, "uploaded": target.uploaded, "reused": target.reused}
        if self.shared is not None:
            self.shared.wait()
            moved["uploaded"] += self.shared.uploaded
            # went there first, and was mounted thence, where an image has it
            moved["reused"] = max(0, moved["reused"] - self.shared.uploaded_layers)
        return moved

    def result(
        self,
        seen: Inspection,
        provision: Provision | None,
        images: Mapping[Actor, ActorImage],
        registry: str | None,
        moved: Mapping[str, int],
    ) -> Result:
        found = provision.resolution if provision else None
        return Result(
            repository=seen.checkout.source,
            commit=seen.checkout.commit,
            recipe=self.request.recipe.digest,
            registry=registry,
            images=images,
            python=PythonUsed.of(found.python, seen.requirements.python, flag=self.request.recipe.python)
            if found
            else None,
            adjustments=self.adjustments(seen, provision),
            findings=self.findings(seen, provision),
            seconds=self.clock.seconds(),
            bytes=moved,
        )


def _identity(request: Request, seen: Inspection) -> Identity:
    return Identity(
        source=seen.checkout.source,
        commit=seen.checkout.commit,
        created=seen.checkout.created,
        repository=seen.checkout.repository,
        flavor=seen.flavor,
        recipe=request.recipe.digest,
    )


def _plan(seen: Inspection, provision: Provision, bases: Mapping[Platform, Base]) -> Plan:
    base = next(iter(bases.values()))
    return plan(
        interpreter=base.interpreter,
        python=provision.python.runtime_minor,
        ml_interpreter=base.ml_interpreter,
        ml_python=provision.python.minor,
        bytecode=provision.compiler is not None,
        origin=provision.compiler or "",
        base_layers={platform: len(base.layers) for platform, base in bases.items()},
        runtime=provision.runtime,
        ml=provision.resolution.locks,
        repository=actors.repository(seen.checkout.path, seen.checkout.files),
    )
