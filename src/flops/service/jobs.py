"""Attempts as their builders see them: names, tokens, and the job document that tells a builder what to do."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from flops.orchestrators import Deployment
from flops.service.project import Attempt
from flops_wire.manager import attempt_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.recipe import Recipe
    from flops.service.manager_settings import ManagerSettings
    from flops.service.project import Project


def new_attempt(project: Project, prefix: str, now: float) -> Attempt:
    """The attempt that a project's number stands for; it has no token yet."""
    name = f"{prefix}{project.id[:12]}{project.attempt}"
    return Attempt(project=project.id, number=project.attempt, job=name, created=now)


def with_token(attempt: Attempt) -> tuple[Attempt, str]:
    """A further token that its builder may show."""
    token = secrets.token_urlsafe(32)
    return replace(attempt, tokens=(*attempt.tokens, _digest(token))), token


def opens(attempt: Attempt, token: str) -> bool:
    """Whether this token is one of the attempt's; in a time that tells nothing."""
    shown = _digest(token)
    return sum(hmac.compare_digest(shown, known) for known in attempt.tokens) > 0  # every one is compared


def deployment(attempt: Attempt, token: str, settings: ManagerSettings) -> Deployment:
    return Deployment(
        job=attempt.job,
        project=attempt.project,
        url=settings.advertise + attempt_path(attempt.project, attempt.number),
        token=token,
        memory=settings.builder_memory,
    )


def job_document(
    project: Project, attempt: int, recipe: Recipe, settings: ManagerSettings, *, now: float
) -> dict[str, Any]:
    """What a builder is asked for; with credentials, so it is made when it is fetched and kept nowhere."""
    left = settings.project_seconds - (now - (project.started or now))
    return {
        "project": project.id,
        "attempt": attempt,
        "source": project.repository,
        "ref": project.commit or project.ref,
        "subdir": project.subdir,
        "platforms": list(project.platforms),
        "recipe": _recipe(recipe),
        "recipe_digest": recipe.digest,
        "registry": settings.registry,
        "registry_pull": settings.registry_pull,
        "force": project.force,
        "verbose": project.verbose,
        "seconds": max(1.0, round(left, 3)),
        "allow_local": settings.allow_local,
        "allow_hosts": list(settings.allow_hosts),
        "credentials": {
            "git": git_login(project, settings),
            "registry": _list(registry_login(project, settings)),
            "base": _list(_named_login(project, settings)),
        },
    }


def git_login(project: Project, settings: ManagerSettings) -> dict[str, str] | None:
    """None too where the operator has taken the credential away since the project was accepted."""
    known = settings.credentials.git.by_name.get(project.sla.get("git_credential") or "")
    return known.to_json() if known else None


def registry_login(project: Project, settings: ManagerSettings) -> dict[str, str] | None:
    """What the project named, or else what everybody gets to push with."""
    return _named_login(project, settings) or settings.registry_login


def _named_login(project: Project, settings: ManagerSettings) -> dict[str, str] | None:
    """Base images are read with this alone: what a builder pushes with may read other projects' images."""
    known = settings.credentials.registry.by_name.get(project.sla.get("registry_credential") or "")
    return known.to_json() if known else None


def _list(login: dict[str, str] | None) -> list[dict[str, str]]:
    return [login] if login else []


def _recipe(recipe: Recipe) -> Mapping[str, Any]:
    fields = ("flavor", "python", "policy", "accelerator", "compression", "base", "subdir")
    values = {name: getattr(recipe, name) for name in fields}
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    return {**plain, "groups": list(recipe.groups)}


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
