"""A project and its state machine: one request, at most two attempts, one outcome. Pure: values in, values out.

The state goes from accepted to building and then to images_ready, failed or cancelled; straight from accepted to one of
these where no builder was needed. The builder goes none, queued, deploying, running, removing, removed.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from flops.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(Enum):
    ACCEPTED = "accepted"
    BUILDING = "building"
    IMAGES_READY = "images_ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (State.IMAGES_READY, State.FAILED, State.CANCELLED)


class BuilderState(Enum):
    NONE = "none"
    QUEUED = "queued"
    DEPLOYING = "deploying"
    RUNNING = "running"
    REMOVING = "removing"
    REMOVED = "removed"

    @property
    def deployed(self) -> bool:
        """Something of it may exist at the orchestrator."""
        return self in (BuilderState.DEPLOYING, BuilderState.RUNNING, BuilderState.REMOVING)


#: Which states may follow which; everything else is a bug of ours.
STATE_MOVES: Mapping[State, frozenset[State]] = {
    State.ACCEPTED: frozenset({State.BUILDING, State.IMAGES_READY, State.FAILED, State.CANCELLED}),
    State.BUILDING: frozenset({State.IMAGES_READY, State.FAILED, State.CANCELLED}),
    State.IMAGES_READY: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
BUILDER_MOVES: Mapping[BuilderState, frozenset[BuilderState]] = {
    BuilderState.NONE: frozenset({BuilderState.QUEUED}),
    BuilderState.QUEUED: frozenset({BuilderState.DEPLOYING, BuilderState.NONE}),
    BuilderState.DEPLOYING: frozenset({BuilderState.RUNNING, BuilderState.REMOVING}),
    BuilderState.RUNNING: frozenset({BuilderState.REMOVING}),
    # a second attempt, or a waiting project's own builder, is queued once the first one is gone
    BuilderState.REMOVING: frozenset({BuilderState.REMOVED, BuilderState.QUEUED}),
    BuilderState.REMOVED: frozenset(),
}


@dataclass(frozen=True, kw_only=True)
class Project:
    """One request and its one outcome, as the store keeps it."""

    id: str
    """24 hexadecimal digits."""
    state: State = State.ACCEPTED
    builder: BuilderState = BuilderState.NONE
    repository: str
    """The URL (or directory) as it was requested."""
    ref: str | None = None
    subdir: str = ""
    commit: str | None = None
    """None until it was resolved, once."""
    recipe: str
    """Digest of all that was requested beside the commit (`flops.recipe`)."""
    platforms: tuple[str, ...]
    sla: Mapping[str, Any]
    """As it was accepted, with defaults filled in."""
    warnings: tuple[str, ...] = ()
    force: bool = False
    result: Mapping[str, Any] | None = None
    """What `flops build --json` prints, in success."""
    error: Mapping[str, Any] | None = None
    """`{code, message, hint, findings}`, in failure."""
    created: float
    """Seconds since the epoch, as the next three."""
    started: float | None = None
    """When its first builder was deployed: the deadline counts from here."""
    ended: float | None = None
    leader: str | None = None
    """The project whose builder it waits for."""
    attempt: int = 0
    """The newest attempt's number; 0 before there is one."""
    tagging: bool = False
    """The newest attempt has its leave to move tags."""

    @property
    def images(self) -> Mapping[str, Any] | None:
        return self.result.get("images") if self.result else None

    @property
    def key(self) -> str | None:
        """A digest of repository, subdirectory, commit and recipe: one builder at a time works for projects with the same one.

        None before the commit is known. A directory's is known after its build, so all its builds of a recipe take turns.
        """
        if self.commit is None and not self.local:
            return None
        repository = posixpath.normpath(self.repository) if self.local else self.repository
        text = json.dumps([repository, self.subdir, None if self.local else self.commit, self.recipe])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def local(self) -> bool:
        """Its source is a directory of the builder's machine."""
        return "://" not in self.repository

    @property
    def verbose(self) -> bool:
        return bool(self.sla.get("verbose"))

    def shares(self, leader: Project) -> bool:
        """Whether the leader's outcome is its own too: without force, with the same credentials, and of enough platforms.

        A failure may be due to any of the leader's platforms, so only the very same ones share it. A directory's files may
        be others the next time.
        """
        wanted, had = set(self.platforms), set(leader.platforms)
        enough = wanted <= had if leader.state is State.IMAGES_READY else wanted == had
        same = all(self.sla.get(name) == leader.sla.get(name) for name in ("git_credential", "registry_credential"))
        return (
            not self.force and not self.local and same and enough and leader.state in (State.IMAGES_READY, State.FAILED)
        )

    def to_json(self) -> dict[str, Any]:
        """As the API shows it (docs/http.md, "HTTP")."""
        return {
            "id": self.id,
            "state": self.state.value,
            "builder": self.builder.value,
            "repository": self.repository,
            "subdir": self.subdir,
            "ref": self.ref,
            "commit": self.commit,
            "recipe": self.recipe,
            "platforms": list(self.platforms),
            "flavor": self.sla.get("ml_model_flavor"),
            "images": self.images,
            "result": self.result,
            "error": self.error,
            "warnings": list(self.warnings),
            "force": self.force,
            "attempt": self.attempt,
            "waits_for": self.leader,
            "created": timestamp(self.created),
            "started": timestamp(self.started),
            "ended": timestamp(self.ended),
        }


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of a builder."""

    project: str
    number: int
    """From 1."""
    job: str
    """Its name at the orchestrator and in every process' environment."""
    tokens: tuple[str, ...] = field(default=(), repr=False)
    """SHA-256 of each token that its builder may have. A token is kept nowhere but in the builder, so a manager that was
    killed while deploying makes another one, and either may be the one that arrived."""
    handle: Mapping[str, Any] | None = None
    created: float
    closed: bool = False
    """Its token is void: every request of its builder is answered 410."""
    logs: str | None = None
    """The last of what its builder printed, kept before it was removed."""
    move: Mapping[str, Any] | None = None
    """What it got leave to name, as it reported (`flops_wire.events`); None before that."""
    claim: Mapping[str, Any] | None = None
    """Its event of success, until the registry has been asked."""
    events: int = 0
    """That are stored, counted where they are stored; likewise their bytes."""
    bytes: int = 0


def move(project: Project, **changes: Any) -> Project:
    """The project with these changes; InternalError where a state would follow that can't."""
    after = replace(project, **changes)
    if after.state is not project.state and after.state not in STATE_MOVES[project.state]:
        raise InternalError(f"project {project.id} can't go from {project.state.value} to {after.state.value}")
    if after.builder is not project.builder and after.builder not in BUILDER_MOVES[project.builder]:
        raise InternalError(f"project {project.id}: {project.builder.value} can't become {after.builder.value}")
    return after


def waiting(project: Project, leader: str) -> Project:
    return move(project, leader=leader)


def queued(project: Project) -> Project:
    return move(project, builder=BuilderState.QUEUED, leader=None)


def deploying(project: Project, now: float) -> Project:
    """Its next attempt begins."""
    return move(
        project,
        state=State.BUILDING,
        builder=BuilderState.DEPLOYING,
        attempt=project.attempt + 1,
        started=project.started or now,
        tagging=False,
    )


def running(project: Project) -> Project:
    """A sign of life; nothing changes where it came before."""
    return move(project, builder=BuilderState.RUNNING) if project.builder is BuilderState.DEPLOYING else project


def retried(project: Project) -> Project:
    """The attempt is given up; once its builder is gone, the next one is queued."""
    return move(project, builder=BuilderState.REMOVING)


def ended(
    project: Project,
    state: State,
    now: float,
    *,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> Project:
    """The one outcome; what may exist of a builder is to be removed."""
    left = BuilderState.REMOVING if project.builder.deployed else BuilderState.NONE
    commit = project.commit or (str(result["commit"]) if result and result.get("commit") else None)
    return move(project, state=state, builder=left, ended=now, result=result, error=error, leader=None, commit=commit)


def removed(project: Project) -> Project:
    """Nothing is left of the builder."""
    return move(project, builder=BuilderState.REMOVED if project.state.ended else BuilderState.QUEUED)


def timestamp(seconds: float | None) -> str | None:
    """RFC 3339 in UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
