"""The manager's use cases: what people, builders and FLOps' components ask of it. Every answer is the database's.

Nothing here talks to a git host, a registry or an orchestrator, save `log_text`; that is `reconcile`'s, which `run` starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops.errors import (
    FlopsError,
    KeyReused,
    OrchestratorUnreachable,
    ProjectDecided,
    ProjectNotFound,
    SlaInvalid,
    TooMany,
    UsageError,
)
from flops.service.attempts import Attempts, Tallies
from flops.service.bus import Bus
from flops.service.ledger import Ledger, SystemClock
from flops.service.project import Project, State
from flops.service.reconcile import Reconciler
from flops.service.sla import parse_sla
from flops_wire.events import MESSAGE, event
from flops_wire.manager import TEXT_LIMIT

if TYPE_CHECKING:
    import threading

    from flops.orchestrators import Orchestrator
    from flops.service.bus import Subscription
    from flops.service.existing_images import Images, Sources
    from flops.service.ledger import Clock
    from flops.service.manager_settings import ManagerSettings
    from flops.service.project import Attempt
    from flops.service.sla import Sla
    from flops.service.store import Store
    from flops.use_cases.lookup import ProjectSource

_log = logging.getLogger("flops.service")
KEY_LIMIT = 255
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
        self.tallies = Tallies()
        self.reconciler = Reconciler(
            self._ledger, orchestrator=orchestrator, sources=sources, images=images, settings=settings
        )
        self._attempts = Attempts(self._ledger, settings, self.tallies, wake=self.reconciler.wake)

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

    def projects(self, *, limit: int, offset: int = 0, state: State | None = None, text: str = "") -> Page:
        with self._store.read() as tables:
            found, total = tables.page(limit=limit, offset=offset, state=state, text=text)
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
        return self._attempts.job(id, attempt, token)

    def admit(self, id: str, attempt: int, token: str) -> Attempt:  # noqa: A002
        """AccessDenied where this token is not the attempt's, whether that is over or not: asked before a body is read."""
        return self._attempts.admit(id, attempt, token)

    def post_events(self, admitted: Attempt, events: list[dict[str, Any]]) -> dict[str, int]:
        """Commit a builder's events; AttemptOver, UsageError; DiskFull (see `Attempts.post`)."""
        return self._attempts.post(admitted, events)

    # --- for the page's login ---
    def end_session(self, number: str, until: float) -> None:
        """Somebody has logged out: this session stays ended over restarts. DiskFull, StoreError."""
        with self._store.write() as tables:
            tables.end_session(number, until, now=self._clock.now())

    def ended_sessions(self) -> dict[str, float]:
        """By number, with the moment that each would have ended by itself."""
        with self._store.read() as tables:
            return tables.ended_sessions()

    # --- for FLOps' components ---
    def note(self, id: str, text: str) -> None:  # noqa: A002
        """A message for a project's observer. One for an unknown project is dropped and counted."""
        message = text.strip()[:TEXT_LIMIT].encode("utf-8", "replace").decode()
        if not message:
            return
        with self._ledger.entry() as entry:
            project = entry.tables.project(id)
            if project is None or entry.tables.events_beside(id) >= self.settings.notes:
                self.tallies.add("notes_dropped")
                return
            entry.tell(project, event(entry.stage(project), "warning", message, code=MESSAGE))
        self.tallies.add("notes")

    # --- for operators ---
    def counts(self) -> dict[str, dict[str, int]]:
        """Projects by state, builders by state."""
        with self._store.read() as tables:
            states, builders = tables.counts()
        return {"projects": states, "builders": builders}

    def statistics(self) -> dict[str, int | float]:
        """Numbers since the start, the length of the mirror's outbox, and how long ago the reconciler was last at work."""
        return {
            **self.tallies.counts(),
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
        def judge(sla: Sla) -> ProjectSource:
            return self._sources.judge(sla.url, ref=sla.ref, subdir=sla.subdir)

        settings = self.settings
        sla = parse_sla(
            document, names=settings.credentials, registry=settings.registry, bases=settings.base_images, judge=judge
        )
        place = judge(sla)
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


def _digest(document: object, force: bool) -> str:
    try:
        text = json.dumps([document, force], sort_keys=True, separators=(",", ":"), default=str)
    except (RecursionError, TypeError) as error:
        raise SlaInvalid("the SLA is nested too deeply", hint="an SLA has two levels") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _unknown(id: str) -> ProjectNotFound:  # noqa: A002
    return ProjectNotFound(f"there is no project {id[:64]!r}", hint="flops project list shows those there are")
