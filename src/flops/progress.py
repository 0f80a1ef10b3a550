"""How the builder tells what it does: a protocol that is silent by default; terminal, events and tests implement it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flops.errors import Adjustment, Finding


class Stage(Enum):
    """The stages of a project, as events name them."""

    QUEUE = "queue"
    DEPLOY = "deploy"
    CLONE = "clone"
    CHECK = "check"
    RESOLVE = "resolve"
    FETCH = "fetch"
    ASSEMBLE = "assemble"
    VERIFY = "verify"
    PUSH = "push"
    REMOVE = "remove"


class Reporter(Protocol):
    """Receives what happens, from any thread; must not block and must not raise."""

    def stage(self, stage: Stage, message: str) -> AbstractContextManager[None]:
        """Enclose a stage: it has started, and at exit finished (or failed, by an exception)."""

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:
        """Bytes done so far in a stage, and of how many where that is known."""

    def adjusted(self, adjustment: Adjustment) -> None:
        """The builder changed what the repository asked for."""

    def finding(self, finding: Finding) -> None:
        """Something in the repository deserves attention and did not stop the build."""

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        """Something outside the repository deserves attention."""


class Silent:
    """The default reporter: says nothing."""

    @contextmanager
    def stage(self, stage: Stage, message: str) -> Iterator[None]:  # noqa: ARG002
        yield

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:
        pass

    def adjusted(self, adjustment: Adjustment) -> None:
        pass

    def finding(self, finding: Finding) -> None:
        pass

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        pass


#: The stages of a build, in order, as results list them.
STAGES = (Stage.CLONE, Stage.CHECK, Stage.RESOLVE, Stage.FETCH, Stage.ASSEMBLE, Stage.VERIFY, Stage.PUSH)


class StageClock:
    """Measures stages one after the other. Where work overlaps, a stage counts from the end of the one before it."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._begun = time.monotonic()
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, stage: Stage, message: str) -> Iterator[None]:
        begun = time.monotonic()
        with self._reporter.stage(stage, message):
            try:
                yield
            finally:
                self._seconds[stage] += time.monotonic() - begun

    def seconds(self) -> dict[str, float]:
        """By stage, and `total`: everything since the clock was made."""
        stages = {stage.value: round(count, 3) for stage, count in self._seconds.items()}
        return {**stages, "total": round(time.monotonic() - self._begun, 3)}
