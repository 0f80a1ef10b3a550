"""What happens to a project, entered at once or not at all: its state, its event, the mirror's messages.

An `Entry` is one transaction. When it ends, everything in it is on the disk, and only then it is told.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from flops.errors import BuilderLost, ProjectNotFound
from flops.service import project as projects
from flops.service.jobs import new_attempt
from flops.service.mirror import mirror_messages
from flops.service.project import BuilderState, State
from flops_wire.events import TERMINAL_KINDS, uuid7
from flops_wire.events import event as new_event

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flops.errors import FlopsError
    from flops.service.bus import Bus
    from flops.service.project import Attempt, Project
    from flops.service.store import Store
    from flops.service.tables import Tables


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch: what the database holds and deadlines count by, across restarts."""

    def monotonic(self) -> float:
        """Seconds that nobody sets back: what pauses count by."""


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


_log = logging.getLogger("flops.service")


class Ledger:
    """Where all changes are entered. `mirror`: whether messages for FLOps' broker are put out."""

    def __init__(self, store: Store, bus: Bus, clock: Clock, *, mirror: bool = False) -> None:
        self.store = store
        self.bus = bus
        self.clock = clock
        self.mirror = mirror

    @contextmanager
    def entry(self) -> Iterator[LedgerEntry]:
        """DiskFull, StoreError; then nothing of it has happened."""
        with self.store.write() as tables:
            yield LedgerEntry(self, tables)


class LedgerEntry:
    """Reads and changes in one transaction. A project is changed by `put`, and everybody hears of it by `tell`."""

    def __init__(self, ledger: Ledger, tables: Tables) -> None:
        self.tables = tables
        self.now = ledger.clock.now()
        self._ledger = ledger

    def project(self, number: str) -> Project:
        found = self.tables.project(number)
        if found is None:
            raise ProjectNotFound(
                f"there is no project {number[:64]!r}", hint="flops project list shows those there are"
            )
        return found

    def stage(self, project: Project) -> str:
        """Where it was when it was last heard of."""
        last = self.tables.last_event(project.id)
        return str(last["stage"]) if last else "queue"

    def put(self, project: Project) -> Project:
        self.tables.save(project)
        return project

    def tell(self, project: Project, event: Mapping[str, Any], *, attempt: int | None = None) -> bool:
        """Store an event of a project as it is now; whether it is new."""
        whole = {"project": project.id, "attempt": attempt, **event}
        sequence = self.tables.add_event(project.id, whole)
        if sequence is None:
            return False
        whole = {**whole, "sequence": sequence}
        if self._ledger.mirror:
            terminal = whole["kind"] in TERMINAL_KINDS
            for topic, payload, retain in _messages(project, whole):
                self.tables.put_out(project.id, topic, payload, retained=retain, terminal=terminal)
        self._ledger.store.afterwards(lambda: self._ledger.bus.publish(project, whole))
        return True

    def say(self, project: Project, stage: str, kind: str, message: str, **more: Any) -> None:
        """Tell something of our own."""
        self.tell(project, new_event(stage, kind, message, now=self.now, **more), attempt=project.attempt or None)

    # --- waiting ---
    def queue(self, project: Project, *, places: int) -> Project:
        """It waits for one of the places that builders have; who would wait is told how many are before it."""
        before = self.tables.before(project)
        project = self.put(projects.queued(project))
        if before >= places:
            others = "one other is" if before == 1 else f"{before} others are"
            self.say(project, "queue", "started", f"the project waits for its turn: {others} before it")
        return project

    def follow(self, project: Project, leader: Project) -> Project:
        """It waits for another project, whose images may be its own."""
        project = self.put(projects.waiting(project, leader.id))
        self.say(project, "queue", "started", f"the project waits for project {leader.id}, which builds the same")
        return project

    # --- outcomes ---
    def succeed(
        self, project: Project, result: Mapping[str, Any], event: Mapping[str, Any] | None = None, *, message: str = ""
    ) -> Project:
        """images_ready; `event` is the builder's own, where it is the builder who tells."""
        done = projects.ended(project, State.IMAGES_READY, self.now, result=result)
        own = new_event("push", "succeeded", message or "images are in place", data={"result": result}, now=self.now)
        return self._end(done, event or own)

    def fail(self, project: Project, error: FlopsError, *, stage: str) -> Project:
        document = error.to_json()
        event = new_event(
            stage,
            "failed",
            error.message,
            code=error.code,
            hint=error.hint or None,
            data={"error": document},
            now=self.now,
        )
        return self.fail_by(project, event)

    def fail_by(self, project: Project, event: Mapping[str, Any]) -> Project:
        """Failed, as a builder's (or our own) event tells."""
        error = {"hint": "", "findings": [], **event["data"]["error"]}
        return self._end(projects.ended(project, State.FAILED, self.now, error=error), event)

    def cancel(self, project: Project) -> Project:
        done = projects.ended(project, State.CANCELLED, self.now)
        return self._end(done, new_event(self.stage(project), "cancelled", "the project was cancelled", now=self.now))

    def _end(self, project: Project, event: Mapping[str, Any]) -> Project:
        self.put(project)
        self.close_attempt(project)
        attempt = project.attempt or None
        if not self.tell(project, event, attempt=attempt):  # an id that its builder had used for something else
            self.tell(project, {**event, "id": uuid7(self.now)}, attempt=attempt)
        if project.builder.deployed:
            self.say(project, "remove", "started", "the builder is being removed")
        _log.info(
            "project ended: %s",
            project.state.value,
            extra={"project": project.id, "attempt": project.attempt, "code": (project.error or {}).get("code")},
        )
        for follower in self.tables.followers(project.id):
            if follower.shares(project):
                self._share(follower, project)
        if not project.builder.deployed:
            self.promote(project)
        return project

    def _share(self, follower: Project, leader: Project) -> None:
        if leader.state is State.FAILED:
            error = dict(leader.error or {})
            event = new_event(
                "queue",
                "failed",
                str(error.get("message", "")),
                code=error.get("code"),
                hint=error.get("hint") or None,
                data={"error": error},
                now=self.now,
            )
            self.fail_by(follower, event)
        else:
            result = only_platforms(leader.result or {}, follower.platforms)
            self.succeed(follower, result, message=f"images are in place, made for project {leader.id}")

    def promote(self, leader: Project) -> None:
        """Nothing is left of this project's builder: the first of those that still wait for it builds next."""
        first, *others = self.tables.followers(leader.id) or (None,)
        if first is None:
            return
        first = self.put(projects.queued(first))
        self.say(first, "queue", "started", f"project {leader.id} has ended: a builder of its own is next")
        for other in others:
            self.follow(other, first)

    # --- attempts ---
    def admit(self, project: Project, prefix: str) -> Attempt:
        """Its turn has come: a new attempt, whose builder is to be deployed."""
        waited = self.now - project.created if project.started is None else 0.0
        project = self.put(projects.deploying(project, self.now))
        attempt = new_attempt(project, prefix, self.now)
        self.tables.add_attempt(attempt)
        self.say(project, "queue", "finished", "its turn has come", data={"seconds": round(max(0.0, waited), 3)})
        self.say(project, "deploy", "started", f"attempt {project.attempt}: builder {attempt.job} is being deployed")
        return attempt

    def runs(self, project: Project) -> Project:
        """A sign of life of its builder."""
        if project.builder is not BuilderState.DEPLOYING:
            return project
        project = self.put(projects.running(project))
        attempt = self.attempt(project)
        seconds = round(max(0.0, self.now - attempt.created), 3) if attempt else 0.0
        self.say(project, "deploy", "finished", "the builder runs", data={"seconds": seconds})
        return project

    def retry(self, project: Project, reason: str) -> Project:
        """The attempt is given up; when its builder is gone, another one begins."""
        self.close_attempt(project)
        project = self.put(projects.retried(project))
        message = f"attempt {project.attempt} was lost, and another one follows: {reason}"
        self.say(project, "deploy", "warning", message, code=BuilderLost.code)
        self.say(project, "remove", "started", "the builder is being removed")
        return project

    def removed(self, project: Project) -> Project:
        """Nothing is left of its builder."""
        project = self.put(projects.removed(project))
        self.say(project, "remove", "finished", "the builder was removed")
        if project.state.ended:
            self.promote(project)
        else:
            self.say(project, "queue", "started", "the project is queued for another attempt")
        return project

    def attempt(self, project: Project) -> Attempt | None:
        """The newest."""
        return self.tables.attempt(project.id, project.attempt) if project.attempt else None

    def close_attempt(self, project: Project) -> None:
        """Its builder is answered 410 from now on."""
        attempt = self.attempt(project)
        if attempt is not None and not attempt.closed:
            self.tables.save_attempt(replace(attempt, closed=True))


def _messages(project: Project, event: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    try:
        return mirror_messages(project, event)
    except Exception:  # noqa: BLE001 - the mirror is no reason for a project not to end
        _log.exception("an event can't be mirrored", extra={"project": project.id, "attempt": project.attempt})
        return []


def only_platforms(result: Mapping[str, Any], platforms: tuple[str, ...]) -> dict[str, Any]:
    """A build's result with these platforms of its images alone."""
    images = {
        actor: {**image, "platforms": {name: one for name, one in image["platforms"].items() if name in platforms}}
        for actor, image in result.get("images", {}).items()
    }
    return {**result, "images": images}
