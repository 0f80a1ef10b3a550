"""Which tags a commit's images get, and whether images that stand already are what is wanted (ARCHITECTURE.md, "Images")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flops.builder.images import compose
from flops.builder.images.actors import Actor
from flops.progress import Stage

if TYPE_CHECKING:
    from flops.builder.publishing.delivery import Existing
    from flops.builder.publishing.publish import Target
    from flops.builder.repository.checkout import Checkout
    from flops.builder.request import Request
    from flops.progress import Reporter


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
    """Both actors' images as they stand, if they match: same source, commit, recipe, and all requested platforms."""
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
    return found


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
