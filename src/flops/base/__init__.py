"""Base file systems that actor images stand on: made from Debian packages, or an existing image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.base.bytecode import Interpreter
    from flops.oci.blobs import BlobStore
    from flops.oci.layer import Layer
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.recipe import Recipe
    from flops.repair.pythons import PythonChoice
    from flops.request import Request
    from flops.settings import Settings
    from flops.store.shared import SharedCache

#: The label of learners' and aggregators' images, none of which is a base.
ACTOR = "io.flops.actor"


@dataclass(frozen=True, kw_only=True, order=True)
class BasePackage:
    """One Debian package, exactly."""

    name: str
    version: str
    architecture: str
    """As the package has it; `all` where it fits every platform."""
    size: int
    """Of the .deb, in bytes."""
    sha256: str
    """Of the .deb, 64 hexadecimal digits, as the signed index has it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "architecture": self.architecture,
            "size": self.size,
            "sha256": self.sha256,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> BasePackage:
        return cls(**document)


@dataclass(frozen=True, kw_only=True)
class Base:
    """What an image of one platform starts from."""

    platform: Platform
    python: str
    """The full version, `3.11.2`."""
    glibc: tuple[int, int]
    interpreter: str
    """The real program in the image, not a link: `/usr/bin/python3.11`."""
    layers: tuple[Layer, ...]
    """Bottom to top, the standard library's bytecode last where it is a layer of ours."""
    lock: str
    """`sha256:` and 64 hexadecimal digits over what went in."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """From a base image's own configuration; empty for a base of ours."""
    packages: tuple[BasePackage, ...] = ()
    ml_interpreter: str = ""
    """The ML environment's, where it has its own: `/opt/flops/python/bin/python3.10`."""

    @property
    def minor(self) -> str:
        """`3.11`, as paths and tags write it."""
        return ".".join(self.python.split(".")[:2])


class BaseProvider(Protocol):
    """Makes or finds the base of each platform; BaseUnavailable or BaseUnsuitable where it can't (docs/how-to/base.md)."""

    def choice(self, platforms: Sequence[Platform]) -> PythonChoice:
        """The Python that this base offers; an image is pulled and looked at for it."""

    def prepare(self, platforms: Sequence[Platform]) -> Mapping[Platform, Base]: ...

    def interpreter(self) -> Interpreter | None:
        """The base's own Python, startable on this machine; None where it can't be, so that no bytecode is made."""

    def compiler(self) -> str | None:
        """Whose Python compiles bytecode (BytecodeLayer.origin): "" for one that is the same everywhere; None: no bytecode."""


@dataclass(frozen=True, kw_only=True)
class BaseContext:
    """What bases are made with."""

    settings: Settings
    blobs: BlobStore
    request: Request
    reporter: Reporter
    shared: SharedCache | None = None

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe
