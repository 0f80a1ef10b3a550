"""Which images go, and what goes with them. Pure: an inventory in, digests to delete out.

What stays is whole: nothing is deleted that anything which stays can reach in its repository. Blobs are never deleted here;
a registry's own collector takes those that no manifest names any more.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flops.prune.inventory import Inventory, Shared, StoredIndex

    #: Path, commit and recipe: what one build made, for both actors.
    Build = tuple[str, str, str]

#: Days that locks and package sets are reused for; younger ones are left alone whatever is asked.
LOCK_DAYS = 7.0
_NEVER = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is kept: the newest builds of each repository, and whatever is young."""

    keep: int
    """Builds of each path, the newest first."""
    days: float
    """Younger builds stay, however many there are."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One repository's manifests that go, in the order in which they may be deleted."""

    repository: str
    tags: Mapping[str, str]
    """Names that go with the indexes; what they stand for is looked at again before anything is deleted."""
    indexes: tuple[str, ...]
    """First: no index shall stand while its parts go."""
    manifests: tuple[str, ...]
    """Platforms' images, signatures, lists of referrers."""
    referrers: Mapping[str, str]
    """Records: the digest of each, and of what it refers to."""

    @property
    def digests(self) -> frozenset[str]:
        return frozenset({*self.indexes, *self.manifests, *self.referrers})


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What a rule means for an inventory."""

    removals: tuple[Removal, ...]
    builds: tuple[tuple[str, str, str], ...]
    """Path, commit and recipe of those that go."""
    shared: tuple[Shared, ...]
    freed: int
    """Bytes that nothing names any more afterwards, as far as sizes are known."""


def plan(inventory: Inventory, rule: Rule, now: datetime) -> Pruning:
    """See Rule; with a build go its platforms, records and signatures."""
    builds: dict[Build, list[StoredIndex]] = defaultdict(list)
    for index in inventory.indexes:
        builds[index.path, index.commit, index.recipe].append(index)
    held = _held_by_others(inventory)
    going = {
        build
        for build in _surplus(builds, rule, now)
        if all(set(one.tags) <= one.own_tags and (one.repository, one.digest) not in held for one in builds[build])
    }
    gone = [one for build in sorted(going) for one in builds[build]]
    kept = [one for build, indexes in builds.items() if build not in going for one in indexes]
    shared = tuple(_unused(inventory.shared, kept, rule, now))
    return Pruning(
        removals=tuple(_removals(gone, kept, held)),
        builds=tuple(sorted(going)),
        shared=shared,
        freed=_freed(inventory, gone, kept, shared),
    )


def _surplus(builds: Mapping[Build, Sequence[StoredIndex]], rule: Rule, now: datetime) -> Iterator[Build]:
    """Builds beyond the newest, unless they are young; one whose time is unknown is the oldest, and stays."""
    paths: dict[str, list[tuple[datetime, Build]]] = defaultdict(list)
    for build, indexes in builds.items():
        times = [one.when for one in indexes]
        known = [time for time in times if time is not None]
        paths[build[0]].append((max(known) if len(known) == len(times) else _NEVER, build))
    limit = _ago(now, rule.days)
    for dated in paths.values():
        for time, build in sorted(dated, reverse=True)[rule.keep :]:
            if _NEVER < time < limit:
                yield build


def _ago(now: datetime, days: float) -> datetime:
    """So many days before; at the beginning of all time where they are more than there were."""
    return now - timedelta(days=days) if days < (now - _NEVER).days else _NEVER


def _held_by_others(inventory: Inventory) -> frozenset[tuple[str, str]]:
    """What manifests of others name or are, by repository."""
    return frozenset((one.repository, digest) for one in inventory.foreign for digest in (one.digest, *one.names))


def _removals(
    gone: Sequence[StoredIndex], kept: Sequence[StoredIndex], held: frozenset[tuple[str, str]]
) -> Iterator[Removal]:
    for repository in sorted({one.repository for one in gone}):
        going = [one for one in gone if one.repository == repository]
        staying = [one for one in kept if one.repository == repository]
        needed = {digest for name, digest in held if name == repository}
        for one in staying:
            needed |= {one.digest, *(image.digest for image in one.images), *(it.digest for it in one.referrers)}
            needed |= set(one.companions.values())
        parts = [image.digest for one in going for image in one.images]
        parts += [digest for one in going for digest in one.companions.values()]
        manifests = [digest for digest in dict.fromkeys(parts) if digest not in needed]
        referrers = {it.digest: one.digest for one in going for it in one.referrers if it.digest not in needed}
        yield Removal(
            repository=repository,
            tags={tag: one.digest for one in going for tag in one.tags},
            indexes=tuple(one.digest for one in going),
            manifests=tuple(digest for digest in manifests if digest not in referrers),
            referrers=referrers,
        )


def _unused(shared: Sequence[Shared], kept: Iterable[StoredIndex], rule: Rule, now: datetime) -> Iterator[Shared]:
    """Records of layers that no image which stays has, and locks that nobody takes any more; only old ones."""
    used = {layer.digest for one in kept for image in one.images for layer in image.layers}
    tags: dict[str, list[str]] = defaultdict(list)
    for one in shared:
        tags[one.digest].append(one.tag)
    for one in shared:
        if len(tags[one.digest]) > 1:
            continue  # no builder makes two names for one document
        days = rule.days if one.layers else max(rule.days, LOCK_DAYS)
        if one.created is None or one.created >= _ago(now, days):
            continue
        if not any(layer.digest in used for layer in one.layers):
            yield one


def _freed(
    inventory: Inventory, gone: Iterable[StoredIndex], kept: Iterable[StoredIndex], shared: Sequence[Shared]
) -> int:
    going = dict(blob for one in gone for blob in one.blobs)
    going |= {layer.digest: layer.size for one in shared for layer in one.layers}
    left = {digest for one in kept for digest, _ in one.blobs}
    left |= {digest for one in inventory.foreign for digest in (one.digest, *one.names)}
    removed = {one.tag for one in shared}
    left |= {layer.digest for one in inventory.shared if one.tag not in removed for layer in one.layers}
    return sum(size for digest, size in going.items() if digest not in left)
