"""What the registry holds for a project: images that were there already, and what a lost builder made."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from flops.errors import FlopsError
from flops.platforms import Platform
from flops.service import jobs
from flops.service.decision import proves
from flops.service.sla import recipe_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.recipe import Recipe
    from flops.service.manager_settings import ManagerSettings
    from flops.service.project import Attempt, Project
    from flops.use_cases.lookup import ProjectSource


class Sources(Protocol):
    def judge(self, text: str, *, ref: str | None = None, subdir: str = "") -> ProjectSource:
        """No network. BadUrl, BlockedAddress, CredentialInUrl, BadRef."""

    def commit(self, place: ProjectSource, ref: str | None, credential: Mapping[str, str] | None = None) -> str | None:
        """The full hash; None for a directory. SourceError and its kinds."""


class Images(Protocol):
    def existing(
        self,
        place: ProjectSource,
        commit: str,
        recipe: Recipe,
        platforms: tuple[Platform, ...],
        credential: Mapping[str, str] | None = None,
    ) -> dict[str, Any] | None:
        """The result that a build would tell, where all its images are there. RegistryError and its kinds."""

    def move_commit(
        self,
        place: ProjectSource,
        commit: str,
        recipe: Recipe,
        platforms: tuple[Platform, ...],
        credential: Mapping[str, str] | None = None,
        *,
        force: bool = False,
    ) -> bool:
        """Move COMMIT to images that stand, where their builder was ended before it did. RegistryError and its kinds."""


_log = logging.getLogger("flops.service")


class StandingImages:
    """Asks with the project's own login. The one thing that it writes is COMMIT, to images that stand."""

    def __init__(self, images: Images, settings: ManagerSettings) -> None:
        self._images = images
        self._settings = settings

    def found(self, project: Project, place: ProjectSource) -> dict[str, Any] | None:
        """Images that a build would take. A registry that does not answer is no reason not to build: the builder will find out."""
        try:
            result = self._ask(project, place)
        except FlopsError as error:
            _log.warning("the registry was not asked: %s", error, extra=_about(project))
            return None
        if result is not None:
            self._move_commit(project, place, force=False)
        return result

    def proof(self, project: Project, place: ProjectSource, attempt: Attempt) -> dict[str, Any] | None:
        """What this attempt asked to tag, if all of it is there under both exact tags; RegistryError and its kinds.

        After a builder was lost, COMMIT may have to follow.
        """
        move = attempt.move
        if move is None:
            return None
        if project.commit is None:  # a directory's, which its builder reports
            suffix = f"-{recipe_of(project.sla).short}"
            commits = [tag.removesuffix(suffix) for tag in move["tags"] if tag.endswith(suffix)]
            project = replace(project, commit=commits[0] if commits else None)
        result = self._ask(project, place)
        if result is None:
            return None
        if not proves(result, move):
            _log.warning("the registry holds other images than the builder's", extra=_about(project))
            return None
        if attempt.claim is None:
            self._move_commit(project, place, force=project.force)
        return result

    def _ask(self, project: Project, place: ProjectSource) -> dict[str, Any] | None:
        if project.commit is None:
            return None
        return self._images.existing(place, project.commit, *self._wanted(project))

    def _move_commit(self, project: Project, place: ProjectSource, *, force: bool) -> None:
        """A builder that was killed may have moved the exact tags alone."""
        try:
            if self._images.move_commit(place, project.commit or "", *self._wanted(project), force=force):
                _log.info("COMMIT was moved to images that stand", extra=_about(project))
        except FlopsError as error:  # whoever finds them next tries again
            _log.warning("COMMIT can't be moved to images that stand: %s", error, extra=_about(project))

    def _wanted(self, project: Project) -> tuple[Any, ...]:
        platforms = Platform.parse_list(project.platforms)
        return recipe_of(project.sla), platforms, jobs.registry_login(project, self._settings)


def _about(project: Project) -> dict[str, Any]:
    return {"project": project.id, "attempt": project.attempt}
