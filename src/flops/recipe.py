"""The recipe: a digest of everything that was requested beside the commit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import Enum

#: Raised whenever the same request would give other images.
RECIPE_VERSION = 1


class Flavor(Enum):
    """The ML framework that a repository is written for, as an SLA names it."""

    SKLEARN = "sklearn"
    PYTORCH = "pytorch"
    TENSORFLOW = "tensorflow"
    KERAS = "keras"


class Policy(Enum):
    """FIX repairs what can be repaired and reports it, STRICT repairs nothing."""

    FIX = "fix"
    STRICT = "strict"


class Accelerator(Enum):
    CPU = "cpu"
    CUDA = "cuda"


class Compression(Enum):
    """How layers are compressed: GZIP splices wheels as they lie, ZSTD recompresses."""

    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What was requested; None stands for "the builder decides" and is part of the digest as such."""

    flavor: Flavor | None = None
    """None: told by the repository's requirements."""
    python: str | None = None
    """`--python V`; None: as the repository's own files say."""
    policy: Policy = Policy.FIX
    accelerator: Accelerator = Accelerator.CPU
    compression: Compression = Compression.GZIP
    base: str | None = None
    """An image reference; None: made from Debian packages."""
    subdir: str = ""
    groups: tuple[str, ...] = ()
    """Of pyproject.toml, beside the project's own dependencies; sorted."""

    @property
    def digest(self) -> str:
        """`sha256:` and 64 hexadecimal digits, over canonical JSON; platforms are not part of it."""
        fields = {key: value.value if isinstance(value, Enum) else value for key, value in asdict(self).items()} | {
            "version": RECIPE_VERSION
        }
        if not self.groups:  # a request without groups is the same as before there were any
            del fields["groups"]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    @property
    def short(self) -> str:
        """The first 12 digits, as the second tag carries them."""
        return self.digest.removeprefix("sha256:")[:12]
