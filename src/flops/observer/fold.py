"""One event after the other, in the order of their sequence, into the state; what is missing or odd is made the best of."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flops.errors import Adjustment
from flops.observer.state import (
    AttemptView,
    Card,
    ImageView,
    Level,
    Line,
    Outcome,
    PlatformImage,
    StageState,
    StageView,
)
from flops_wire.events import MESSAGE, STAGES, TAGGING, TERMINAL_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flops.observer.state import Progress

_REMOVE = STAGES.index("remove")
_LEVELS = {
    "adjusted": Level.ADJUSTED,
    "finding": Level.NOTE,
    "warning": Level.WARNING,
    "failed": Level.ERROR,
    "succeeded": Level.SUCCESS,
    "cancelled": Level.ERROR,
}


class Readable:
    """An event dict, read so that no missing key and no other type matters."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        sequence, attempt = raw.get("sequence"), raw.get("attempt")
        self.sequence: int | None = sequence if isinstance(sequence, int) and sequence > 0 else None
        self.attempt: int | None = attempt if isinstance(attempt, int) and attempt > 0 else None
        self.id = text(raw.get("id"))
        self.time = text(raw.get("time"))
        self.stage = text(raw.get("stage"))
        self.kind = text(raw.get("kind"))
        self.platform: str | None = text(raw.get("platform")) or None
        self.message = text(raw.get("message"))
        self.code = text(raw.get("code"))
        self.hint = text(raw.get("hint"))
        self.data = mapping(raw.get("data"))


class Fold:
    """The state so far. Applied out of order it would differ: `Feed` sees to that."""

    def __init__(self) -> None:
        self._attempts: dict[int, dict[str, StageView]] = {}
        self.lines: list[Line] = []
        self.adjustments: list[Adjustment] = []
        self.notes: list[Card] = []
        self.outcome: Outcome | None = None
        self.tagging = False

    def apply(self, event: Readable) -> None:
        newest = max(self._attempts, default=1)
        attempt = event.attempt or newest
        if event.stage == "queue" and event.kind == "started" and "deploy" in self._attempts.get(attempt, {}):
            attempt += 1  # it waits for the next one, which has no number yet where this is told
        if attempt > newest:
            self._begin(newest)
        stages = self._attempts.setdefault(attempt, {})
        begun = stages[event.stage].message if event.stage in stages else ""
        if event.stage in STAGES:
            self._stage(stages, event)
        if event.kind == "adjusted" and attempt >= newest:
            self.adjustments.append(_adjustment(event))
        elif event.kind == "finding" and attempt >= newest:
            self.notes.append(_card(event.data, Level.NOTE, event))
        elif event.kind in TERMINAL_KINDS and self.outcome is None:
            self.outcome = _outcome(event)
            self._end(attempt, event)
        self.lines.append(_line(event, attempt, begun))

    def attempts(self, progress: Callable[[int, str], tuple[Progress, ...]]) -> tuple[AttemptView, ...]:
        return tuple(
            AttemptView(
                number=number,
                stages=tuple(self._shown(stages.get(name), name, number, progress) for name in STAGES),
            )
            for number, stages in sorted((self._attempts or {1: {}}).items())
        )

    def _shown(
        self, stage: StageView | None, name: str, attempt: int, progress: Callable[[int, str], tuple[Progress, ...]]
    ) -> StageView:
        if stage is None:
            newest = attempt >= max(self._attempts, default=1)
            to_be_removed = name == "remove" and newest and "deploy" in self._attempts.get(attempt, {})
            passed = name == "queue" and bool(
                self._attempts.get(attempt)
            )  # a further attempt does not wait for its turn
            over = not newest or passed or (self.outcome is not None and not to_be_removed)
            return StageView(name=name, state=StageState.SKIPPED if over else StageState.WAITING)
        return replace(stage, progress=progress(attempt, name)) if stage.state is StageState.RUNNING else stage

    def _stage(self, stages: dict[str, StageView], event: Readable) -> None:
        known = stages.get(event.stage, StageView(name=event.stage))
        if event.kind == "started":
            self._pass(stages, event)
            self.tagging = self.tagging or event.code == TAGGING
            stages[event.stage] = replace(
                known,
                state=StageState.RUNNING,
                message=event.message or known.message,
                started=known.started or event.time,
                ended=None,
            )
        elif event.kind == "finished":
            spent = number(event.data.get("seconds"))
            if spent is None:
                spent = between(known.started, event.time)
            stages[event.stage] = replace(
                known,
                state=StageState.DONE,
                message=event.message or known.message,
                ended=event.time,
                seconds=None if spent is None else round((known.seconds or 0) + spent, 3),
            )

    def _pass(self, stages: dict[str, StageView], event: Readable) -> None:
        """Waiting for a builder is over once something further begins, whether that was told or not."""
        for name in ("queue", "deploy"):
            stage = stages.get(name)
            if stage and stage.state is StageState.RUNNING and STAGES.index(name) < STAGES.index(event.stage) < _REMOVE:
                stages[name] = replace(stage, state=StageState.DONE, ended=event.time)

    def _begin(self, previous: int) -> None:
        """A further attempt: what the one before had not done failed with it."""
        stages = self._attempts.get(previous, {})
        for name, stage in stages.items():
            if stage.state is StageState.RUNNING and name != "remove":
                stages[name] = replace(stage, state=StageState.FAILED)
        self.adjustments, self.notes, self.tagging = [], [], False

    def _end(self, attempt: int, event: Readable) -> None:
        """What still runs has ended with the project; removing its builder is still to come."""
        done = StageState.DONE if event.kind == "succeeded" else StageState.SKIPPED
        for stages in self._attempts.values():
            for name, stage in stages.items():
                if stage.state is StageState.RUNNING and name != "remove":
                    spent = between(stage.started, event.time)
                    stages[name] = replace(stage, state=done, ended=event.time, seconds=spent)
        if event.kind == "failed" and event.stage in STAGES and event.stage != "remove":
            known = self._attempts[attempt].get(event.stage, StageView(name=event.stage))
            self._attempts[attempt][event.stage] = replace(known, state=StageState.FAILED, ended=event.time)


def _line(event: Readable, attempt: int, begun: str) -> Line:
    """`begun`: what the stage said when it began, which needs no repetition."""
    said = event.message
    if event.kind == "finished":
        spent = number(event.data.get("seconds"))
        said = "; ".join(
            filter(None, ("" if said == begun else said, "done" if spent is None else f"done in {spent:.1f} s"))
        )
    elif event.kind == "finding":
        card = _card(event.data, Level.NOTE, event)
        place = f"{card.path}:{card.line}" if card.line else card.path
        said = f"{place}: {card.message}" if place else card.message
    return Line(
        sequence=event.sequence or 0,
        time=event.time,
        attempt=attempt,
        stage=event.stage,
        level=Level.NOTE if event.code == MESSAGE else _LEVELS.get(event.kind, Level.INFO),
        text=said,
        code=event.code,
        hint=event.hint,
        platform=event.platform,
    )


def _adjustment(event: Readable) -> Adjustment:
    data = event.data
    return Adjustment(
        code=text(data.get("code")) or event.code,
        package=text(data.get("package")),
        before=text(data.get("before")),
        after=text(data.get("after")),
        path=text(data.get("where")),  # it is only shown
        line=0,
        reason=text(data.get("reason")) or event.message,
        platform=text(data.get("platform")) or event.platform,
    )


def _card(data: Mapping[str, Any], level: Level, event: Readable | None = None) -> Card:
    return Card(
        level=level,
        code=text(data.get("code")) or (event.code if event else ""),
        message=text(data.get("message")) or (event.message if event else ""),
        hint=text(data.get("hint")) or (event.hint if event else ""),
        path=text(data.get("path")),
        line=whole(data.get("line")),
        quote=text(data.get("quote")),
    )


def _outcome(event: Readable) -> Outcome:
    ended = Outcome(kind=event.kind, time=event.time, message=event.message, stage=event.stage)
    if event.kind == "failed":
        error = mapping(event.data.get("error"))
        findings = error.get("findings")
        return replace(
            ended,
            error=_card(error, Level.ERROR, event),
            findings=tuple(
                _card(one, Level.ERROR) for one in (findings if isinstance(findings, list) else ()) if mapping(one)
            ),
        )
    if event.kind == "succeeded":
        result = mapping(event.data.get("result"))
        seconds = number(mapping(result.get("seconds")).get("total"))
        return replace(ended, result=result, images=images_of(result), seconds=seconds)
    return ended


def images_of(result: Mapping[str, Any]) -> tuple[ImageView, ...]:
    """The images of a build's result (`flops build --json`), in its order."""
    return tuple(
        ImageView(
            actor=text(actor),
            reference=text(one.get("reference")),
            digest=text(one.get("digest")),
            platforms=tuple(
                PlatformImage(
                    platform=text(name),
                    digest=text(facts.get("digest")),
                    layers=whole(facts.get("layers")),
                    bytes=whole(facts.get("bytes")),
                    uncompressed_bytes=whole(facts.get("uncompressed_bytes")),
                )
                for name, facts in ((name, mapping(facts)) for name, facts in mapping(one.get("platforms")).items())
            ),
        )
        for actor, one in ((actor, mapping(one)) for actor, one in mapping(result.get("images")).items())
    )


def between(started: str | None, ended: str | None) -> float | None:
    """Seconds from one moment (RFC 3339) to another; None where one is no moment, never negative."""
    try:
        first, last = datetime.fromisoformat(started or ""), datetime.fromisoformat(ended or "")
        return round(max((last - first).total_seconds(), 0.0), 3)
    except (ValueError, TypeError):
        return None


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) and value >= 0 else None
    except OverflowError:
        return None


def whole(value: Any) -> int:
    return int(number(value) or 0)
