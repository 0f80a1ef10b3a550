"""Where finished images go: what every place can do, and the registry; `local_targets` has those on this machine.

The build knows none of them: it offers each layer as soon as it is made, and publishes both actors' images at the end.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from flops.actors import Actor
from flops.errors import BadImage, ImageNotFound
from flops.images.compose import RECIPE
from flops.oci.image import ImageIndex, parse_index, parse_manifest
from flops.publishing.delivery import Existing, Published, Summary, summary_of, with_others

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from flops.oci.client import RegistryClient
    from flops.oci.image import Descriptor, ParsedIndex
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.oci.manifests import Manifest
    from flops.oci.reference import Registry
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.publishing.delivery import Delivery
    from flops.store.shared import SharedCache


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


class StandingTags:
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


#: Times that what stands under the tags is read; four where nobody else moves them.
ROUNDS = 16


class Target(Protocol):
    """A place for images. `uploaded` and `reused` count bytes, for the report."""

    @property
    def registry(self) -> str | None:
        """As results name it; None for places that are no registry."""

    @property
    def uploaded(self) -> int: ...

    @property
    def reused(self) -> int: ...

    def check(self) -> None:
        """Fail now if the place can't be used, before any work is done."""

    def check_push(self, repository: str) -> None:
        """Fail now if images of this name can't be put there."""

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        """The name of an image there."""

    def existing(self, repository: str, actor: Actor, tag: str) -> Existing | None:
        """What lies there under this name, where such a place can tell."""

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        """A layer is made: it may travel now. Called from several threads."""

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        """Put both images in place; names move last."""

    def name(self, repository: str, actor: Actor, digest: str, tag: str) -> None:
        """Give an index that lies there another name."""

    def shared(self, reporter: Reporter) -> SharedCache | None:
        """Where builders that push there leave what others can use; None for places that are no registry."""

    def next_steps(self, references: Sequence[str]) -> list[str]:
        """How a person goes on from here, in lines."""


class RegistryTarget:
    """A registry: layers travel while others are made; blobs, manifests, index, then the tags of both actors."""

    def __init__(self, client: RegistryClient, *, pull_name: Registry | None = None) -> None:
        self.client = client
        self.uploaded = self.reused = 0
        self._pull_name = pull_name
        self._registry = client.registry
        self.registry: str | None = str(pull_name or client.registry)
        self._mounts: tuple[str, ...] = ()
        self._standing = StandingTags(client)

    def check(self) -> None:
        self.client.ping()

    def check_push(self, repository: str) -> None:
        self.client.check_push([self._registry.repository(repository, actor.value) for actor in Actor])

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        pull = self._pull_name or self._registry
        return str(pull.reference(repository, actor.value, tag=tag))

    def existing(self, repository: str, actor: Actor, tag: str) -> Existing | None:
        name = self._registry.repository(repository, actor.value)
        return self._standing.existing(name, self.client.get_manifest(name, tag))

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        name = self._registry.repository(repository, Actor.LEARNER.value)
        opener = partial(store.open, layer.digest)
        self.client.push_blob(name, layer.digest, layer.size, opener, mount_from=self._mounts)

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        """Blobs, manifests and index of both actors by digest; then the caller's leave; then the tags.

        What stands is read again after every step, and what others named meanwhile is taken in, until all of it stands.
        """
        wholes: dict[Actor, ImageIndex] = {}
        moved: set[str] = set()
        for _ in range(ROUNDS):
            stands = self._standing.of(delivery)
            now = {actor: gathered(delivery, actor, one, late=bool(moved)) for actor, one in stands.items()}
            if {actor: one.digest for actor, one in now.items()} != {
                actor: one.digest for actor, one in wholes.items()
            }:
                self._put(delivery, now, stands, first=not wholes)
                if not wholes:
                    self._warn(delivery, stands)
                    delivery.before_tags(delivery.move(now))
                wholes = now
                continue  # that took its time
            tag = behind(delivery, wholes, stands, moved)
            if tag is None:
                break
            for actor, whole in wholes.items():
                if stands[actor].digests.get(tag) != whole.digest:
                    name = self._registry.repository(delivery.repository, actor.value)
                    self.client.push_tags(name, whole, delivery.store, [tag])
            moved |= {delivery.tags[-1], tag}
        return {
            actor: Published(
                reference=self.reference(delivery.repository, actor, delivery.tags[0]), digest=whole.digest
            )
            for actor, whole in wholes.items()
        }

    def _warn(self, delivery: Delivery, stands: Mapping[Actor, Stand]) -> None:
        for actor, stand in stands.items():
            for platform in sorted((set(stand.before.lost) if stand.before else set()) - delivery.locks.keys()):
                name = self._registry.repository(delivery.repository, actor.value)
                delivery.warn(f"the registry lost the image of {name} for {platform}, which leaves the index")

    def _put(
        self, delivery: Delivery, wholes: Mapping[Actor, ImageIndex], stands: Mapping[Actor, Stand], *, first: bool
    ) -> None:
        """Everything but the tags, with records beside it; bytes are counted the first time."""
        learner = self._registry.repository(delivery.repository, Actor.LEARNER.value)
        sizes = {actor: _size(whole) for actor, whole in wholes.items()}
        before = 0
        with ThreadPoolExecutor(1, thread_name_prefix="records") as beside:
            attached = beside.submit(self._attach, delivery, wholes, stands)
            for actor, whole in wholes.items():
                name = self._registry.repository(delivery.repository, actor.value)
                mounts = self._mounts if name == learner else (learner, *self._mounts)
                progress = _onward(delivery.on_bytes, before, sum(sizes.values())) if first else None
                report = self.client.push_index(name, whole, delivery.store, (), mount_from=mounts, progress=progress)
                before += sizes[actor]
                self.uploaded += report.uploaded if first else 0
                self.reused += report.reused if first else 0
            self.uploaded += attached.result()

    def name(self, repository: str, actor: Actor, digest: str, tag: str) -> None:
        name = self._registry.repository(repository, actor.value)
        found = self.client.get_manifest(name, digest)
        if found is None:
            raise ImageNotFound(f"{name}@{digest} went away", hint="build again")
        self.client.put_manifest(name, tag, found.media_type, found.document)

    def _attach(self, delivery: Delivery, wholes: Mapping[Actor, ImageIndex], stands: Mapping[Actor, Stand]) -> int:
        """Records and signatures, while the images travel; bytes uploaded."""
        from flops.records.attach import RecordedIndex, attach_all  # noqa: PLC0415 - a check needs none

        if delivery.attachments is None:
            return 0
        places = []
        for actor, whole in wholes.items():
            images = {image.platform: image.digest for image in whole.images}
            before = stands[actor].before
            place = RecordedIndex(
                repository=self._registry.repository(delivery.repository, actor.value),
                index=whole.descriptor,
                images=images,
                before=before.digest if before else None,
                others=tuple(platform for platform in (before.manifests if before else ()) if platform not in images),
            )
            places.append(place)
        return attach_all(self.client, delivery.attachments, places)

    def shared(self, reporter: Reporter) -> SharedCache:
        from flops.store.shared import REPOSITORY, SharedCache  # noqa: PLC0415 - a check needs none

        name = self._registry.repository(*REPOSITORY)
        self._mounts = (name,)
        return SharedCache(self.client, name, reporter)

    def next_steps(self, references: Sequence[str]) -> list[str]:
        insecure = " --tls-verify=false" if self._registry.plain_http else ""
        return ["", "Pull them where they are needed:", *(f"  podman pull{insecure} {name}" for name in references)]


def _size(whole: ImageIndex) -> int:
    """Bytes of all blobs of an index, each once."""
    configs = {image.config_digest: len(image.config) for image in whole.images}
    return sum(layer.size for layer in whole.layers) + sum(configs.values())


def _onward(on_bytes: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """Counts one actor's bytes on from those of the actors before it."""
    return lambda done, _total: on_bytes(before + done, total)
