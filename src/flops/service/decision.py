"""What a builder's standing means for its project. Pure: the judgement alone; `reconcile` acts on it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from flops.errors import BuilderLost, BuilderOom, DeadlineExceeded, DeployFailed, NoCapacity
from flops.orchestrators import BuilderPhase
from flops.service.project import BuilderState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.errors import FlopsError
    from flops.orchestrators import Status
    from flops.service.project import Project

ACTORS = ("learner", "aggregator")
#: A second one only for what is nobody's fault.
ATTEMPTS = 2
#: Seconds beyond its time that a project has which is moving its tags: it takes a moment, and is better not cut in two.
TAGGING_SECONDS = 60.0
_KILLED = 137


class Verdict(Enum):
    STAY = "stay"
    RUNNING = "running"
    RETRY = "retry"
    """Give this attempt up, and queue another one."""
    FAIL = "fail"
    PROVE = "prove"
    """The tags were moving: the registry knows whether both are there, and for its images. If not, fail."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    verdict: Verdict
    error: FlopsError | None = None
    """With FAIL and PROVE."""
    reason: str = ""
    """With RETRY."""


STAY = Decision(verdict=Verdict.STAY)


def decide(project: Project, status: Status | None, *, now: float, seconds: float, trouble: str = "") -> Decision:
    """What follows for a project that has not ended and whose builder was deployed.

    `status` is None where the orchestrator did not answer (`trouble` says how); `seconds` is a project's time.
    """
    over = is_over(project, now=now, seconds=seconds)
    if status is not None and status.phase in (BuilderPhase.ENDED, BuilderPhase.GONE):
        return _gone(project, status, over=over)
    if over:
        return _fail(project, _too_late(seconds, trouble))
    if status is not None and status.phase is BuilderPhase.RUNNING and project.builder is BuilderState.DEPLOYING:
        return Decision(verdict=Verdict.RUNNING)
    return STAY


def proves(result: Mapping[str, Any], move: Mapping[str, Any]) -> bool:
    """Whether images that stand are those that an attempt was moving tags for: an index may have gained other platforms since."""
    return _digests(result) == {actor: image["platforms"] for actor, image in move["images"].items()}


def contradiction(project: Project, move: Mapping[str, Any] | None, result: Mapping[str, Any]) -> str:
    """Why a builder's success can't be true by its own words; empty where the registry is to be asked."""
    if move is None:
        return "it did not ask for leave to move tags (TAGGING)"
    asked = {actor: set(image["platforms"]) for actor, image in move["images"].items()}
    if asked != {actor: set(project.platforms) for actor in ACTORS}:
        return "it asked for leave to move tags of other images than both actors' for the project's platforms"
    return "" if proves(result, move) else "its result has other images than those that it asked to name"


def _digests(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        actor: {platform: one.get("digest") for platform, one in image["platforms"].items()}
        for actor, image in result["images"].items()
    }


def is_over(project: Project, *, now: float, seconds: float) -> bool:
    """Whether its time is up."""
    limit = seconds + TAGGING_SECONDS if project.tagging else seconds
    return project.started is not None and now - project.started >= limit


def _gone(project: Project, status: Status, *, over: bool) -> Decision:
    reason = _killed(status) if status.exit_code == _KILLED else status.reason or _ending(status)
    if status.failed and project.builder is BuilderState.DEPLOYING:
        kind = NoCapacity if status.no_capacity else DeployFailed
        return Decision(
            verdict=Verdict.FAIL,
            error=kind(
                f"the builder could not be started: {reason}", hint="ask the operator of this manager to look at it"
            ),
        )
    if project.tagging or project.attempt >= ATTEMPTS or over:
        return _fail(project, _lost(status, reason))
    return Decision(verdict=Verdict.RETRY, reason=reason)


def _fail(project: Project, error: FlopsError) -> Decision:
    return Decision(verdict=Verdict.PROVE if project.tagging else Verdict.FAIL, error=error)


def _lost(status: Status, reason: str) -> FlopsError:
    if status.exit_code == _KILLED and status.memory_kills != 0:
        return BuilderOom(
            f"the builder ended without a word: {reason}",
            hint="if memory ran out: give builders more (FLOPS_BUILDER_MEMORY), or run fewer at once (FLOPS_BUILDERS)",
        )
    return BuilderLost(
        f"the builder ended without a word: {reason}",
        hint="start the project again; what the builder printed is in its logs",
    )


def _ending(status: Status) -> str:
    if status.evicted:
        return "it was evicted"
    if status.phase is BuilderPhase.GONE:
        return "nothing of it is there"
    return "it ended" if status.exit_code is None else f"it ended with exit code {status.exit_code}"


def _killed(status: Status) -> str:
    if status.memory_kills is None:
        told = "it was killed (signal 9): by the kernel for lack of memory, or by somebody"
    elif status.memory_kills:
        told = "it was killed (signal 9), most likely by the kernel, which killed for lack of memory meanwhile"
    else:
        told = "it was killed (signal 9) by somebody; the kernel killed nothing for lack of memory meanwhile"
    return f"{told} ({status.reason})" if status.reason else told


def _too_late(seconds: float, trouble: str) -> FlopsError:
    return DeadlineExceeded(
        f"the project was not done within {seconds:.0f} s" + (f"; last: {trouble}" if trouble else ""),
        hint="look at its events for the stage that took long; the operator can raise FLOPS_PROJECT_SECONDS",
    )
