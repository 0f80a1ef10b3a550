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
from flops.publishing.naming import sign_standing, signing_key
from flops.records import Materials
from flops.records.attach import Recording
from flops.records.history import History
from flops.records.sbom import Bills
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
    from flops.publishing.delivery import Existing, Move
    from flops.publishing.publish import Target
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
        reached = BackgroundCall(target.check)
        shared = target.shared(reporter) if reuse else None
        if shared is not None:
            stack.callback(shared.close)
        parts = BuildParts(request, settings, reporter, stack, shared)
        job = _Job(parts)
        seen = parts.inspect()
        reached.result()
        settings.check_cache()
        bound = CacheBound(settings)
        bound.watch(parts.blobs, parts.wheels)
        stack.enter_context(bound.held())
        allowed = BackgroundCall(lambda: target.check_push(seen.checkout.repository))
        standing = {} if request.force or request.upgrade else naming.standing(request, seen.checkout, target)
        if standing:
            if key is not None:
                sign_standing(target, seen.checkout.repository, standing, key)
            before_tags(naming.move(request, seen.checkout.commit, standing))
            try:
                naming.move_commit(request, seen.checkout, target, standing)
            except (RegistryError, OutputError, DiskFull) as error:
                commit = seen.checkout.commit[:12]
                reporter.warning(Stage.PUSH, f"the tag {commit}... can't be moved to the images that stand: {error}")
            return job.reused(seen, standing, target)
        allowed.result()
        assembly = stack.enter_context(Assembly(parts.workshop(target, seen)))
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
    provision = job.parts.provision(seen, assembly)
    with job.parts.clock.stage(Stage.FETCH, f"{provision.wheels} wheels"):
        assembly.wait_for_wheels(job.parts.foundation.start(provision.python))
    images = job.assemble(seen, provision, assembly)
    with job.parts.clock.stage(Stage.PUSH, target.registry or "writing"):
        assembly.wait_for_offers()
        published = target.publish(
            Delivery(
                repository=seen.checkout.repository,
                images=images,
                annotations=partial(compose.index_annotations, _identity(job.parts.request, seen)),
                locks=job.locks(provision),
                tags=naming.free_tags(job.parts.request, seen.checkout, target, job.parts.reporter),
                store=job.parts.blobs,
                before_tags=before_tags,
                on_bytes=lambda done, total: job.parts.reporter.progress(Stage.PUSH, done=done, total=total),
                warn=lambda message: job.parts.reporter.warning(Stage.PUSH, message, hint="build that platform again"),
                attachments=Recording(
                    materials=job.materials(seen, provision, images),
                    bills=Bills(job.parts.settings.cache_dir / "records"),
                    history=history,
                    seconds=job.parts.clock.seconds,
                    moved={"downloaded": assembly.downloaded},
                    adjustments=job.adjustments(seen, provision),
                    findings=job.findings(seen, provision),
                ).attachments(key),
            )
        )
        moved = job.moved(assembly, target)
    return job.result(seen, provision, actor_images(images, published), target.registry, moved)


class _Job:
    """What one build makes and tells, of the parts that it works with."""

    def __init__(self, parts: BuildParts) -> None:
        self.parts = parts

    def assemble(self, seen: Inspection, provision: Inputs, assembly: Assembly) -> dict[Actor, tuple[Image, ...]]:
        """Base and every layer, then each actor's image for each platform; with the proofs that `verify` asks for."""
        with self.parts.clock.stage(Stage.ASSEMBLE, "base and layers"):
            bases = self.parts.foundation.bases(provision.python)
            for layer in {layer.digest: layer for base in bases.values() for layer in base.layers}.values():
                assembly.offer(layer)
            layout = _plan(seen, provision, bases)
            assembly.add(layout.layers)
            made = assembly.finish(layout.layers)
        with self.parts.clock.stage(Stage.VERIFY, "files of all packages"):
            if self.parts.request.verify:
                verify.packages(layout, made, imports=seen.structure.imports, reporter=self.parts.reporter)
        identity, locks = _identity(self.parts.request, seen), self.locks(provision)
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

    def locks(self, provision: Inputs) -> dict[Platform, str]:
        """One digest for each platform, over base, FL runtime and the user's packages."""
        bases = self.parts.foundation.bases(provision.python)
        parts = {platform: provision.locks(platform) for platform in self.parts.request.platforms}
        return {
            platform: compose.locked([bases[platform].lock, *(one.digest for one in locks)])
            for platform, locks in parts.items()
        }

    def reused(self, seen: Inspection, standing: Mapping[Actor, Existing], target: Target) -> Result:
        """What there is to tell where matching images stand already."""
        tag = naming.tags(self.parts.request, seen.checkout.commit)[1]
        images = existing_images(
            standing, self.parts.request.platforms, lambda actor: target.reference(seen.checkout.repository, actor, tag)
        )
        return self.result(seen, None, images, target.registry, kept_bytes(images))

    def materials(self, seen: Inspection, provision: Inputs, images: Mapping[Actor, Sequence[Image]]) -> Materials:
        """For the records."""
        layers = {layer.digest: layer for of in images.values() for image in of for layer in image.layers}
        told = [one for layer in layers.values() if isinstance(layer, WheelLayer) for one in layer.licences]
        return Materials(
            identity=_identity(self.parts.request, seen),
            recipe=self.parts.request.recipe,
            python=provision.python,
            bases=self.parts.foundation.bases(provision.python),
            runtime=provision.runtime,
            ml=provision.resolution.locks,
            licences={one.sha256: one.licence for one in told},
        )

    def adjustments(self, seen: Inspection, provision: Inputs | None) -> tuple[Adjustment, ...]:
        return (*seen.requirements.adjustments, *(provision.resolution.adjustments if provision else ()))

    def findings(self, seen: Inspection, provision: Inputs | None) -> tuple[Finding, ...]:
        return (*seen.structure.notes, *seen.requirements.notes, *(provision.findings if provision else ()))

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
        seen: Inspection,
        provision: Inputs | None,
        images: Mapping[Actor, ActorImage],
        registry: str | None,
        moved: Mapping[str, int],
    ) -> Result:
        found = provision.resolution if provision else None
        return Result(
            repository=seen.checkout.source,
            commit=seen.checkout.commit,
            recipe=self.parts.request.recipe.digest,
            registry=registry,
            images=images,
            python=PythonUsed.of(found.python, seen.requirements.python, flag=self.parts.request.recipe.python)
            if found
            else None,
            adjustments=self.adjustments(seen, provision),
            findings=self.findings(seen, provision),
            seconds=self.parts.clock.seconds(),
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


def _plan(seen: Inspection, provision: Inputs, bases: Mapping[Platform, Base]) -> ImagePlan:
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
