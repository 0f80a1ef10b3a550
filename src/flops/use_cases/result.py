"""What `flops build` and `flops check` tell, in the shape that their JSON has (docs/http.md, "JSON of the command line")."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flops.actors import Actor
    from flops.errors import Adjustment, Finding
    from flops.formats.requirement import PythonRequest
    from flops.locking.lock import Lock
    from flops.oci.image import Image
    from flops.platforms import Platform
    from flops.publishing.delivery import ExistingImage, Published, Summary
    from flops.repair.accelerator import CudaPackages
    from flops.repair.pythons import PythonChoice


@dataclass(frozen=True, kw_only=True)
class PythonUsed:
    requested: str | None
    """As the repository or `--python` says; None where neither does."""
    used: str
    provider: str

    @classmethod
    def of(cls, choice: PythonChoice, asked: PythonRequest | None, *, flag: str | None) -> PythonUsed:
        return cls(requested=flag or (asked.text if asked else None), used=choice.version, provider=choice.provider)


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
    cuda: Mapping[Platform, CudaPackages]
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check finds out."""

    repository: str
    """The source: a URL, or `local/DIRNAME`."""
    commit: str
    recipe: str
    python: PythonUsed
    adjustments: tuple[Adjustment, ...]
    findings: tuple[Finding, ...]
    locks: Mapping[Platform, Lock]
    seconds: Mapping[str, float]
    preflight: Preflight

    def to_json(self) -> dict[str, Any]:
        return {
            "repository": self.repository,
            "commit": self.commit,
            "recipe": self.recipe,
            "python": asdict(self.python),
            "adjustments": [one.to_json() for one in self.adjustments],
            "findings": [one.to_json() for one in self.findings],
            "locks": {
                platform.value: [
                    {"name": wheel.name, "version": wheel.version, "bytes": wheel.size} for wheel in lock.wheels
                ]
                for platform, lock in self.locks.items()
            },
            **self.preflight.to_json(),
            "seconds": dict(self.seconds),
        }


@dataclass(frozen=True, kw_only=True)
class ActorImage:
    """One actor's image in its place."""

    reference: str
    digest: str
    """Of the index."""
    platforms: Mapping[Platform, Summary]


def actor_images(
    images: Mapping[Actor, Sequence[Image]], published: Mapping[Actor, Published]
) -> dict[Actor, ActorImage]:
    """What was composed and where it was put, as results show it."""
    from flops.publishing.delivery import LayerSize, Summary  # noqa: PLC0415 - a check needs nothing of publishing

    return {
        actor: ActorImage(
            reference=published[actor].reference,
            digest=published[actor].digest,
            platforms={
                image.platform: Summary(
                    digest=image.digest,
                    layers=len(image.layers),
                    bytes=image.size,
                    uncompressed_bytes=sum(layer.uncompressed_size for layer in image.layers),
                    layer_sizes=tuple(
                        LayerSize(digest=layer.digest, bytes=layer.size, title=layer.comment) for layer in image.layers
                    ),
                )
                for image in of_platforms
            },
        )
        for actor, of_platforms in images.items()
    }


def existing_images(
    existing: Mapping[Actor, ExistingImage], platforms: Sequence[Platform], reference: Callable[[Actor], str]
) -> dict[Actor, ActorImage]:
    """Published images as results show them: the platforms that were asked for."""
    return {
        actor: ActorImage(
            reference=reference(actor),
            digest=found.digest,
            platforms={platform: found.summaries[platform] for platform in platforms},
        )
        for actor, found in existing.items()
    }


def kept_bytes(images: Mapping[Actor, ActorImage]) -> dict[str, int]:
    """Of images that nothing had to be made or moved for."""
    sizes = {one.digest: one.bytes for image in images.values() for one in image.platforms.values()}
    return {"downloaded": 0, "uploaded": 0, "reused": sum(sizes.values())}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a build made."""

    repository: str
    commit: str
    recipe: str
    registry: str | None
    images: Mapping[Actor, ActorImage]
    python: PythonUsed | None
    """None where a matching image existed and nothing was resolved."""
    adjustments: tuple[Adjustment, ...]
    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    """`downloaded` (wheels), `uploaded`, `reused` (layers that were not made or not uploaded)."""

    @classmethod
    def of_existing(
        cls, images: Mapping[Actor, ActorImage], source: str, commit: str, recipe: str, registry: str | None
    ) -> Result:
        """Of published images, for a caller that looked at nothing else."""
        return cls(
            repository=source,
            commit=commit,
            recipe=recipe,
            registry=registry,
            images=images,
            python=None,
            adjustments=(),
            findings=(),
            seconds={},
            bytes=kept_bytes(images),
        )

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(image.reference for image in self.images.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "repository": self.repository,
            "commit": self.commit,
            "recipe": self.recipe,
            "registry": self.registry,
            "images": {
                actor.value: {
                    "reference": image.reference,
                    "digest": image.digest,
                    "platforms": {platform.value: one.to_json() for platform, one in image.platforms.items()},
                }
                for actor, image in self.images.items()
            },
            "python": asdict(self.python) if self.python else None,
            "adjustments": [one.to_json() for one in self.adjustments],
            "findings": [one.to_json() for one in self.findings],
            "seconds": dict(self.seconds),
            "bytes": dict(self.bytes),
        }
