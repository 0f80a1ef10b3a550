"""The builder's reporter for the manager: events in order, each exactly once, from a thread of its own.

What the builder does becomes events (`flops_wire.events`) in an outbox that one thread empties in batches, so that a slow or
absent manager never delays the build. Progress is no event of its own in the outbox: only the newest numbers of each
running stage are kept, and told at most twice a second. Stages follow each other; work for a later stage that is done
early becomes visible when that stage starts, and what is told of a stage ends with it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from flops.errors import AttemptOver, Cancelled, FlopsError, ManagerRefused, ManagerUnreachable
from flops.progress import Stage
from flops_wire.events import TAGGING, TERMINAL_KINDS
from flops_wire.events import event as new_event
from flops_wire.flops import change
from flops_wire.manager import BODY_LIMIT, EVENTS_LIMIT, TEXT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from flops.errors import Adjustment, Finding

log = logging.getLogger("flops.job")

Event = dict[str, Any]
#: Seconds between two messages about progress.
PROGRESS_SECONDS = 0.5
#: Bytes of events in one request, well below what a manager takes.
BATCH_BYTES = BODY_LIMIT // 8
#: Bytes of a failure with its findings; a manager takes twice as many.
FAILURE_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    event: Event
    size: int
    answered: threading.Event = field(default_factory=threading.Event)


class Events:
    """A Reporter. As a context: begins to send, and at a regular exit waits until all is answered; an interrupt waits for nothing.

    `post` sends a batch and returns once it is committed (`Attempt.post`). After AttemptOver, `over` is called once,
    from the sending thread, and everything else is dropped.
    """

    def __init__(
        self, post: Callable[[Sequence[Event]], None], *, over: Callable[[FlopsError], None] = lambda _error: None
    ) -> None:
        self._post = post
        self._over = over
        self._changed = threading.Condition()
        self._outbox: deque[_Waiting] = deque()
        self._progress: dict[tuple[Stage, str | None], Event] = {}
        self._open: list[Stage] = []
        self._failed: Stage | None = None
        self._said: set[str] = set()
        self._repeated: set[str] = set()
        self._closing = False
        self._failure: FlopsError | None = None
        self._told_progress = 0.0
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        stopped = kind is not None and (not issubclass(kind, Exception) or issubclass(kind, Cancelled))
        with self._changed:
            self._closing = True
            self._progress.clear()
            if stopped:
                self._outbox.clear()
            self._changed.notify()
        if not stopped:
            self._thread.join()

    # --- the reporter ---
    @contextmanager
    def stage(self, stage: Stage, message: str) -> Iterator[None]:
        begun = time.monotonic()
        self._put(_event(stage, "started", message), opens=stage)
        try:
            yield
        except BaseException:
            self._failed = self._failed or stage
            raise
        seconds = round(time.monotonic() - begun, 3)
        self._put(_event(stage, "finished", message, data={"seconds": seconds}), closes=stage)

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:
        data = {"done": done, "total": total, "unit": "bytes"}
        with self._changed:
            if self._failure is None and not self._closing:
                self._progress[stage, platform] = _event(stage, "progress", "", platform=platform, data=data)
                if stage in self._open:
                    self._changed.notify()

    def adjusted(self, adjustment: Adjustment) -> None:
        one = adjustment
        event = _event(
            self._now(Stage.RESOLVE),
            "adjusted",
            f"{one.package}: {change(one.before, one.after)} ({one.where}): {one.reason}",
            platform=one.platform,
            code=one.code,
            data=one.to_json(),
        )
        self._put_once(event)

    def finding(self, finding: Finding) -> None:
        told = finding.to_json()
        stage = self._now(Stage.CHECK)
        self._put_once(
            _event(stage, "finding", finding.message, code=finding.code, hint=finding.hint or None, data=told)
        )

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        self._put(_event(stage, "warning", message, hint=hint or None))

    def begin_again(self) -> None:
        """What had begun has failed, and is done once more; adjustments and findings that were told are not told again."""
        with self._changed:
            self._open.clear()
            self._progress.clear()
            self._failed = None
            self._repeated = self._said.copy()

    # --- what must be answered ---
    def ask_to_tag(self, move: dict[str, Any]) -> None:
        """Returns once the manager gave its leave for this move; AttemptOver where it does not, ManagerUnreachable."""
        self._deliver(_event(Stage.PUSH, "started", "tags move", code=TAGGING, data=move))

    def succeeded(self, result: dict[str, Any]) -> None:
        """The terminal event, answered; raises as `ask_to_tag` does."""
        self._deliver(_event(Stage.PUSH, "succeeded", "images are in place", data={"result": result}))

    def failed(self, error: FlopsError, *, stage: Stage = Stage.CLONE) -> None:
        """The terminal event, answered, with the stage that failed (`stage` where none had begun)."""
        document = error.to_json()
        while len(json.dumps(document)) > FAILURE_BYTES and document["findings"]:  # the first ones tell enough
            document["findings"] = document["findings"][: len(document["findings"]) // 2]
        where = self._failed or stage
        self._deliver(
            _event(where, "failed", error.message, code=error.code, hint=error.hint or None, data={"error": document})
        )

    def _deliver(self, event: Event) -> None:
        waiting = self._put(event)
        waiting.answered.wait()
        if self._failure is not None:
            raise self._failure

    def _now(self, otherwise: Stage) -> Stage:
        with self._changed:
            return self._open[-1] if self._open else otherwise

    def _put_once(self, event: Event) -> None:
        said = json.dumps([event["kind"], event["data"]])
        self._said.add(said)
        if said not in self._repeated:
            self._put(event)

    def _put(self, event: Event, *, opens: Stage | None = None, closes: Stage | None = None) -> _Waiting:
        waiting = _Waiting(event=event, size=len(json.dumps(event)))
        with self._changed:
            if opens is not None:
                self._open.append(opens)
            if closes is not None:
                self._open.remove(closes)
                self._progress = {key: kept for key, kept in self._progress.items() if key[0] is not closes}
            if self._failure is not None or self._closing:
                waiting.answered.set()
            else:
                self._outbox.append(waiting)
                self._changed.notify()
        return waiting

    # --- the sending thread ---
    def _work(self) -> None:
        batch: list[_Waiting] = []
        try:
            while batch := self._next():
                self._send(batch)
        except FlopsError as error:
            self._end(error, batch)
        except Exception as error:  # noqa: BLE001 - whoever waits for an answer must not wait for ever
            self._end(ManagerUnreachable(f"events can't be sent: {type(error).__name__}: {error}"[:500]), batch)

    def _next(self) -> list[_Waiting]:
        """The next batch, as soon as there is one; empty at the end."""
        with self._changed:
            while True:
                due = self._told_progress + PROGRESS_SECONDS - time.monotonic()
                ready = [key for key in self._progress if key[0] in self._open]
                if self._outbox or self._closing or (ready and due <= 0):
                    break
                self._changed.wait(timeout=due if ready else None)
            batch: list[_Waiting] = []
            size = 0
            while self._outbox and len(batch) < EVENTS_LIMIT and (not batch or size < BATCH_BYTES):
                batch.append(self._outbox.popleft())
                size += batch[-1].size
            if ready and due <= 0 and not self._outbox and len(batch) + len(ready) <= EVENTS_LIMIT:
                batch += [_Waiting(event=self._progress.pop(key), size=0) for key in ready]
                self._told_progress = time.monotonic()
            return batch

    def _send(self, batch: list[_Waiting]) -> None:
        """Post a batch; where the manager can't take it, all that it can take of it, one by one."""
        try:
            self._post([waiting.event for waiting in batch])
        except ManagerRefused as error:
            if len(batch) == 1:
                event = batch[0].event
                if event["kind"] in TERMINAL_KINDS or event["code"] == TAGGING:
                    raise
                log.warning("an event (%s %s) was refused and is left out: %s", event["stage"], event["kind"], error)
            else:
                for waiting in batch:
                    self._send([waiting])
        for waiting in batch:
            waiting.answered.set()

    def _end(self, error: FlopsError, batch: list[_Waiting]) -> None:
        with self._changed:
            self._failure = error
            left = [*batch, *self._outbox]
            self._outbox.clear()
            self._progress.clear()
        if isinstance(error, AttemptOver):
            self._over(error)
        for waiting in left:
            waiting.answered.set()


def _event(
    stage: Stage, kind: str, message: str, *, platform: str | None = None, hint: str | None = None, **more: Any
) -> Event:
    hint = hint[:TEXT_LIMIT] if hint else None
    whole = new_event(stage.value, kind, message[:TEXT_LIMIT], hint=hint, **more) | {"platform": platform}
    return {key: _encodable(value) for key, value in whole.items()}


def _encodable(value: Any) -> Any:
    """Without what UTF-8 can't write: names of files may hold bytes that are no text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(kept) for key, kept in value.items()}
    return [_encodable(kept) for kept in value] if isinstance(value, list | tuple) else value
