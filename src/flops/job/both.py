"""Two reporters at once: events for the manager, lines for the log."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flops.errors import Adjustment, Finding
    from flops.progress import Reporter, Stage


class Both:
    """A Reporter that tells two others."""

    def __init__(self, first: Reporter, second: Reporter) -> None:
        self._first, self._second = first, second

    @contextmanager
    def stage(self, stage: Stage, message: str) -> Iterator[None]:
        with self._first.stage(stage, message), self._second.stage(stage, message):
            yield

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:
        for one in (self._first, self._second):
            one.progress(stage, done=done, total=total, platform=platform)

    def adjusted(self, adjustment: Adjustment) -> None:
        for one in (self._first, self._second):
            one.adjusted(adjustment)

    def finding(self, finding: Finding) -> None:
        for one in (self._first, self._second):
            one.finding(finding)

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        for one in (self._first, self._second):
            one.warning(stage, message, hint=hint)
