"""What a command or a project asks of the builder, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from flops.builder.source import Source
    from flops.platforms import Platform
    from flops.recipe import Recipe


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
    sign: Path | None = None
    """A private key for signatures; None: the settings' one."""
