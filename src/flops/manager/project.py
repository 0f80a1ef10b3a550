"""A project and its state machine: one request, at most two attempts, one outcome. Pure: values in, values out.

The state goes from accepted to building and then to images_ready, failed or cancelled; straight from accepted to one of
these where no builder was needed. The builder goes none, queued, deploying, running, removing, removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

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
    def key(self) -> tuple[str, str, str | None, str]:
        """Projects with the same key need the same images: one builder at a time works for them."""
        return self.repository, self.subdir, self.commit, self.recipe

    @property
    def wants_a_word_last(self) -> bool:
        """Ended, and something of its builder may still exist."""
        return self.state.ended and self.builder.deployed

    def to_json(self) -> dict[str, Any]:
        """As the API shows it (ARCHITECTURE.md, "HTTP")."""
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
    token_hash: str = field(repr=False)
    """SHA-256 of its token; the token itself is kept nowhere but in the builder."""
    handle: Mapping[str, Any] | None = None
    created: float
    closed: bool = False
    """Its token is void: every request of its builder is answered 410."""


def timestamp(seconds: float | None) -> str | None:
    """RFC 3339 in UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
