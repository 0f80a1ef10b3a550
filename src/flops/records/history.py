"""The history of a build: its events, for the record beside the image."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flops.oci.descriptor import canonical
from flops.records import BUILD, Part, Record, timestamp
from flops.records.locks import stem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.errors import Adjustment, Finding
    from flops.platforms import Platform
    from flops.progress import Reporter, Stage
    from flops.records.provenance import Run

#: Raised when the document changes for its readers.
FORMAT = 1
#: Further events are only counted, so that no repository can make the record large.
MOST_EVENTS = 500
_MOST_TEXT = 2000


class History:
    """A Reporter that passes everything on and records it, with seconds since the build began."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._start = time.monotonic()
        self._events: list[dict[str, Any]] = []
        self._dropped = 0
        self.begun = datetime.now(UTC)

    @contextmanager
    def stage(self, stage: Stage, message: str) -> Iterator[None]:
        self._record(stage.value, "started", message)
        begun = time.monotonic()
        with self._reporter.stage(stage, message):
            yield
        self._record(stage.value, "finished", "", {"seconds": round(time.monotonic() - begun, 3)})

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:
        """Passed on only."""
        self._reporter.progress(stage, done=done, total=total, platform=platform)

    def adjusted(self, adjustment: Adjustment) -> None:
        self._record("resolve", "adjusted", adjustment.reason, adjustment.to_json())
        self._reporter.adjusted(adjustment)

    def finding(self, finding: Finding) -> None:
        self._record("check", "finding", finding.message, finding.to_json())
        self._reporter.finding(finding)

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        self._record(stage.value, "warning", message, {"hint": hint} if hint else None)
        self._reporter.warning(stage, message, hint=hint)

    def events(self) -> list[dict[str, Any]]:
        """The events so far, oldest first: `at` (seconds), `stage`, `kind`, `message`, `data`."""
        kept = list(self._events)
        if self._dropped:
            kept.append({"at": self._now(), "kind": "warning", "message": f"{self._dropped} more are not kept"})
        return kept

    def _record(self, stage: str, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        if len(self._events) >= MOST_EVENTS:
            self._dropped += 1
            return
        event = {"at": self._now(), "stage": stage, "kind": kind, "message": message[:_MOST_TEXT], "data": data}
        self._events.append({key: value for key, value in event.items() if value or key == "at"})

    def _now(self) -> float:
        return round(time.monotonic() - self._start, 3)


def build_record(
    history: History,
    run: Run,
    platforms: Sequence[Platform],
    *,
    seconds: Mapping[str, float],
    moved: Mapping[str, int],
    adjustments: Sequence[Adjustment],
    findings: Sequence[Finding],
) -> Record:
    """Events, timings, bytes, adjustments and findings, up to the moment when publishing began."""
    document = {
        "format": FORMAT,
        "run": run.identity,
        "begun": timestamp(run.begun),
        "ended": timestamp(run.ended),
        "seconds": dict(seconds),
        "bytes": dict(moved),
        "adjustments": [one.to_json() for one in adjustments],
        "findings": [one.to_json() for one in findings],
        "events": history.events(),
    }
    title = f"build-{'-'.join(map(stem, platforms))}.json"
    part = Part(title=title, media_type=BUILD, data=canonical(document), platforms=tuple(platforms))
    return Record(artifact_type=BUILD, parts=(part,), built=timestamp(run.begun))
