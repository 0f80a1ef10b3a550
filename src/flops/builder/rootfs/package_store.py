"""What the making of bases remembers: package sets for a week, .debs by their hash, layers by their key."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from flops.builder.rootfs import BasePackage
from flops.errors import BaseUnavailable
from flops.oci.layer import Layer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from flops.oci.blobs import BlobStore

#: How long a package set stands for its suite, in seconds: as long as a lock.
FRESH_SECONDS = 7 * 24 * 3600


class PackageStore:
    """Files under `root`. Safe between processes: each is written beside and moved into place."""

    def __init__(self, root: Path, blobs: BlobStore) -> None:
        self._root = root
        self._blobs = blobs

    def packages(self, key: str, *, any_age: bool = False) -> tuple[BasePackage, ...] | None:
        """The package set under this key, unless it is older than a week or can't be read."""
        path = self._root / "sets" / f"{key}.json"
        try:
            if not any_age and not 0 <= time.time() - path.stat().st_mtime < FRESH_SECONDS:
                return None
            return tuple(BasePackage.from_json(item) for item in json.loads(path.read_text())["packages"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_packages(self, key: str, packages: Iterable[BasePackage]) -> None:
        self._write("sets", key, {"packages": [package.to_json() for package in packages]})

    def layer(self, key: str) -> Layer | None:
        """The layer under this key, where its blob is still there."""
        try:
            layer = Layer.from_json(json.loads((self._root / "layers" / f"{key}.json").read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return layer if self._blobs.size(layer.digest) == layer.size else None

    def keep_layer(self, key: str, layer: Layer) -> None:
        self._write("layers", key, layer.to_json())

    def deb(self, package: BasePackage) -> Path:
        return self._root / "debs" / f"{package.sha256}.deb"

    def missing(self, packages: Iterable[BasePackage]) -> list[BasePackage]:
        """Those whose .deb is not here."""
        return [package for package in packages if not self._whole(package)]

    def take_debs(self, packages: Iterable[BasePackage], directory: Path) -> None:
        """Move freshly fetched .debs in; BaseUnavailable where one is missing or not what the signed index says."""
        fetched = {digest(path): path for path in directory.glob("*.deb")}
        for package in packages:
            source = fetched.get(package.sha256)
            if source is None:
                raise BaseUnavailable(
                    f"apt did not fetch {package.name} {package.version} as its index describes it",
                    hint="try again with --upgrade",
                )
            self.deb(package).parent.mkdir(parents=True, exist_ok=True)
            source.replace(self.deb(package))

    def _whole(self, package: BasePackage) -> bool:
        try:
            return self.deb(package).stat().st_size == package.size
        except FileNotFoundError:
            return False

    def _write(self, kind: str, key: str, document: dict[str, Any]) -> None:
        target = self._root / kind / f"{key}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{secrets.token_hex(8)}.partial")
        partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        partial.replace(target)


def key(**parts: Any) -> str:
    """64 hexadecimal digits for what something was made of."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
