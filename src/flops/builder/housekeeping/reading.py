"""Records as they are read back from where an image lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops.builder.records import KINDS, PLATFORMS, TITLE, Part
from flops.errors import BadImage, RegistryDigest, UnknownPlatform
from flops.oci.artifacts import parse_artifact
from flops.oci.blobs import sha256
from flops.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flops.builder.housekeeping.stocktaking import Stock
    from flops.oci.descriptor import Descriptor

#: Bytes of one document.
MOST = 64 * 1024 * 1024


def listed(stock: Stock, repository: str, index: str) -> dict[str, tuple[Descriptor, ...]]:
    """The documents of an index's records by the type of their artifact; of several of a type all, each once."""
    found: dict[str, dict[str, Descriptor]] = {}
    for referrer in stock.referrers(repository, index):
        if referrer.artifact_type not in KINDS:
            continue
        manifest = stock.get_manifest(repository, referrer.digest)
        for blob in parse_artifact(manifest.document).blobs if manifest is not None else ():
            found.setdefault(referrer.artifact_type, {})[blob.digest] = blob
    return {kind: tuple(found[kind].values()) for kind in KINDS if kind in found}


def read(stock: Stock, repository: str, blob: Descriptor) -> Part:
    """One document, checked; BadImage, RegistryDigest."""
    if blob.size > MOST:
        raise BadImage(f"the record {blob.digest} has {blob.size} bytes, and {MOST} are read at most")
    pieces: list[bytes] = []

    def write(parts: Iterator[bytes]) -> None:
        pieces.clear()
        for part in parts:
            pieces.append(part)
            if sum(map(len, pieces)) > blob.size:
                raise RegistryDigest(f"{blob.digest} is longer than its manifest says")

    stock.fetch_blob(repository, blob.digest, write)
    data = b"".join(pieces)
    if sha256(data) != blob.digest:
        raise RegistryDigest(f"{blob.digest} is not what its manifest says")
    return Part(
        title=blob.annotations.get(TITLE, blob.digest),
        media_type=blob.media_type,
        data=data,
        platforms=tuple(platforms(blob)),
    )


def platforms(blob: Descriptor) -> Iterator[Platform]:
    """Those that a document speaks of, as its annotation says."""
    for name in filter(None, blob.annotations.get(PLATFORMS, "").split(",")):
        try:
            yield Platform.parse(name)
        except UnknownPlatform:
            continue
