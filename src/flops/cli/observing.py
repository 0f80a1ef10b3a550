"""The manager's projects as the observer's pages want them: the two rooms know nothing of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flops.errors import ProjectNotFound
from flops.manager.project import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.manager.service import Manager


class ManagerProjects:
    """See `flops.observer.shelf.Projects`."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def page(self, *, limit: int, offset: int, state: str | None, text: str) -> tuple[list[Mapping[str, Any]], int]:
        page = self._manager.projects(limit=limit, offset=offset, state=State(state) if state else None, text=text)
        return [project.to_json() for project in page.projects], page.total

    def show(self, project: str) -> Mapping[str, Any]:
        return self._manager.project(project).to_json()

    def events(self, project: str, *, after: int, limit: int) -> list[dict[str, Any]]:
        return self._manager.events(project, after=after, limit=limit)

    def cancel(self, project: str) -> Mapping[str, Any]:
        return self._manager.cancel(project).to_json()

    def again(self, project: str) -> Mapping[str, Any]:
        found = self._manager.project(project)
        if not found.sla:
            raise ProjectNotFound(f"what project {project} asked for is not known any more")
        return self._manager.submit(dict(found.sla), force=True).project.to_json()
