"""The tags of a commit's images: which they get, what is published under them already, and which moves next."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flops.actors import Actor
from flops.errors import BadImage
from flops.images import compose
from flops.oci.image import ImageIndex, parse_index, parse_manifest
from flops.progress import Stage
from flops.publishing.delivery import ExistingImage, NamedImage, Summary, TagMove, merged_index, summary_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flops.oci.client import RegistryClient
    from flops.oci.image import Descriptor, ParsedIndex
    from flops.oci.manifests import Manifest
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.publishing.delivery import Delivery, Target
    from flops.repository.checkout import Checkout
    from flops.request import Request

#: Times that COMMIT is moved while somebody else moves the exact tag.
ROUNDS = 4


class ImageSubject(Protocol):
    """What images are made of: a checkout, or what a manager knows of one."""

    @property
    def source(self) -> str: ...

    @property
    def commit(self) -> str: ...

    @property
    def repository(self) -> str: ...


def tags(request: Request, commit: str) -> tuple[str, str]:
    """COMMIT, as FLOps looks for it, and COMMIT-RECIPE12, which nodes deploy."""
    return commit, f"{commit}-{request.recipe.short}"


def matching_images(request: Request, subject: ImageSubject, target: Target) -> dict[Actor, ExistingImage]:
    """Both actors' published images, if they match: same source, commit and recipe, and all requested platforms.

    For each platform both must have one lock: a builder that was killed between the two leaves them unequal.
    """
    wanted = {compose.SOURCE: subject.source, compose.REVISION: subject.commit, compose.RECIPE: request.recipe.digest}
    found: dict[Actor, ExistingImage] = {}
    for actor in Actor:
        one = target.existing(subject.repository, actor, tags(request, subject.commit)[1])
        if one is None or not wanted.items() <= one.annotations.items():
            return {}
        if not set(request.platforms) <= one.summaries.keys():
            return {}
        found[actor] = one
    locks = {platform: {one.locks[platform] for one in found.values()} for platform in request.platforms}
    return found if all(len(of_platform) == 1 for of_platform in locks.values()) else {}


def free_tags(request: Request, subject: Checkout, target: Target, reporter: Reporter) -> tuple[str, ...]:
    """The tags that may move: without `force`, COMMIT is left to another recipe's image."""
    both = tags(request, subject.commit)
    if request.force:
        return both
    for actor in Actor:
        one = target.existing(subject.repository, actor, both[0])
        if one is not None and one.annotations.get(compose.RECIPE) != request.recipe.digest:
            reporter.warning(
                Stage.PUSH,
                f"the tag {both[0][:12]}... holds images of another recipe and stays; these are under {both[1]}",
                hint="--force moves it",
            )
            return both[1:]
    return both


def move(request: Request, commit: str, found: Mapping[Actor, ExistingImage]) -> TagMove:
    """The move to ask leave for where images are published already: their exact tag, and COMMIT, which may follow."""
    return TagMove(
        tags=tags(request, commit)[::-1],
        images={
            actor: NamedImage(
                digest=one.digest,
                platforms={platform: one.summaries[platform].digest for platform in request.platforms},
            )
            for actor, one in found.items()
        },
    )


def move_commit(request: Request, subject: ImageSubject, target: Target, found: Mapping[Actor, ExistingImage]) -> bool:
    """Move COMMIT to published images whose builder ended before it did so; True if it had to be moved.

    `found` comes from `matching_images`. The rule is that of `free_tags`.
    """
    commit, _ = tags(request, subject.commit)
    moved = False
    for _ in range(ROUNDS):
        if not found or not _is_behind(request, subject, target, found):
            break
        for actor, one in found.items():
            target.tag(subject.repository, actor, one.digest, commit)
        moved = True
        # The exact tags may have gained a platform before COMMIT was written.
        found = matching_images(request, subject, target)
    return moved


def _is_behind(request: Request, subject: ImageSubject, target: Target, found: Mapping[Actor, ExistingImage]) -> bool:
    """Whether COMMIT may name both actors' images, and does not yet."""
    if len({one.annotations.get(compose.LOCK) for one in found.values()}) != 1:
        return False  # only one exact tag was moved, so the two are not of one build
    commit, _ = tags(request, subject.commit)
    current = {actor: target.existing(subject.repository, actor, commit) for actor in found}
    for actor, one in current.items():
        if one is None:
            continue
        if one.annotations.get(compose.RECIPE) != request.recipe.digest:
            if not request.force:
                return False
        elif not one.manifests.keys() <= found[actor].manifests.keys():
            return False  # it would lose a platform
    return any(one is None or one.digest != found[actor].digest for actor, one in current.items())


@dataclass(frozen=True, kw_only=True)
class TagState:
    """What a delivery's tags name for one actor."""

    document: bytes | None
    """The index under the exact tag."""
    before: ExistingImage | None
    """The image that a new index extends: that one, with the platforms that only COMMIT has."""
    digests: Mapping[str, str]
    """Of the index under each tag."""
    foreign: bool
    """Whether COMMIT names another recipe's image."""


class TagReader:
    """Reads what tags name in a registry. Manifests never change, so each is read once."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self._summaries: dict[tuple[str, str], Summary] = {}

    def existing(self, name: str, found: Manifest | None) -> ExistingImage | None:
        """An index and those of its manifests that are there; None for a manifest that is not an index."""
        whole = _index(found)
        if found is None or whole is None:
            return None
        named = _by_platform(whole)
        read = {platform: self._summary(name, entry) for platform, entry in named.items()}
        summaries = {platform: one for platform, one in read.items() if one is not None}
        return ExistingImage(
            annotations=whole.annotations,
            digest=found.digest,
            manifests={platform: named[platform] for platform in summaries},
            summaries=summaries,
            lost=tuple(named.keys() - summaries.keys()),
        )

    def states(self, delivery: Delivery) -> dict[Actor, TagState]:
        with ThreadPoolExecutor(len(delivery.images), thread_name_prefix="tags") as pool:
            found = pool.map(lambda actor: self._state(delivery, actor), delivery.images)
            return dict(zip(delivery.images, found, strict=True))

    def _state(self, delivery: Delivery, actor: Actor) -> TagState:
        name = self._client.registry.repository(delivery.repository, actor.value)
        found = {tag: self._client.get_manifest(name, tag) for tag in reversed(delivery.tags)}
        exact = found.pop(delivery.tags[-1])
        before = self.existing(name, exact)
        digests = {delivery.tags[-1]: exact.digest} if exact else {}
        recipe = delivery.annotations(actor, {}).get(compose.RECIPE)
        foreign = False
        for tag, one in found.items():
            if one is None:
                continue
            digests[tag] = one.digest
            whole = _index(one)
            foreign = whole is None or whole.annotations.get(compose.RECIPE) != recipe
            if whole is not None and not foreign:
                built = {image.platform for image in delivery.images[actor]}
                before = self._with_missing(name, before, one.digest, whole, built)
        document = exact.document if exact and before and before.digest == exact.digest else None
        return TagState(document=document, before=before, digests=digests, foreign=foreign)

    def _with_missing(
        self, name: str, before: ExistingImage | None, digest: str, whole: ParsedIndex, built: Collection[Platform]
    ) -> ExistingImage | None:
        """`before`, and the platforms of another index that neither it nor the delivery has."""
        manifests = dict(before.manifests) if before else {}
        summaries = dict(before.summaries) if before else {}
        for platform, entry in _by_platform(whole).items():
            if platform not in manifests and platform not in built:
                one = self._summary(name, entry)
                if one is not None:
                    summaries[platform], manifests[platform] = one, entry
        if len(manifests) == (len(before.manifests) if before else 0):
            return before
        return ExistingImage(annotations=whole.annotations, digest=digest, manifests=manifests, summaries=summaries)

    def _summary(self, name: str, entry: Descriptor) -> Summary | None:
        """None where it was removed: docker-registry's collector deletes manifests that only an index names."""
        known = self._summaries.get((name, entry.digest))
        if known is None:
            found = self._client.get_manifest(name, entry.digest)
            if found is None:
                return None
            known = self._summaries[name, entry.digest] = summary_of(entry.digest, parse_manifest(found.document))
        return known


def wanted_index(delivery: Delivery, actor: Actor, state: TagState, *, late: bool) -> ImageIndex:
    """The index that the tags shall name. `late`: ours was named before, so a newer image of a platform is kept."""
    there = state.before.manifests if state.before else {}
    if late and state.document is not None and all(image.platform in there for image in delivery.images[actor]):
        ours = [image for image in delivery.images[actor] if there[image.platform].digest == image.digest]
        return ImageIndex(document=state.document, images=tuple(ours))
    return merged_index(delivery, actor, state.before, late=late)


def next_tag(
    delivery: Delivery, wholes: Mapping[Actor, ImageIndex], states: Mapping[Actor, TagState], moved: Collection[str]
) -> str | None:
    """The tag that moves next, the exact one first; None if all are right, or another recipe took COMMIT since it moved."""
    for tag in reversed(delivery.tags):
        if any(states[actor].digests.get(tag) != whole.digest for actor, whole in wholes.items()):
            taken = tag in moved and tag != delivery.tags[-1] and any(one.foreign for one in states.values())
            return None if taken else tag
    return None


def _index(found: Manifest | None) -> ParsedIndex | None:
    try:
        return parse_index(found.document) if found else None
    except BadImage:
        return None


def _by_platform(whole: ParsedIndex) -> dict[Platform, Descriptor]:
    return {entry.platform: entry for entry in whole.manifests if entry.platform is not None}
