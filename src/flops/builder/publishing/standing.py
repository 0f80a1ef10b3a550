"""What stands under tags of a registry, and which of a delivery's tags is to move next.

Registries have no compare-and-swap, so whoever moves tags reads again what stands after each of its writes. An index that was written
late may have taken another builder's platforms away: the exact tag and COMMIT, moved one after the other, tell of each other's.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops.builder.images.compose import RECIPE
from flops.builder.publishing.delivery import Existing, Summary, summary_of, with_others
from flops.errors import BadImage
from flops.oci.image import ImageIndex, parse_index, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flops.builder.images.actors import Actor
    from flops.builder.publishing.delivery import Delivery
    from flops.oci.client import RegistryClient
    from flops.oci.image import Descriptor, ParsedIndex
    from flops.oci.manifests import Manifest
    from flops.platforms import Platform


@dataclass(frozen=True, kw_only=True)
class Stand:
    """What a delivery's tags hold for one actor."""

    document: bytes | None
    """The index under the exact tag."""
    before: Existing | None
    """What a new index takes in: that one, and platforms that only COMMIT has."""
    digests: Mapping[str, str]
    """By tag."""
    foreign: bool
    """COMMIT holds another recipe's."""


class Standing:
    """Reads a registry. Manifests never change, so each is read once."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self._summaries: dict[tuple[str, str], Summary] = {}

    def existing(self, name: str, found: Manifest | None) -> Existing | None:
        """An index and those of its manifests that are there; None for a single image of somebody else's."""
        whole = _index(found)
        if found is None or whole is None:
            return None
        named = _by_platform(whole)
        read = {platform: self._summary(name, entry) for platform, entry in named.items()}
        summaries = {platform: one for platform, one in read.items() if one is not None}
        return Existing(
            annotations=whole.annotations,
            digest=found.digest,
            manifests={platform: named[platform] for platform in summaries},
            summaries=summaries,
            lost=tuple(named.keys() - summaries.keys()),
        )

    def of(self, delivery: Delivery) -> dict[Actor, Stand]:
        """For all its actors."""
        with ThreadPoolExecutor(len(delivery.images), thread_name_prefix="standing") as pool:
            found = pool.map(lambda actor: self._stand(delivery, actor), delivery.images)
            return dict(zip(delivery.images, found, strict=True))

    def _stand(self, delivery: Delivery, actor: Actor) -> Stand:
        name = self._client.registry.repository(delivery.repository, actor.value)
        found = {tag: self._client.get_manifest(name, tag) for tag in reversed(delivery.tags)}
        exact = found.pop(delivery.tags[-1])
        before = self.existing(name, exact)
        digests = {delivery.tags[-1]: exact.digest} if exact else {}
        foreign = False
        for tag, one in found.items():
            if one is None:
                continue
            digests[tag] = one.digest
            whole = _index(one)
            foreign = whole is None or whole.annotations.get(RECIPE) != delivery.annotations(actor, {}).get(RECIPE)
            if whole is not None and not foreign:
                built = {image.platform for image in delivery.images[actor]}
                before = self._with_lacking(name, before, one.digest, whole, built)
        document = exact.document if exact and before and before.digest == exact.digest else None
        return Stand(document=document, before=before, digests=digests, foreign=foreign)

    def _with_lacking(
        self, name: str, before: Existing | None, digest: str, whole: ParsedIndex, built: Collection[Platform]
    ) -> Existing | None:
        """What stands, and the platforms of another index that neither it nor the delivery has."""
        manifests = dict(before.manifests) if before else {}
        summaries = dict(before.summaries) if before else {}
        for platform, entry in _by_platform(whole).items():
            if platform not in manifests and platform not in built:
                one = self._summary(name, entry)
                if one is not None:
                    summaries[platform], manifests[platform] = one, entry
        if len(manifests) == (len(before.manifests) if before else 0):
            return before
        return Existing(annotations=whole.annotations, digest=digest, manifests=manifests, summaries=summaries)

    def _summary(self, name: str, entry: Descriptor) -> Summary | None:
        """None where it was removed: docker-registry's collector takes what an index alone names for garbage."""
        known = self._summaries.get((name, entry.digest))
        if known is None:
            found = self._client.get_manifest(name, entry.digest)
            if found is None:
                return None
            known = self._summaries[name, entry.digest] = summary_of(entry.digest, parse_manifest(found.document))
        return known


def gathered(delivery: Delivery, actor: Actor, stand: Stand, *, late: bool) -> ImageIndex:
    """The index that is to stand. `late`: ours stood there, so what is there now came after it, and stays."""
    there = stand.before.manifests if stand.before else {}
    if late and stand.document is not None and all(image.platform in there for image in delivery.images[actor]):
        ours = [image for image in delivery.images[actor] if there[image.platform].digest == image.digest]
        return ImageIndex(document=stand.document, images=tuple(ours))
    return with_others(delivery, actor, stand.before, late=late)


def behind(
    delivery: Delivery, wholes: Mapping[Actor, ImageIndex], stands: Mapping[Actor, Stand], moved: Collection[str]
) -> str | None:
    """The tag that moves next, the exact one first; None where all stand, or another recipe took COMMIT since it moved."""
    for tag in reversed(delivery.tags):
        if any(stands[actor].digests.get(tag) != whole.digest for actor, whole in wholes.items()):
            taken = tag in moved and tag != delivery.tags[-1] and any(one.foreign for one in stands.values())
            return None if taken else tag
    return None


def _index(found: Manifest | None) -> ParsedIndex | None:
    try:
        return parse_index(found.document) if found else None
    except BadImage:
        return None


def _by_platform(whole: ParsedIndex) -> dict[Platform, Descriptor]:
    return {entry.platform: entry for entry in whole.manifests if entry.platform is not None}
