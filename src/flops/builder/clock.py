"""Seconds per stage, by the monotonic clock."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flops.progress import Reporter, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The stages of a build, in order, as results list them.
STAGES = (Stage.CLONE, Stage.CHECK, Stage.RESOLVE, Stage.FETCH, Stage.ASSEMBLE, Stage.VERIFY, Stage.PUSH)


class Clock:
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
