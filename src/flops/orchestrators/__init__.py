"""What runs a builder somewhere: this machine, Oakestra. A protocol of four verbs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class BuilderPhase(Enum):
    """How a deployed builder stands, in words that every orchestrator's own are translated to."""

    WAITING = "waiting"
    """Taken, not running yet: being scheduled, or its image being pulled."""
    RUNNING = "running"
    ENDED = "ended"
    """It ended, with whatever code; or it failed to start."""
    GONE = "gone"
    """Nothing of it is there."""


@dataclass(frozen=True, kw_only=True)
class Status:
    phase: BuilderPhase
    exit_code: int | None = None
    """128 + signal where a signal ended it; None where the orchestrator can't tell."""
    memory_kills: int | None = None
    """How many processes the kernel killed for lack of memory where the builder ran, while it ran; None where nobody can tell."""
    reason: str = ""
    """The orchestrator's own words; shown to people, never interpreted by the manager."""
    evicted: bool = False
    """It was ended for the orchestrator's own reasons and deserves a second attempt."""
    failed: bool = False
    """It never ran: no capacity, no image. A second attempt would end the same way."""
    no_capacity: bool = False
    """With `failed`: there was no place for it (NO_CAPACITY)."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One attempt to be run. `job` names it everywhere: `[a-z0-9]{1,30}`, unique, and begins with the manager's own prefix."""

    job: str
    project: str
    url: str
    """The attempt's URL, as a builder reaches it."""
    token: str = field(repr=False)
    memory: int | None = None
    """Megabytes."""


#: What an orchestrator needs to find a builder again; JSON, without secrets, kept in the store.
Handle = dict[str, str | int | float | None]


class Orchestrator(Protocol):
    """Called from one thread at a time per job. OrchestratorError and its kinds; OrchestratorUnreachable means: ask again later."""

    name: str

    def prepare(self) -> None:
        """See that it can be used at all (address, login, image), once at start; BadSetting, OrchestratorError."""

    def deploy(self, deployment: Deployment, remember: Handle | None = None) -> Handle:
        """Start a builder, or find the one that an earlier call for the same job has started: never a second one.

        `remember` is what an earlier, interrupted call is known to have reached. DeployFailed, NoCapacity.
        """

    def status(self, job: str, handle: Handle) -> Status: ...

    def remove(self, job: str, handle: Handle | None) -> bool:
        """End a builder and take away all of it, as often as asked; True once nothing of it is left."""

    def logs(self, job: str, handle: Handle | None) -> str:
        """The last of what it printed, as far as it is kept; empty where there is nothing. Asked at any time."""

    def orphans(self, prefix: str, known: Collection[str]) -> Mapping[str, Handle]:
        """Builders whose job begins with `prefix` and that the manager does not know (any more)."""
