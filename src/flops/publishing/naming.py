"""Which tags a commit's images get, and whether images that stand already are what is wanted (docs/images.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flops.actors import Actor
from flops.errors import ImageNotFound, UsageError
from flops.images import compose
from flops.oci.descriptor import INDEX, Descriptor
from flops.progress import Stage
from flops.publishing.delivery import Move, Named
from flops.publishing.publish import RegistryTarget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.oci.signature import SigningKey
    from flops.progress import Reporter
    from flops.publishing.delivery import Existing
    from flops.publishing.publish import Target
    from flops.repository.checkout import Checkout
    from flops.request import Request
    from flops.settings import Settings


#: Times that COMMIT is moved, where somebody else moves the exact tag meanwhile.
ROUNDS = 4


class Subject(Protocol):
    """What images are of: a checkout, or what a manager knows of one."""

    @property
    def source(self) -> str: ...

    @property
    def commit(self) -> str: ...

    @property
    def repository(self) -> str: ...


def tags(request: Request, commit: str) -> tuple[str, str]:
    """COMMIT, as FLOps looks for it, and COMMIT-RECIPE12, which nodes deploy."""
    return commit, f"{commit}-{request.recipe.short}"


def standing(request: Request, files: Subject, target: Target) -> dict[Actor, Existing]:
    """Both actors' images as they stand, if they match: same source, commit, recipe, and all requested platforms.

    For each platform both have one lock: a builder that was killed between the two may have left one of its own beside an older one.
    """
    wanted = {
        compose.SOURCE: files.source,
        compose.REVISION: files.commit,
        compose.RECIPE: request.recipe.digest,
    }
    found: dict[Actor, Existing] = {}
    for actor in Actor:
        one = target.existing(files.repository, actor, tags(request, files.commit)[1])
        if one is None or not wanted.items() <= one.annotations.items():
            return {}
        if not set(request.platforms) <= one.summaries.keys():
            return {}
        found[actor] = one
    locks = {platform: {one.locks[platform] for one in found.values()} for platform in request.platforms}
    return found if all(len(of_platform) == 1 for of_platform in locks.values()) else {}


def free_tags(request: Request, files: Checkout, target: Target, reporter: Reporter) -> tuple[str, ...]:
    """The tags that may move: COMMIT stays where it holds another recipe's image, unless `force` says otherwise."""
    both = tags(request, files.commit)
    if request.force:
        return both
    for actor in Actor:
        one = target.existing(files.repository, actor, both[0])
        if one is not None and one.annotations.get(compose.RECIPE) != request.recipe.digest:
            reporter.warning(
                Stage.PUSH,
                f"the tag {both[0][:12]}... holds images of another recipe and stays; these are under {both[1]}",
                hint="--force moves it",
            )
            return both[1:]
    return both


def move(request: Request, commit: str, found: Mapping[Actor, Existing]) -> Move:
    """What is asked for where images stand already: their own name, and COMMIT, which may have to follow."""
    return Move(
        tags=tags(request, commit)[::-1],
        images={
            actor: Named(
                digest=one.digest,
                platforms={platform: one.summaries[platform].digest for platform in request.platforms},
            )
            for actor, one in found.items()
        },
    )


def move_commit(request: Request, files: Subject, target: Target, found: Mapping[Actor, Existing]) -> bool:
    """Move COMMIT to images that stand, where whoever made them was ended before he did; whether it was to be moved.

    `found` is what `standing` gave. The rule is that of `free_tags`.
    """
    commit, _ = tags(request, files.commit)
    moved = False
    for _ in range(ROUNDS):
        if not found or not _is_behind(request, files, target, found):
            break
        for actor, one in found.items():
            target.name(files.repository, actor, one.digest, commit)
        moved = True
        found = standing(request, files, target)  # the exact tags may have gained a platform before COMMIT was written
    return moved


def _is_behind(request: Request, files: Subject, target: Target, found: Mapping[Actor, Existing]) -> bool:
    """Whether COMMIT may name these images, both actors', and does not."""
    if len({one.annotations.get(compose.LOCK) for one in found.values()}) != 1:
        return False  # the exact tags were moved half: these are no build's images
    commit, _ = tags(request, files.commit)
    stands = {actor: target.existing(files.repository, actor, commit) for actor in found}
    for actor, one in stands.items():
        if one is None:
            continue
        if one.annotations.get(compose.RECIPE) != request.recipe.digest:
            if not request.force:
                return False
        elif not one.manifests.keys() <= found[actor].manifests.keys():
            return False  # it would lose a platform
    return any(one is None or one.digest != found[actor].digest for actor, one in stands.items())


def signing_key(request: Request, settings: Settings, target: Target) -> SigningKey | None:
    """The key that was asked for; None where none was. BadKey, UsageError: before any work is done.

    Signatures lie in registries: the settings' key is left alone where images go elsewhere.
    """
    path = request.sign or settings.sign_key
    if path is None:
        return None
    if not isinstance(target, RegistryTarget):
        if request.sign is None:
            return None
        raise UsageError("signatures are kept in a registry, and the images go elsewhere", hint="add --registry")
    from flops.oci.signature import SigningKey  # noqa: PLC0415 - seldom wanted, and slow to import

    password = settings.sign_password.get_secret_value() if settings.sign_password else None
    return SigningKey.read(path, password)


def sign_standing(target: Target, repository: str, standing: Mapping[Actor, Existing], key: SigningKey) -> None:
    """Sign what was found in its place; RegistryError."""
    from flops.oci.signature import sign_image  # noqa: PLC0415 - seldom wanted

    if not isinstance(target, RegistryTarget):
        return
    for actor, found in standing.items():
        name = target.client.registry.repository(repository, actor.value)
        manifest = target.client.get_manifest(name, found.digest)
        if manifest is None:
            raise ImageNotFound(f"{name}@{found.digest} went away", hint="build again")
        subject = Descriptor(media_type=INDEX, digest=found.digest, size=len(manifest.document))
        sign_image(target.client, name, subject, key)
