"""Which images are pruned, and what is deleted with them. Pure: an inventory in, digests to delete out.

Kept images stay whole: nothing is deleted that a kept manifest of its repository can reach. Blobs are not deleted here; the
registry's garbage collection removes those that no manifest names any more.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flops.prune.inventory import Inventory, StoredDocument, StoredIndex

    #: Path, commit and recipe, which identify the images of one build for both actors.
    Build = tuple[str, str, str]

#: Days for which locks and package sets are reused; younger ones are always kept.
LOCK_DAYS = 7.0
_NEVER = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class RetentionRule:
    """What is kept: the newest builds of each image path, and all young ones."""

    keep: int
    """Number of builds of each path."""
    days: float
    """Builds younger than this are kept too."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """The manifests of one repository to delete, in this order."""

    repository: str
    tags: Mapping[str, str]
    """Tags of the indexes, with their digests; they are compared again before anything is deleted."""
    indexes: tuple[str, ...]
    """Deleted first, so that no index is left without its parts."""
    manifests: tuple[str, ...]
    """Platforms' images, signatures, lists of referrers."""
    referrers: Mapping[str, str]
    """Records: the digest of each, and of its subject."""

    @property
    def digests(self) -> frozenset[str]:
        return frozenset({*self.indexes, *self.manifests, *self.referrers})


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What to delete from an inventory."""

    removals: tuple[Removal, ...]
    builds: tuple[tuple[str, str, str], ...]
    """Path, commit and recipe of the pruned builds."""
    shared: tuple[StoredDocument, ...]
    freed: int
    """Bytes of blobs that no manifest names afterwards, as far as sizes are known."""


def plan(inventory: Inventory, rule: RetentionRule, now: datetime) -> Pruning:
    """What a rule deletes: whole builds, with their platforms, records and signatures."""
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


def _surplus(builds: Mapping[Build, Sequence[StoredIndex]], rule: RetentionRule, now: datetime) -> Iterator[Build]:
    """Builds beyond the newest, unless they are young. One whose time is unknown counts as the oldest, and is kept."""
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
    """So many days before `now`, but not before the first representable time."""
    return now - timedelta(days=days) if days < (now - _NEVER).days else _NEVER


def _held_by_others(inventory: Inventory) -> frozenset[tuple[str, str]]:
    """Repository and digest of foreign manifests, and of all that they name."""
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


def _unused(
    shared: Sequence[StoredDocument], kept: Iterable[StoredIndex], rule: RetentionRule, now: datetime
) -> Iterator[StoredDocument]:
    """Old shared documents: records of layers that no kept image has, and locks that have expired."""
    used = {layer.digest for one in kept for image in one.images for layer in image.layers}
    tags: dict[str, list[str]] = defaultdict(list)
    for one in shared:
        tags[one.digest].append(one.tag)
    for one in shared:
        if len(tags[one.digest]) > 1:
            continue  # no builder tags one document twice
        days = rule.days if one.layers else max(rule.days, LOCK_DAYS)
        if one.created is None or one.created >= _ago(now, days):
            continue
        if not any(layer.digest in used for layer in one.layers):
            yield one


def _freed(
    inventory: Inventory, gone: Iterable[StoredIndex], kept: Iterable[StoredIndex], shared: Sequence[StoredDocument]
) -> int:
    going = dict(blob for one in gone for blob in one.blobs)
    going |= {layer.digest: layer.size for one in shared for layer in one.layers}
    left = {digest for one in kept for digest, _ in one.blobs}
    left |= {digest for one in inventory.foreign for digest in (one.digest, *one.names)}
    removed = {one.tag for one in shared}
    left |= {layer.digest for one in inventory.shared if one.tag not in removed for layer in one.layers}
    return sum(size for digest, size in going.items() if digest not in left)
