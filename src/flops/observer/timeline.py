"""When each stage of a project ran, as bars on one scale. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops.observer.state import StageState
from flops.observer.words import epoch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flops.observer.state import Attempt

#: The scale's length; bars are whole numbers on it.
WIDTH = 1000
#: A bar that is shorter can't be seen.
_LEAST = 4
#: These are about what goes on around a build, and may last as long as they like.
_AROUND = ("queue", "remove")


@dataclass(frozen=True, kw_only=True)
class Bar:
    attempt: int
    stage: str
    state: str
    start: int
    """From 0 to WIDTH."""
    length: int
    seconds: float


def timeline(attempts: Iterable[Attempt], *, now: float) -> tuple[Bar, ...]:
    """The bars of all stages that began, in order; those that run reach to `now` (seconds since the epoch)."""
    spans: list[tuple[int, str, StageState, float, float]] = []
    for attempt in attempts:
        for stage in attempt.stages:
            begun = epoch(stage.started)
            if begun is None or stage.name in _AROUND:
                continue
            end = epoch(stage.ended) if stage.state is not StageState.RUNNING else now
            spans.append((attempt.number, stage.name, stage.state, begun, max(begun, end or begun)))
    if not spans:
        return ()
    first = min(begun for *_, begun, _ in spans)
    whole = max(max(end for *_, end in spans) - first, 0.001)
    return tuple(
        Bar(
            attempt=attempt,
            stage=name,
            state=state.value,
            start=min(round((begun - first) / whole * WIDTH), WIDTH - _LEAST),
            length=max(_LEAST, round((end - begun) / whole * WIDTH)),
            seconds=end - begun,
        )
        for attempt, name, state, begun, end in spans
    )
