"""A pruning carried out in a registry that allows deletes, or in a layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops.oci.blobs import sha256
from flops.progress import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flops.builder.housekeeping.inventory import Shared
    from flops.builder.housekeeping.retention import Pruning, Removal
    from flops.builder.housekeeping.stocktaking import Stock
    from flops.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What was deleted."""

    indexes: int = 0
    manifests: int = 0
    """Platforms' images, records, signatures."""
    shared: int = 0


def foretell(stock: Stock, pruning: Pruning) -> None:
    """Raise what `remove` would at its first deletion: a manifest that is nowhere is asked to be deleted."""
    going = [one.repository for one in pruning.removals] + [one.repository for one in pruning.shared]
    if going:
        stock.delete_manifest(going[0], sha256(b"a manifest that nobody has"))


def remove(stock: Stock, pruning: Pruning, reporter: Reporter) -> Removed:
    """Delete what a plan names; DeletesUnsupported (with the first one, so nothing is gone) and other RegistryErrors.

    A repository whose names were moved since the plan was made is left alone, with a warning.
    """
    indexes = manifests = 0
    for removal in pruning.removals:
        if _moved(stock, removal):
            reporter.warning(
                Stage.REMOVE, f"{removal.repository} was pushed to meanwhile, and is left alone", hint="prune again"
            )
            continue
        indexes += _delete(stock, removal.repository, removal.indexes)
        manifests += _delete(stock, removal.repository, [*removal.referrers, *removal.manifests])
    return Removed(indexes=indexes, manifests=manifests, shared=_delete_shared(stock, pruning.shared))


def _moved(stock: Stock, removal: Removal) -> bool:
    for tag, digest in removal.tags.items():
        found = stock.get_manifest(removal.repository, tag)
        if found is not None and found.digest != digest:
            return True
    return False


def _delete(stock: Stock, repository: str, digests: Iterable[str]) -> int:
    return sum(stock.delete_manifest(repository, digest) for digest in digests)


def _delete_shared(stock: Stock, shared: Iterable[Shared]) -> int:
    return sum(stock.delete_manifest(one.repository, one.digest) for one in shared)
