"""What the making of bases remembers: package sets for a week, .debs by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from flops.base import BasePackage
from flops.errors import BaseUnavailable
from flops.oci.blobs import used
from flops.store.document_store import DocumentStore
from flops.store.shared import BASE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from flops.store.shared import SharedCache

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PackageStore:
    """Files under `root`. Safe between processes: each is written beside and moved into place."""

    def __init__(self, root: Path, *, shared: SharedCache | None = None) -> None:
        self._root = root
        self._sets = DocumentStore(root / "sets", kind=BASE, shared=shared)

    def packages(self, key: str, *, any_age: bool = False) -> tuple[BasePackage, ...] | None:
        """The package set under this key, unless it is older than a week or can't be read."""
        for document in (self._sets.local(key, any_age=any_age), self._sets.shared(key, any_age=any_age)):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return _packages(document)
        return None

    def keep_packages(self, key: str, packages: Iterable[BasePackage]) -> None:
        self._sets.put(key, {"packages": [package.to_json() for package in packages]})

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
        return used(self.deb(package)) == package.size


def _packages(document: Any) -> tuple[BasePackage, ...]:
    """ValueError, KeyError or TypeError where a package is none: names become apt's arguments, hashes become paths."""
    found = tuple(BasePackage.from_json(item) for item in document["packages"])
    for package in found:
        words = (package.name, package.version, package.architecture)
        if not all(_WORD.fullmatch(word) for word in words) or not _SHA256.fullmatch(package.sha256):
            raise ValueError("no package")
    return found


def key(**parts: Any) -> str:
    """64 hexadecimal digits for what something was made of."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
