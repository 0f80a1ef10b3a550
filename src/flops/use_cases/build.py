"""The main job: one commit of an ML repository becomes a learner and an aggregator image in their place.

`inspect` reads, `resolve` decides (Python and locks), `plan` lays out, `Assembly` makes, a Target publishes. Work overlaps:
the base is made and the FL runtime's layers are begun while the user's requirements are still being locked, and layers
travel while others are made.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from flops import actors
from flops.actors import Actor
from flops.errors import DiskFull, OutputError, RecordUnusable, RegistryError
from flops.images import compose, verify
from flops.images.assemble import Assembly
from flops.images.compose import Identity
from flops.images.plan import BaseLayer, plan
from flops.progress import Reporter, Silent, Stage
from flops.prune.cache_bound import CacheBound
from flops.publishing import naming
from flops.publishing.delivery import Delivery
from flops.publishing.registry_target import RegistryTarget, signing_key
from flops.records import Materials
from flops.records.attach import build_attachments
from flops.records.history import History
from flops.store.document_store import DocumentStore
from flops.use_cases.parts import BuildParts
from flops.use_cases.result import PythonUsed, Result, actor_images, existing_images, kept_bytes
from flops.wheels.wheel_layer import WheelLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.base import Base
    from flops.errors import Adjustment, Finding
    from flops.images.plan import ImagePlan
    from flops.oci.image import Image
    from flops.oci.signature import SigningKey
    from flops.platforms import Platform
    from flops.publishing.delivery import ExistingImage, TagMove, Target
    from flops.repair.inspection import Inspection
    from flops.request import Request
    from flops.settings import Settings
    from flops.use_cases.parts import Inputs
    from flops.use_cases.result import ActorImage


class BackgroundCall:
    """Begins at once, in a thread that does not keep the process alive; `result` waits, and raises what it raised."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="flops-aside", daemon=True)
        self._thread.start()

    def result(self) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._failure = error


def build(
    request: Request,
    target: Target,
    *,
    settings: Settings,
    reporter: Reporter | None = None,
    before_tags: Callable[[TagMove], None] = lambda _move: None,
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
    before_tags: Callable[[TagMove], None],
    *,
    reuse: bool,
) -> Result:
    """With `reuse`, what other builders left in the registry is used, and what is made here is left there."""
    reporter = history = History(reporter)
    with ExitStack() as stack:
        key = signing_key(request, settings, target)
        reached = BackgroundCall(target.check)
        shared = target.shared(reporter) if reuse else None
        if shared is not None:
            stack.callback(shared.close)
        parts = BuildParts(request, settings, reporter, stack, shared)
        job = _Job(parts)
        inspection = parts.inspect()
        reached.result()
        settings.check_cache()
        bound = CacheBound(settings)
        bound.watch(parts.blobs, parts.wheels)
        stack.enter_context(bound.held())
        checkout = inspection.checkout
        allowed = BackgroundCall(lambda: target.check_push(checkout.repository))
        existing = {} if request.force or request.upgrade else naming.matching_images(request, checkout, target)
        if existing:
            if key is not None and isinstance(target, RegistryTarget):
                target.sign(checkout.repository, existing, key)
            before_tags(naming.move(request, checkout.commit, existing))
            try:
                naming.move_commit(request, checkout, target, existing)
            except (RegistryError, OutputError, DiskFull) as error:
                tag = f"{checkout.commit[:12]}..."
                reporter.warning(Stage.PUSH, f"the tag {tag} can't be moved to the existing images: {error}")
            return job.reused(inspection, existing, target)
        allowed.result()
        assembly = stack.enter_context(Assembly(parts.layer_tools(target, inspection)))
        return _made(job, inspection, target, assembly, history=history, key=key, before_tags=before_tags)


def _made(
    job: _Job,
    inspection: Inspection,
    target: Target,
    assembly: Assembly,
    *,
    history: History,
    key: SigningKey | None,
    before_tags: Callable[[TagMove], None],
) -> Result:
    """From the locks to the tags."""
    inputs = job.parts.inputs(inspection, assembly)
    with job.parts.clock.stage(Stage.FETCH, f"{inputs.wheels} wheels"):
        assembly.wait_for_wheels(job.parts.bases.start(inputs.python))
    images = job.assemble(inspection, inputs, assembly)
    with job.parts.clock.stage(Stage.PUSH, target.registry or "writing"):
        assembly.wait_for_offers()
        published = target.publish(
            Delivery(
                repository=inspection.checkout.repository,
                images=images,
                annotations=partial(compose.index_annotations, _identity(job.parts.request, inspection)),
                locks=job.locks(inputs),
                tags=naming.free_tags(job.parts.request, inspection.checkout, target, job.parts.reporter),
                store=job.parts.blobs,
                before_tags=before_tags,
                on_bytes=lambda done, total: job.parts.reporter.progress(Stage.PUSH, done=done, total=total),
                warn=lambda message: job.parts.reporter.warning(Stage.PUSH, message, hint="build that platform again"),
                attachments=build_attachments(
                    history,
                    job.materials(inspection, inputs, images),
                    DocumentStore(job.parts.settings.cache_dir / "records", kind="sbom", lifetime=None),
                    seconds=job.parts.clock.seconds,
                    moved={"downloaded": assembly.downloaded},
                    adjustments=job.adjustments(inspection, inputs),
                    findings=job.findings(inspection, inputs),
                    key=key,
                ),
            )
        )
        moved = job.moved(assembly, target)
    return job.result(inspection, inputs, actor_images(images, published), target.registry, moved)


class _Job:
    """What one build makes and tells, of the parts that it works with."""

    def __init__(self, parts: BuildParts) -> None:
        self.parts = parts

    def assemble(self, inspection: Inspection, inputs: Inputs, assembly: Assembly) -> dict[Actor, tuple[Image, ...]]:
        """Base and every layer, then each actor's image for each platform; with the proofs that `verify` asks for."""
        with self.parts.clock.stage(Stage.ASSEMBLE, "base and layers"):
            bases = self.parts.bases.bases(inputs.python)
            for layer in {layer.digest: layer for base in bases.values() for layer in base.layers}.values():
                assembly.offer(layer)
            layout = _plan(inspection, inputs, bases)
            assembly.add(layout.layers)
            made = assembly.finish(layout.layers)
        with self.parts.clock.stage(Stage.VERIFY, "files of all packages"):
            if self.parts.request.verify:
                verify.check_packages(layout, made, imports=inspection.structure.imports, reporter=self.parts.reporter)
        identity, locks = _identity(self.parts.request, inspection), self.locks(inputs)
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
                for platform in self.parts.request.platforms
            )
        return images

    def locks(self, inputs: Inputs) -> dict[Platform, str]:
        """One digest for each platform, over base, FL runtime and the user's packages."""
        bases = self.parts.bases.bases(inputs.python)
        parts = {platform: inputs.locks(platform) for platform in self.parts.request.platforms}
        return {
            platform: compose.locked([bases[platform].lock, *(one.digest for one in locks)])
            for platform, locks in parts.items()
        }

    def reused(self, inspection: Inspection, existing: Mapping[Actor, ExistingImage], target: Target) -> Result:
        """The result where matching images are published already."""
        tag = naming.tags(self.parts.request, inspection.checkout.commit)[1]
        images = existing_images(
            existing,
            self.parts.request.platforms,
            lambda actor: target.reference(inspection.checkout.repository, actor, tag),
        )
        return self.result(inspection, None, images, target.registry, kept_bytes(images))

    def materials(self, inspection: Inspection, inputs: Inputs, images: Mapping[Actor, Sequence[Image]]) -> Materials:
        """For the records."""
        layers = {layer.digest: layer for of in images.values() for image in of for layer in image.layers}
        told = [one for layer in layers.values() if isinstance(layer, WheelLayer) for one in layer.licences]
        return Materials(
            identity=_identity(self.parts.request, inspection),
            recipe=self.parts.request.recipe,
            python=inputs.python,
            bases=self.parts.bases.bases(inputs.python),
            runtime=inputs.runtime,
            ml=inputs.resolution.locks,
            licences={one.sha256: one.licence for one in told},
        )

    def adjustments(self, inspection: Inspection, inputs: Inputs | None) -> tuple[Adjustment, ...]:
        return (*inspection.requirements.adjustments, *(inputs.resolution.adjustments if inputs else ()))

    def findings(self, inspection: Inspection, inputs: Inputs | None) -> tuple[Finding, ...]:
        return (*inspection.structure.notes, *inspection.requirements.notes, *(inputs.findings if inputs else ()))

    def moved(self, assembly: Assembly, target: Target) -> dict[str, int]:
        """Bytes, for the report, once what is left for other builders is in place too."""
        moved = {"downloaded": assembly.downloaded, "uploaded": target.uploaded, "reused": target.reused}
        if self.parts.shared is not None:
            self.parts.shared.wait()
            moved["uploaded"] += self.parts.shared.uploaded
            # went there first, and was mounted thence, where an image has it
            moved["reused"] = max(0, moved["reused"] - self.parts.shared.uploaded_layers)
        return moved

    def result(
        self,
        inspection: Inspection,
        inputs: Inputs | None,
        images: Mapping[Actor, ActorImage],
        registry: str | None,
        moved: Mapping[str, int],
    ) -> Result:
        found = inputs.resolution if inputs else None
        return Result(
            repository=inspection.checkout.source,
            commit=inspection.checkout.commit,
            recipe=self.parts.request.recipe.digest,
            registry=registry,
            images=images,
            python=PythonUsed.of(found.python, inspection.requirements.python, flag=self.parts.request.recipe.python)
            if found
            else None,
            adjustments=self.adjustments(inspection, inputs),
            findings=self.findings(inspection, inputs),
            seconds=self.parts.clock.seconds(),
            bytes=moved,
        )


def _identity(request: Request, inspection: Inspection) -> Identity:
    return Identity(
        source=inspection.checkout.source,
        commit=inspection.checkout.commit,
        created=inspection.checkout.created,
        repository=inspection.checkout.repository,
        flavor=inspection.flavor,
        recipe=request.recipe.digest,
    )


def _plan(inspection: Inspection, inputs: Inputs, bases: Mapping[Platform, Base]) -> ImagePlan:
    base = next(iter(bases.values()))
    return plan(
        interpreter=base.interpreter,
        python=inputs.python.runtime_minor,
        ml_interpreter=base.ml_interpreter,
        ml_python=inputs.python.minor,
        bytecode=inputs.compiler is not None,
        origin=inputs.compiler or "",
        base_layers={platform: len(base.layers) for platform, base in bases.items()},
        runtime=inputs.runtime,
        ml=inputs.resolution.locks,
        repository=actors.repository(inspection.checkout.path, inspection.checkout.files),
    )
