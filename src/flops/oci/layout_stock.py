"""An image layout looked through as a registry is: names are REPOSITORY:TAG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops.oci.manifests import Manifest
from flops.oci.reference import Registry, is_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flops.oci.descriptor import Descriptor
    from flops.oci.layout import Layout

_PIECE = 1024 * 1024


class LayoutStock:
    """Reads a layout, and takes names away; what is not there is None or empty, as with a registry."""

    #: A layout has no host and no prefix.
    registry = Registry(host="localhost")

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def catalog(self) -> tuple[str, ...]:
        return tuple(sorted({name.rpartition(":")[0] for name in self._layout.references()}))

    def tags(self, repository: str) -> tuple[str, ...]:
        names = (name.rpartition(":") for name in self._layout.references())
        return tuple(sorted(tag for name, _, tag in names if name == repository))

    def get_manifest(self, repository: str, reference: str) -> Manifest | None:
        entry = None if is_digest(reference) else self._layout.read(f"{repository}:{reference}")
        digest = entry.digest if entry is not None else reference
        if not is_digest(digest):
            return None
        try:
            document = self._layout.blobs.read(digest)
        except FileNotFoundError:
            return None
        return Manifest(media_type=entry.media_type if entry else "", document=document, digest=digest)

    def referrers(self, _repository: str, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        found = self._layout.referrers(digest)
        return tuple(entry for entry in found if artifact_type in {None, entry.artifact_type})

    def fetch_blob(self, _repository: str, digest: str, write: Callable[[Iterator[bytes]], None]) -> None:
        with self._layout.blobs.open(digest) as file:
            write(iter(lambda: file.read(_PIECE), b""))

    def delete_manifest(self, repository: str, digest: str) -> bool:
        """An image's names with its records; the rest of it has no name of its own, and goes when the layout is collected."""
        return self._layout.unname(repository, digest)
