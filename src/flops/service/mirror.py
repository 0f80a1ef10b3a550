"""What is put out for FLOps' components goes to their broker: in order, at least once, and never in a project's way.

A message leaves the outbox only after the broker acknowledged it, so a broker that is down delays the mirror alone; a
manager that dies in between sends one message twice. What waits has a bound: beyond it, messages on the way are dropped,
whole projects at a time, the oldest first, and outcomes are kept.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from flops.errors import BrokerUnreachable, FlopsError
from flops_wire import flops
from flops_wire.events import TAGGING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flops.compat.broker import Publisher
    from flops.service.project import Project
    from flops.service.tables import OutboxRow


#: Messages that are read at once.
BATCH = 100
#: Messages that may wait.
BACKLOG = 10_000
#: Seconds between two looks at an outbox that was empty.
POLL = 0.5
#: The first and the longest pause after a failure, in seconds.
FIRST, LONGEST = 0.5, 30.0
#: For the message that is under way at the end; a broker that hangs is not waited for.
CLOSE_SECONDS = 5.0

_log = logging.getLogger("flops.service.mirror")


class Outbox(Protocol):
    """Where messages wait; the manager's store."""

    def outbox_next(self, limit: int) -> Sequence[OutboxRow]:
        """The oldest messages, in order."""

    def outbox_done(self, number: int) -> None:
        """This message was acknowledged."""

    def outbox_trim(self, limit: int) -> int:
        """Drop what is beyond so many messages; how many were dropped."""


class Mirror:
    """One thread between `start` and `close`. Constructing it connects to nothing."""

    def __init__(
        self,
        outbox: Outbox,
        publisher: Publisher,
        *,
        backlog: int = BACKLOG,
        dropped: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """`dropped` is told how many messages were dropped, whenever some were."""
        self._outbox = outbox
        self._publisher = publisher
        self._backlog = backlog
        self._dropped = dropped
        self._dropping = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._failures = 0

    @property
    def connected(self) -> bool:
        """The last message that was tried was acknowledged (or there was none yet)."""
        return self._failures == 0

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends after the message that is under way; what waits then waits for the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=CLOSE_SECONDS)

    def _work(self) -> None:
        with self._publisher:
            while not self._stop.is_set():
                try:
                    self._trim()
                    rows = self._outbox.outbox_next(BATCH)
                    for row in rows:
                        self._publish(row)
                        if self._stop.is_set():
                            return
                except FlopsError as error:
                    self._failed(error)
                else:
                    if not rows:
                        self._dropping = False
                        self._stop.wait(POLL)

    def _trim(self) -> None:
        """Told once until nothing waits any more."""
        count = self._outbox.outbox_trim(self._backlog)
        if not count:
            return
        self._dropped(count)
        if not self._dropping:
            _log.warning(
                "more than %d messages wait for the broker at %s: those of the oldest projects are dropped, save outcomes",
                self._backlog,
                self._publisher.address,
            )
        self._dropping = True

    def _publish(self, row: OutboxRow) -> None:
        self._publisher.publish(row.topic, row.payload, retain=row.retained)
        if self._failures:
            _log.info("the broker at %s takes messages again", self._publisher.address)
        self._failures = 0
        self._outbox.outbox_done(row.number)

    def _failed(self, error: FlopsError) -> None:
        """Told once per outage; the pauses grow."""
        if not self._failures:
            where = "" if isinstance(error, BrokerUnreachable) else "the mirror can't go on: "
            _log.warning("%s%s", where, error.message)
        self._failures += 1
        pause = min(LONGEST, FIRST * 2 ** min(self._failures - 1, 10))
        self._stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret


Message = tuple[str, str, bool]
"""Topic, payload, and whether the broker keeps it for who comes late."""
ACTORS = ("learner", "aggregator")


def mirror_messages(project: Project, event: Mapping[str, Any]) -> list[Message]:
    """What one committed event gives, in this order; most give nothing. `project` as it stands after the event."""
    return [
        *_manager(project, event),
        *((flops.observer_topic(project.id), text, True) for text in _texts(project, event)),
    ]


def _manager(project: Project, event: Mapping[str, Any]) -> Iterator[Message]:
    if not project.attempt:
        return
    match event["stage"], event["kind"]:
        case "clone", "started":
            yield _message(flops.BUILDER_STARTED, flops.payload(project.id))
        case _, "succeeded":
            seconds = _seconds(event["data"]["result"])
            yield _message(flops.BUILDER_SUCCESS, flops.builder_success(project.id, seconds))
        case _, "failed":
            yield _message(flops.BUILDER_FAILED, flops.failure(project.id, flops.failure_text(event["data"]["error"])))
        case _, "cancelled":
            yield _message(flops.BUILDER_FAILED, flops.failure(project.id, "the project was cancelled"))


def _message(topic: str, payload: Mapping[str, Any]) -> Message:
    return topic, json.dumps(payload), False


def _texts(project: Project, event: Mapping[str, Any]) -> Iterator[str]:
    match event["stage"], event["kind"]:
        case _, "succeeded":
            yield from _success(project, event["data"]["result"])
        case _, "failed":
            yield flops.failure_text(event["data"]["error"])
            if project.attempt:
                yield flops.BUILDER_GONE
        case _, "cancelled":
            yield "The project was cancelled."
        case stage, kind if project.sla.get("verbose"):
            yield from _milestones(project, stage, kind, event)


def _milestones(project: Project, stage: str, kind: str, event: Mapping[str, Any]) -> Iterator[str]:
    match stage, kind:
        case "deploy", "started":
            yield flops.BUILD_NEEDED
        case "deploy", "finished":
            yield flops.BUILDER_DEPLOYED
        case "resolve", "started":
            yield from map(flops.build_begun, _images(project))
        case _, "adjusted":
            yield flops.adjusted(event["data"])
        case "push", "started" if event.get("code") != TAGGING:
            yield from map(flops.build_finished, _images(project))


def _success(project: Project, result: Mapping[str, Any]) -> Iterator[str]:
    """An outcome without a builder, or of one that found the images in place, is the original's "already exists"."""
    built = project.attempt and result.get("python") is not None
    if not built:
        yield flops.IMAGES_EXIST
    if project.sla.get("verbose"):
        for image in result["images"].values() if built else ():
            yield flops.image_pushed(flops.visible(str(image.get("reference"))))
        if project.attempt:
            yield flops.durations(flops.builder_success(project.id, _seconds(result)))


def _seconds(result: Mapping[str, Any]) -> dict[str, float]:
    """By stage; a result that was read from the registry has none."""
    told = result.get("seconds")
    return {key: one for key, one in told.items() if isinstance(one, int | float)} if isinstance(told, dict) else {}


def _images(project: Project) -> list[str]:
    """The names of the images as far as they are known before these are built: below their registry."""
    if "://" in project.repository:
        path = urlsplit(project.repository).path.strip("/").removesuffix(".git")
    else:
        path = "local/" + project.repository.rstrip("/").rpartition("/")[2]
    name = "/".join(filter(None, (path.lower(), project.subdir.lower())))
    tag = f":{project.commit}" if project.commit else ""
    return [flops.visible(f"{name}/{actor}{tag}") for actor in ACTORS]
