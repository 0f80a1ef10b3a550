"""The bills of materials of a build, kept on disk by what they name: the same materials have the same bill."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from typing import TYPE_CHECKING

import flops
from flops.builder.records import SBOM, Part, Record
from flops.builder.records.locks import stem
from flops.oci.blobs import sha256
from flops.oci.descriptor import canonical

if TYPE_CHECKING:
    from pathlib import Path

    from flops.builder.records import Materials
    from flops.platforms import Platform

#: Raised when the same materials would have another bill.
FORMAT = 1
_DIGEST = 71
"""Characters of a digest, `sha256:` and 64 digits, which a kept bill begins with."""


class Bills:
    """A directory of bills; what can't be read is written anew, what can't be kept costs only the next build's time."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def record(self, materials: Materials) -> Record:
        """One document for each platform."""
        return Record(
            artifact_type=SBOM,
            parts=tuple(
                Part(
                    title=f"sbom-{stem(platform)}.cdx.json",
                    media_type=SBOM,
                    data=self._bill(materials, platform),
                    platforms=(platform,),
                )
                for platform in materials.platforms
            ),
        )

    def _bill(self, materials: Materials, platform: Platform) -> bytes:
        path = self._root / f"{key(materials, platform)}.json"
        with contextlib.suppress(OSError):
            kept = path.read_bytes()
            if sha256(kept[_DIGEST:]).encode() == kept[:_DIGEST]:
                os.utime(path)
                return kept[_DIGEST:]
        from flops.builder.records.sbom import sbom  # noqa: PLC0415 - its library is slow to import

        made = sbom(materials, platform)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        with contextlib.suppress(OSError):
            self._root.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(sha256(made).encode() + made)
            temporary.replace(path)
        return made


def key(materials: Materials, platform: Platform) -> str:
    """64 hexadecimal digits over all that a bill names."""
    base, locks = materials.bases[platform], materials.environments(platform)
    wheels = {wheel.sha256 for lock in locks.values() for wheel in lock.wheels}
    named = {
        "format": [FORMAT, flops.__version__],
        "base": [base.lock, base.ml_interpreter, [package.to_json() for package in base.packages]],
        "image": materials.recipe.base,
        "licences": sorted(item for item in materials.licences.items() if item[0] in wheels),
        "locks": {name: lock.digest for name, lock in locks.items()},
        "python": [materials.python.suite, materials.python.version],
    }
    return hashlib.sha256(canonical(named)).hexdigest()
