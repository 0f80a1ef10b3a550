"""What the manager asks of git hosts and registries: `flops.builder.lookup` answers, and tests by a script of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.builder.lookup import Place
    from flops.platforms import Platform
    from flops.recipe import Recipe


class Sources(Protocol):
    def judge(self, text: str, *, ref: str | None = None, subdir: str = "") -> Place:
        """No network. BadUrl, BlockedAddress, CredentialInUrl, BadRef."""

    def commit(self, place: Place, ref: str | None, credential: Mapping[str, str] | None = None) -> str | None:
        """The full hash; None for a directory. SourceError and its kinds."""


class Images(Protocol):
    def standing(
        self,
        place: Place,
        commit: str,
        recipe: Recipe,
        platforms: tuple[Platform, ...],
        credential: Mapping[str, str] | None = None,
    ) -> dict[str, Any] | None:
        """The result that a build would tell, where all its images are there. RegistryError and its kinds."""

    def move_commit(
        self,
        place: Place,
        commit: str,
        recipe: Recipe,
        platforms: tuple[Platform, ...],
        credential: Mapping[str, str] | None = None,
        *,
        force: bool = False,
    ) -> bool:
        """Move COMMIT to images that stand, where their builder was ended before it did. RegistryError and its kinds."""
