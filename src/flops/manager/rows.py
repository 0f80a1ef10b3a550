"""Rows of the database and the values that they stand for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flops.manager.project import Attempt, BuilderState, Project, State

COLUMNS = (
    "id", "state", "builder", "repository", "ref", "subdir", "revision", "recipe", "platforms", "sla", "warnings",
    "forced", "result", "error", "created", "started", "ended", "leader", "attempt", "tagging",
)  # fmt: skip
#: Columns that change after a project was accepted.
CHANGING = (
    "state", "builder", "revision", "result", "error", "started", "ended", "leader", "attempt", "tagging", "shared_key",
)  # fmt: skip
ATTEMPT_COLUMNS = ("project", "number", "job", "tokens", "handle", "created", "closed", "logs", "move", "claim")


@dataclass(frozen=True, kw_only=True)
class OutboxRow:
    """A message for FLOps' broker that was not acknowledged yet."""

    number: int
    """In the order of what happened."""
    project: str
    topic: str
    payload: str
    retained: bool


def _dump(value: object) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"))


def project_row(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "state": project.state.value,
        "builder": project.builder.value,
        "repository": project.repository,
        "ref": project.ref,
        "subdir": project.subdir,
        "revision": project.commit,
        "recipe": project.recipe,
        "platforms": json.dumps(project.platforms),
        "sla": json.dumps(dict(project.sla), separators=(",", ":")),
        "warnings": json.dumps(project.warnings),
        "forced": project.force,
        "result": _dump(project.result),
        "error": _dump(project.error),
        "created": project.created,
        "started": project.started,
        "ended": project.ended,
        "leader": project.leader,
        "attempt": project.attempt,
        "tagging": project.tagging,
        "shared_key": project.key,
    }


def to_project(row: tuple[Any, ...]) -> Project:
    found = dict(zip(COLUMNS, row, strict=True))
    return Project(
        id=found["id"],
        state=State(found["state"]),
        builder=BuilderState(found["builder"]),
        repository=found["repository"],
        ref=found["ref"],
        subdir=found["subdir"],
        commit=found["revision"],
        recipe=found["recipe"],
        platforms=tuple(json.loads(found["platforms"])),
        sla=json.loads(found["sla"]),
        warnings=tuple(json.loads(found["warnings"])),
        force=bool(found["forced"]),
        result=json.loads(found["result"]) if found["result"] else None,
        error=json.loads(found["error"]) if found["error"] else None,
        created=found["created"],
        started=found["started"],
        ended=found["ended"],
        leader=found["leader"],
        attempt=found["attempt"],
        tagging=bool(found["tagging"]),
    )


def attempt_row(attempt: Attempt) -> dict[str, Any]:
    return {
        "project": attempt.project,
        "number": attempt.number,
        "job": attempt.job,
        "tokens": json.dumps(attempt.tokens),
        "handle": _dump(attempt.handle),
        "created": attempt.created,
        "closed": attempt.closed,
        "logs": attempt.logs,
        "move": _dump(attempt.move),
        "claim": _dump(attempt.claim),
    }


def to_attempt(row: tuple[Any, ...]) -> Attempt:
    found = dict(zip(ATTEMPT_COLUMNS, row, strict=True))
    return Attempt(
        project=found["project"],
        number=found["number"],
        job=found["job"],
        tokens=tuple(json.loads(found["tokens"])),
        handle=json.loads(found["handle"]) if found["handle"] else None,
        created=found["created"],
        closed=bool(found["closed"]),
        logs=found["logs"],
        move=json.loads(found["move"]) if found["move"] else None,
        claim=json.loads(found["claim"]) if found["claim"] else None,
    )
