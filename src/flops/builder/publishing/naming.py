"""Which tags a commit's images get, and whether images that stand already are what is wanted (ARCHITECTURE.md, "Images")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flops.builder.images import compose
from flops.builder.images.actors import Actor
from flops.builder.publishing.delivery import Move, Named
from flops.progress import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.builder.publishing.delivery import Existing
    from flops.builder.publishing.publish import Target
    from flops.builder.repository.checkout import Checkout
    from flops.builder.request import Request
    from flops.progress import Reporter

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
