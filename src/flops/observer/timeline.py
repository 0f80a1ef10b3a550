"""When each stage of a project ran: a row for each, with a bar on a scale that all attempts share. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flops.observer.state import StageState, StageView
from flops.observer.words import epoch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flops.observer.state import AttemptView, Progress

#: The scale's length; bars are whole numbers on it.
LANE_WIDTH = 1000
#: A bar that is shorter can't be seen.
_LEAST = 4
#: These are about what goes on around a build, and may last as long as they like.
_AROUND = ("queue", "remove")
#: A row of its own between deploy and the first stage: no event tells it, and it takes seconds.
START = "start"
#: What a cancelled build was at.
_STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A stage of an attempt."""

    stage: str
    state: str
    message: str
    started: str | None
    """RFC 3339."""
    seconds: float | None
    """Up to now, while it runs."""
    progress: tuple[Progress, ...]
    begin: float | None = None
    """Seconds from the scale's start; None where there is no bar."""
    end: float | None = None
    """The same; None while it runs."""
    start: int = 0
    """From 0 to WIDTH."""
    length: int = 0


@dataclass(frozen=True, kw_only=True)
class Lane:
    attempt: int
    rows: tuple[Row, ...]

    @property
    def lost(self) -> bool:
        return any(row.state == "failed" for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    lanes: tuple[Lane, ...]
    first: float | None
    """Where the scale starts (seconds since the epoch); None while nothing has begun."""


def timeline(attempts: Sequence[AttemptView], *, now: float) -> Timeline:
    """All stages in order; the bars of those that run reach to `now` (seconds since the epoch)."""
    lanes = [
        (attempt.number, list(_stages(attempt, newest=number == len(attempts))))
        for number, attempt in enumerate(attempts, 1)
    ]
    spans = {(number, stage.name): _span(stage, stages) for number, stages in lanes for stage in stages}
    known = [span for span in spans.values() if span]
    if not known:
        return Timeline(
            lanes=tuple(Lane(attempt=n, rows=tuple(_row(one, now) for one in stages)) for n, stages in lanes),
            first=None,
        )
    first = min(begun for begun, _ in known)
    whole = max(max(now if ended is None else ended for _, ended in known) - first, 0.001)

    def drawn(number: int, stage: StageView) -> Row:
        span = spans[number, stage.name]
        if span is None:
            return _row(stage, now)
        begin, end = span[0] - first, None if span[1] is None else span[1] - first
        until = max(begin, now - first) if end is None else end
        return replace(
            _row(stage, now),
            begin=round(begin, 3),
            end=None if end is None else round(end, 3),
            start=min(round(begin / whole * LANE_WIDTH), LANE_WIDTH - _LEAST),
            length=max(_LEAST, round((until - begin) / whole * LANE_WIDTH)),
        )

    return Timeline(
        lanes=tuple(Lane(attempt=n, rows=tuple(drawn(n, stage) for stage in stages)) for n, stages in lanes),
        first=first,
    )


def _stages(attempt: AttemptView, *, newest: bool) -> Iterator[StageView]:
    """With the builder's own start, which is what lies between deploy and the first thing that a builder tells."""
    for at, stage in enumerate(attempt.stages):
        yield stage
        if stage.name == "deploy" and stage.state not in (StageState.SKIPPED, StageState.FAILED):
            yield _start(stage, [one for one in attempt.stages[at + 1 :] if one.name not in _AROUND], newest=newest)


def _start(deploy: StageView, later: Sequence[StageView], *, newest: bool) -> StageView:
    begun = [one.started for one in later if epoch(one.started) is not None]
    if deploy.state is not StageState.DONE:
        return StageView(name=START)
    if begun:
        ended = min(begun, key=lambda one: epoch(one) or 0)
        seconds = max(0.0, (epoch(ended) or 0) - (epoch(deploy.ended) or 0)) if epoch(deploy.ended) else None
        message = "the builder has started"
        return StageView(
            name=START, state=StageState.DONE, message=message, started=deploy.ended, ended=ended, seconds=seconds
        )
    if newest and all(one.state is StageState.WAITING for one in later):
        return StageView(
            name=START, state=StageState.RUNNING, message="the builder's process starts", started=deploy.ended
        )
    if not newest:
        return StageView(name=START, state=StageState.FAILED, message="the builder told nothing", started=deploy.ended)
    return StageView(name=START, state=StageState.SKIPPED)


def _span(stage: StageView, stages: Sequence[StageView]) -> tuple[float, float | None] | None:
    """From when to when (None: it runs); what a lost builder had begun ended when its removal began."""
    begun = epoch(stage.started)
    if begun is None or stage.name in _AROUND:
        return None
    if stage.state is StageState.RUNNING:
        return begun, None
    removal = next((epoch(one.started) for one in stages if one.name == "remove"), None)
    ended = epoch(stage.ended) or (removal if stage.state is StageState.FAILED else None) or begun
    return begun, max(begun, ended)


def _row(stage: StageView, now: float) -> Row:
    running = stage.state is StageState.RUNNING
    begun = epoch(stage.started) if running else None
    return Row(
        stage=stage.name,
        state=_STOPPED if stage.state is StageState.SKIPPED and stage.started else stage.state.value,
        message=stage.message,
        started=stage.started if running else None,
        seconds=stage.seconds if begun is None else max(0.0, now - begun),
        progress=stage.progress,
    )
