"""What runs a builder somewhere: this machine, Oakestra. A protocol of four verbs.

Each module of this room with a function `start` is an orchestrator, and FLOPS_ORCHESTRATOR names it
(docs/how-to/orchestrator.md).
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from flops.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from flops.settings import Settings


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


@dataclass(frozen=True, kw_only=True)
class ManagerContext:
    """What an orchestrator is started with."""

    settings: Settings
    directory: Path
    """Of the manager; an orchestrator may keep files there."""
    url: str
    """The manager's address for builders, `http[s]://HOST[:PORT]`."""
    registry: str
    """Where builders push, `[http://]HOST[:PORT][/PREFIX]`."""
    mirrors: Callable[[], Mapping[str, str]]
    """The settings of this machine's Debian mirror, for builders that have none of their own."""


def start_orchestrator(name: str, manager: ManagerContext) -> AbstractContextManager[Orchestrator]:
    """The orchestrator of this name; BadSetting where there is none, or a setting of it is missing."""
    if name not in {module.name for module in pkgutil.iter_modules(__path__)}:
        raise _unknown(name)
    start = getattr(importlib.import_module(f"{__name__}.{name}"), "start", None)
    if start is None:
        raise _unknown(name)
    started: AbstractContextManager[Orchestrator] = start(manager)
    return started


def _unknown(name: str) -> BadSetting:
    return BadSetting(f"there is no orchestrator {name!r}", hint="FLOPS_ORCHESTRATOR is local or oakestra")
