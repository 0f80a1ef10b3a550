"""What a command or a project asks of the builder, read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from flops.oci.credentials import Credentials
    from flops.oci.reference import Registry
    from flops.platforms import Platform
    from flops.recipe import Recipe
    from flops.repository.git import GitCredential
    from flops.repository.source import Source


@dataclass(frozen=True, kw_only=True)
class Request:
    """One build or check; `recipe` is the part that images are named by."""

    source: Source
    platforms: tuple[Platform, ...]
    recipe: Recipe
    ref: str | None = None
    upgrade: bool = False
    """Lock and resolve the base anew, whatever was kept."""
    force: bool = False
    """Build although a matching image exists, and move a tag that holds another recipe."""
    verify: bool = True
    allow_hosts: tuple[str, ...] = ()
    """Names or addresses inside the operator's network that an untrusted source or base image may be at."""
    git_credential: GitCredential | None = field(default=None, repr=False)
    registry: Registry | None = None
    """The service's own, for an untrusted source: a base image from another one is judged, and asked for as nobody."""
    registry_credentials: Credentials | None = field(default=None, repr=False)
    """For base images; None: those of the user who called, where the source is trusted."""
    sign: Path | None = None
    """A private key for signatures; None: the settings' one."""
