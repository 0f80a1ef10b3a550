"""What a project's events add up to, for people: the page, the terminal, and the record beside an image show this. Pure.

Events may come in any batches, twice, late, or with some missing: the state depends only on which events are known. Text
from repositories and programs stays as it came; whoever shows it makes it safe for the place where it is shown.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops.observer.fold import Fold, Readable, number
from flops.observer.state import Level, Progress
from flops_wire import flops

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flops.errors import Adjustment
    from flops.observer.state import AttemptView, Card, ImageView, Line, Outcome


class Feed:
    """A project's events, folded. `add` takes events in the wire's shape (`flops_wire.events`) and never fails."""

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self._stored: dict[int, Readable] = {}
        self._progress: dict[tuple[int, str, str | None], tuple[str, Progress]] = {}
        self._fold = Fold()
        self.last = 0
        """The highest sequence that is known: what a replay begins after."""
        self.add(events)

    def add(self, events: Iterable[Mapping[str, Any]]) -> tuple[Line, ...]:
        """Take events in; the lines of those that are new, oldest first. Progress makes none."""
        fresh: list[int] = []
        late = False
        for raw in events:
            event = Readable(raw)
            if event.kind == "progress":
                self._note_progress(event)
            elif event.sequence is not None and event.sequence not in self._stored:
                self._stored[event.sequence] = event
                fresh.append(event.sequence)
                if event.sequence > self.last:
                    self.last = event.sequence
                    if not late:
                        self._fold.apply(event)
                else:
                    late = True
        if late:  # one that belongs between others
            self._fold = Fold()
            for sequence in sorted(self._stored):
                self._fold.apply(self._stored[sequence])
            new = frozenset(fresh)
            return tuple(line for line in self._fold.lines if line.sequence in new)
        return tuple(self._fold.lines[len(self._fold.lines) - len(fresh) :])

    def _note_progress(self, event: Readable) -> None:
        """Only the newest of each stage and platform counts; ids are ordered by time (UUIDv7)."""
        done = number(event.data.get("done"))
        if done is None:
            return
        key = (event.attempt or 0, event.stage, event.platform)
        known = self._progress.get(key)
        if known is None or known[0] < event.id:
            unit = event.data.get("unit")
            value = Progress(
                platform=event.platform,
                done=done,
                total=number(event.data.get("total")),
                unit=unit if isinstance(unit, str) else "bytes",
            )
            self._progress[key] = (event.id, value)

    @property
    def attempts(self) -> tuple[AttemptView, ...]:
        """Each with all stages in order; one that has not begun where there is none yet."""
        return self._fold.attempts(self._progress_of)

    def _progress_of(self, attempt: int, stage: str) -> tuple[Progress, ...]:
        found = [
            value
            for (of, name, _), (_, value) in self._progress.items()
            if name == stage and of in (attempt, 0 if attempt == 1 else attempt)
        ]
        return tuple(sorted(found, key=lambda one: one.platform or ""))

    @property
    def lines(self) -> tuple[Line, ...]:
        return tuple(self._fold.lines)

    @property
    def adjustments(self) -> tuple[Adjustment, ...]:
        """Of the newest attempt: a second one makes them anew."""
        return tuple(self._fold.adjustments)

    @property
    def cards(self) -> tuple[Card, ...]:
        """Notes about the repository, of the newest attempt; then, in failure, all that was wrong, and the failure itself."""
        return (*self._fold.notes, *(self._fold.outcome.cards if self._fold.outcome else ()))

    @property
    def outcome(self) -> Outcome | None:
        return self._fold.outcome

    @property
    def images(self) -> tuple[ImageView, ...]:
        return self._fold.outcome.images if self._fold.outcome else ()

    @property
    def tagging(self) -> bool:
        """Tags move, or have moved: too late to cancel."""
        return self._fold.tagging

    def to_json(self) -> dict[str, Any]:
        outcome = self.outcome
        return {
            "last": self.last,
            "tagging": self.tagging,
            "attempts": [one.to_json() for one in self.attempts],
            "lines": [one.to_json() for one in self.lines],
            "adjustments": [one.to_json() for one in self.adjustments],
            "cards": [one.to_json() for one in self.cards],
            "images": [one.to_json() for one in self.images],
            "outcome": outcome.to_json() if outcome else None,
        }


#: A project's id goes into a topic, where +, # and / have meanings.
ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
MANAGER = "flops_manager/"
_LEVELS = {"failed": Level.ERROR, "success": Level.SUCCESS}


@dataclass(frozen=True, kw_only=True)
class Told:
    """One message as it is shown, in one line or several."""

    source: str
    """`observer`, or a component of FLOps, such as `fl_actors_image_builder`."""
    text: str
    level: Level = Level.INFO


class BrokerFeed:
    """Messages of one project, folded. The broker may repeat any of them: what was just said is not said again."""

    def __init__(self, project: str) -> None:
        self.topics = (f"{MANAGER}#", flops.observer_topic(project))
        self.succeeded: bool | None = None
        """None until the builder's outcome is known."""
        self._project = project
        self._last: dict[str, bytes] = {}

    def take(self, topic: str, payload: bytes, *, repeated: bool = False) -> Told | None:
        """What a message says of this project, if anything; `repeated`: it was kept by the broker, or is sent again."""
        own = topic == flops.observer_topic(self._project)
        document = {} if own else _object(payload)
        if not own and document.get("flops_project_id") != self._project:
            return None
        if repeated and self._last.get(topic) == payload:
            return None
        self._last[topic] = payload
        if own:
            said = payload.decode("utf-8", "replace")
            if said == flops.IMAGES_EXIST:
                self.succeeded = True
            elif said == flops.BUILDER_GONE:
                self.succeeded = False
            return Told(source="observer", text=said)
        self._judge(topic)
        component, _, word = topic.removeprefix(MANAGER).rpartition("/")
        fields = "; ".join(f"{name}: {value}" for name, value in document.items() if name != "flops_project_id")
        return Told(
            source=component or word, text=f"{word}: {fields}" if fields else word, level=_LEVELS.get(word, Level.INFO)
        )

    def _judge(self, topic: str) -> None:
        if topic == flops.BUILDER_SUCCESS:
            self.succeeded = True
        elif topic == flops.BUILDER_FAILED:
            self.succeeded = False


def _object(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
