"""The manager's use cases: what people, builders and FLOps' components ask of it. Every answer is the database's.

Nothing here talks to a git host, a registry or an orchestrator, save `log_text`; that is `reconcile`'s, which `run` starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flops.errors import (
    AccessDenied,
    AttemptOver,
    FlopsError,
    KeyReused,
    OrchestratorUnreachable,
    ProjectDecided,
    ProjectNotFound,
    SlaInvalid,
    TooMany,
    UsageError,
)
from flops.manager import jobs
from flops.manager.bus import Bus
from flops.manager.clock import SystemClock
from flops.manager.incoming import is_tagging, judge_events
from flops.manager.ledger import Ledger
from flops.manager.project import Project, State
from flops.manager.reconcile import Reconciler
from flops.manager.sla import parse_sla, recipe_of
from flops_wire.events import TERMINAL_KINDS, event
from flops_wire.manager import TEXT_LIMIT

if TYPE_CHECKING:
    from flops.manager.bus import Subscription
    from flops.manager.clock import Clock
    from flops.manager.ledger import Entry
    from flops.manager.lookups import Images, Sources
    from flops.manager.orchestrators import Orchestrator
    from flops.manager.project import Attempt
    from flops.manager.settings import ManagerSettings
    from flops.manager.store import Store

_log = logging.getLogger("flops.manager")
KEY_LIMIT = 255
#: Code of an event that tells what one of FLOps' components sent to the observer's port.
MESSAGE = "MESSAGE"
#: Characters of what builders printed that one answer holds.
LOG_LIMIT = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class Submission:
    project: Project
    created: bool
    """False where the idempotency key stood for this request already."""


@dataclass(frozen=True, kw_only=True)
class Page:
    projects: tuple[Project, ...]
    """Newest first."""
    total: int


class Manager:
    """Thread-safe; the store is opened and closed by whoever made it. Answers come from any thread, `run` does the work."""

    def __init__(
        self,
        store: Store,
        *,
        orchestrator: Orchestrator,
        sources: Sources,
        images: Images,
        settings: ManagerSettings,
        bus: Bus | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.bus = bus or Bus()
        self._store = store
        self._sources = sources
        self._orchestrator = orchestrator
        self._clock = clock or SystemClock()
        self._ledger = Ledger(store, self.bus, self._clock, mirror=settings.mirror)
        self._tallies: Counter[str] = Counter()
        self._guard = threading.Lock()
        self.reconciler = Reconciler(
            self._ledger, orchestrator=orchestrator, sources=sources, images=images, settings=settings
        )

    # --- for people ---
    def submit(self, document: object, *, idempotency_key: str | None = None, force: bool = False) -> Submission:
        """Accept a project; its commit is asked for afterwards. SlaInvalid, CredentialUnknown, BadUrl, BlockedAddress,
        CredentialInUrl, BadRef; KeyReused, TooMany.
        """
        if idempotency_key is not None and not 0 < len(idempotency_key) <= KEY_LIMIT:
            raise UsageError(f"an idempotency key has 1 to {KEY_LIMIT} characters")
        request = _digest(document, force)
        if idempotency_key is not None:
            with self._store.read() as tables:
                known = self._known(tables.keyed(idempotency_key), request)
                found = tables.project(known) if known else None
            if found is not None:
                return Submission(project=found, created=False)
        project = self._accepted(document, force)
        with self._ledger.entry() as entry:
            if idempotency_key is not None:
                known = self._known(entry.tables.keyed(idempotency_key), request)
                if known is not None:
                    return Submission(project=entry.project(known), created=False)
            if entry.tables.unfinished() >= self.settings.projects:
                raise TooMany(
                    f"{self.settings.projects} projects have not ended yet",
                    hint="wait for some of them, then try again",
                )
            entry.tables.insert(project)
            if idempotency_key is not None:
                entry.tables.add_key(idempotency_key, request, project.id)
            entry.say(project, "queue", "started", "the project was accepted")
            for warning in project.warnings:
                entry.say(project, "queue", "warning", f"SLA: {warning}")
        self.reconciler.wake()
        _log.info("project accepted", extra={"project": project.id})
        return Submission(project=project, created=True)

    def project(self, id: str) -> Project:  # noqa: A002 - the API's word
        with self._store.read() as tables:
            found = tables.project(id)
        if found is None:
            raise _unknown(id)
        return found

    def projects(self, *, limit: int, offset: int = 0, state: State | None = None) -> Page:
        with self._store.read() as tables:
            found, total = tables.page(limit=limit, offset=offset, state=state)
        return Page(projects=found, total=total)

    def events(self, id: str, *, after: int = 0, limit: int = 500) -> list[dict[str, Any]]:  # noqa: A002
        """Stored events with greater sequences, in order. ProjectNotFound."""
        with self._store.read() as tables:
            if tables.project(id) is None:
                raise _unknown(id)
            return tables.events(id, after=after, limit=limit)

    def subscribe(self, id: str, *, after: int | None = None) -> Subscription:  # noqa: A002
        """Live events; from `after` on (a sequence, 0 for all) those too that are stored, or else from now on. ProjectNotFound."""
        with self._store.read() as tables:
            if tables.project(id) is None:
                raise _unknown(id)
            last = tables.last_event(id)
        begin = after if after is not None else last["sequence"] if last else 0
        return self.bus.subscribe(id, after=begin, stored=self._stored)

    def cancel(self, id: str) -> Project:  # noqa: A002
        """ProjectNotFound; ProjectDecided once the tags move, and after the end."""
        with self._ledger.entry() as entry:
            project = entry.project(id)
            if project.state.ended:
                raise ProjectDecided(
                    f"project {id} has ended already: {project.state.value}", hint="there is nothing left to cancel"
                )
            if project.tagging:
                raise ProjectDecided(
                    f"project {id} is moving its images' tags", hint="it ends in a moment; the images stay usable"
                )
            project = entry.cancel(project)
        self.reconciler.wake()
        return project

    def log_text(self, id: str) -> str:  # noqa: A002
        """What its builders printed, each attempt's last part, and the messages of FLOps' components. ProjectNotFound."""
        with self._store.read() as tables:
            project = tables.project(id)
            if project is None:
                raise _unknown(id)
            attempts = tables.attempts(id)
            messages = tables.messages(id, code=MESSAGE)
        parts = []
        for attempt in attempts:
            text = attempt.logs if attempt.logs is not None else self._live_logs(project, attempt)
            if text:
                parts.append(f"--- attempt {attempt.number} ({attempt.job}) ---\n{text.rstrip()}\n")
        if messages:
            parts.append("--- messages ---\n" + "".join(f"{one['time']} {one['message']}\n" for one in messages))
        return "".join(parts)[-LOG_LIMIT:]

    # --- for builders ---
    def job(self, id: str, attempt: int, token: str) -> dict[str, Any]:  # noqa: A002
        """The attempt's work, with credentials. AccessDenied, AttemptOver."""
        with self._store.read() as tables:
            project = self._admit(tables.project(id), tables.attempt(id, attempt), token)
        return jobs.job_document(project, attempt, recipe_of(project.sla), self.settings, now=self._clock.now())

    def post_events(self, id: str, attempt: int, token: str, events: list[dict[str, Any]]) -> dict[str, int]:  # noqa: A002
        """Commit a builder's events; those that are known by their ids are passed over.

        The answer to the event TAGGING is the leave to move tags. AccessDenied, AttemptOver, UsageError; DiskFull.
        """
        with self._store.read() as tables:
            found = tables.attempt(id, attempt)
            if found is None or not jobs.opens(found, token):
                raise _denied()
        judged = judge_events(events, project=id, attempt=attempt)
        stored = [one for one in judged if one["kind"] != "progress"]
        if stored:
            with self._ledger.entry() as entry:
                over = self._take(entry, id, attempt, stored)
            if over:
                self.reconciler.wake()
        elif found.closed:
            raise _over(id, attempt)
        for one in judged:
            if one["kind"] == "progress":
                self.bus.broadcast(id, {**one, "sequence": None})
        return {"accepted": len(judged)}

    # --- for FLOps' components ---
    def note(self, id: str, text: str) -> None:  # noqa: A002
        """A message for a project's observer. One for an unknown project is dropped and counted."""
        message = text.strip()[:TEXT_LIMIT].encode("utf-8", "replace").decode()
        if not message:
            return
        with self._ledger.entry() as entry:
            project = entry.tables.project(id)
            if project is None or entry.tables.event_count(id) >= self.settings.events:
                self._count("notes_dropped")
                return
            last = entry.tables.last_event(id)
            entry.tell(project, event(last["stage"] if last else "queue", "warning", message, code=MESSAGE))
        self._count("notes")

    # --- for operators ---
    def counts(self) -> dict[str, dict[str, int]]:
        """Projects by state, builders by state."""
        with self._store.read() as tables:
            states, builders = tables.counts()
        return {"projects": states, "builders": builders}

    def statistics(self) -> dict[str, int | float]:
        """Numbers since the start, the length of the mirror's outbox, and how long ago the reconciler was last at work."""
        with self._guard:
            tallies = dict(self._tallies)
        return {
            "events": 0,
            "events_dropped": 0,
            "notes": 0,
            "notes_dropped": 0,
            **tallies,
            "subscriptions": self.bus.readers,
            "outbox": self._store.outbox_count(),
            "reconciled_seconds_ago": self.reconciler.idle_seconds(),
        }

    # --- its life ---
    def run(self, stop: threading.Event) -> None:
        """Start to work, in threads, until `stop` is set. OrchestratorError, BadSetting where builders can't be run at all;
        an orchestrator that does not answer is waited for.
        """
        try:
            self._orchestrator.prepare()
        except OrchestratorUnreachable as error:
            _log.warning("the orchestrator does not answer yet: %s", error)
        self.reconciler.start(stop)

    def close(self) -> None:
        """End the threads. Builders go on; the next manager over this database finds them."""
        self.reconciler.close()

    # --- inside ---
    def _accepted(self, document: object, force: bool) -> Project:
        sla = parse_sla(document, names=self.settings.credentials, registry=self.settings.registry)
        place = self._sources.judge(sla.url, ref=sla.ref, subdir=sla.subdir)
        return Project(
            id=secrets.token_hex(12),
            repository=place.text,
            ref=sla.ref,
            subdir=sla.subdir,
            recipe=sla.recipe.digest,
            platforms=tuple(platform.value for platform in sla.platforms),
            sla=sla.to_json(),
            warnings=sla.warnings,
            force=force,
            created=self._clock.now(),
        )

    @staticmethod
    def _known(keyed: tuple[str, str] | None, request: str) -> str | None:
        """The project that a key stands for."""
        if keyed is None:
            return None
        if keyed[0] != request:
            raise KeyReused(
                "this idempotency key stands for another request", hint="use a new key for each new request"
            )
        return keyed[1]

    @staticmethod
    def _admit(project: Project | None, attempt: Attempt | None, token: str) -> Project:
        if project is None or attempt is None or not jobs.opens(attempt, token):
            raise _denied()
        if attempt.closed:
            raise _over(project.id, attempt.number)
        return project

    def _take(self, entry: Entry, id: str, attempt: int, events: list[dict[str, Any]]) -> bool:  # noqa: A002
        """Enter a builder's events; whether the project has ended with them."""
        project = entry.project(id)
        current = entry.tables.attempt(id, attempt)
        if current is None or current.closed:
            if entry.tables.has_events(id, (one["id"] for one in events)):  # its answer was lost on the way
                return False
            raise _over(id, attempt)
        project = entry.runs(project)
        room = self.settings.events - entry.tables.event_count(id)
        for one in events:
            if one["kind"] in TERMINAL_KINDS:
                self._count("events")
                self._finish(entry, project, one)
                return True
            if is_tagging(one) and not project.tagging:
                project = entry.put(replace(project, tagging=True))
            elif room <= 0:
                self._count("events_dropped")
                continue
            room -= entry.tell(project, one, attempt=attempt)
            self._count("events")
        return False

    @staticmethod
    def _finish(entry: Entry, project: Project, one: dict[str, Any]) -> None:
        if one["kind"] == "succeeded":
            entry.succeed(project, one["data"]["result"], one)
        else:
            entry.fail_by(project, one)

    def _live_logs(self, project: Project, attempt: Attempt) -> str:
        if attempt.number != project.attempt or not project.builder.deployed:
            return ""
        try:
            return self._orchestrator.logs(attempt.job, dict(attempt.handle) if attempt.handle else None)
        except FlopsError as error:
            return f"({error.message})"

    def _stored(self, project: str, after: int, limit: int) -> list[dict[str, Any]]:
        with self._store.read() as tables:
            return tables.events(project, after=after, limit=limit)

    def _count(self, what: str) -> None:
        with self._guard:
            self._tallies[what] += 1


def _digest(document: object, force: bool) -> str:
    try:
        text = json.dumps([document, force], sort_keys=True, separators=(",", ":"), default=str)
    except (RecursionError, TypeError) as error:
        raise SlaInvalid("the SLA is nested too deeply", hint="an SLA has two levels") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _unknown(id: str) -> ProjectNotFound:  # noqa: A002
    return ProjectNotFound(f"there is no project {id[:64]!r}", hint="flops project list shows those there are")


def _denied() -> AccessDenied:
    return AccessDenied("this attempt's token is missing or another one", hint="only its own builder may ask here")


def _over(id: str, attempt: int) -> AttemptOver:  # noqa: A002
    return AttemptOver(f"attempt {attempt} of project {id} is over", hint="its builder stops at once")
