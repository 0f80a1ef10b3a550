"""Brings every project to its end: at start, when something happens, and every few seconds, from what the database says.

Nothing is remembered between two passes but pauses and what is being done right now, so a manager that was killed goes
on where it was. One thread decides what is due; pools do it, so that a git host that hangs delays neither builders nor
projects of most other hosts, and a call to the orchestrator that hangs for one project none of another.
"""

from __future__ import annotations

import logging
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from flops.errors import DiskFull, FlopsError
from flops.service.project import BuilderState
from flops.service.steps import Next, Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from flops.orchestrators import Orchestrator
    from flops.service.existing_images import Images, Sources
    from flops.service.ledger import Ledger
    from flops.service.manager_settings import ManagerSettings
    from flops.service.project import Project
    from flops.service.tables import Tables

_log = logging.getLogger("flops.service")
#: Git hosts share so many lanes, each with so many questions at once: whoever is in another lane than a host that hangs goes on.
LANES = 8
RESOLVERS = 2
#: Calls to the orchestrator at the same time, beyond one for each builder.
SPARE = 8
PAUSE_LIMIT = 60.0
#: A pause that ended so long ago belongs to nothing that is still tried.
FORGET_SECONDS = 600.0
#: Removals that may fail before a builder no longer counts as one that runs.
STUBBORN = 5
ORPHAN_SECONDS = 60.0
RETENTION_SECONDS = 3600.0
DAY = 86_400.0
#: Projects that are forgotten in one transaction.
FORGOTTEN = 20
#: How long `close` waits for steps that are being taken.
CLOSE_SECONDS = 5.0


class TaskKind(Enum):
    RESOLVE = "resolve"
    DEPLOY = "deploy"
    WATCH = "watch"
    PROVE = "prove"
    REMOVE = "remove"


@dataclass(frozen=True, kw_only=True)
class Task:
    kind: TaskKind
    project: Project


@dataclass(kw_only=True)
class _Pause:
    until: float
    tries: int


class Reconciler:
    """`start` makes it work by itself; `due` and `perform` are what it does, to be driven by hand in tests."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        orchestrator: Orchestrator,
        sources: Sources,
        images: Images,
        settings: ManagerSettings,
    ) -> None:
        self.steps = Steps(ledger, orchestrator=orchestrator, sources=sources, images=images, settings=settings)
        self._ledger = ledger
        self._settings = settings
        self._guard = threading.Condition()
        self._busy: set[str] = set()
        self._pauses: dict[tuple[str, TaskKind], _Pause] = {}
        self._news = threading.Event()
        self._thread: threading.Thread | None = None
        self._resolvers: list[ThreadPoolExecutor] = []
        self._housekeeper: ThreadPoolExecutor | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        self._chores: dict[str, float] = {}
        self._passed = self._looked = ledger.clock.monotonic()
        self._prefix = ""

    # --- as a thread ---
    def start(self, stop: threading.Event) -> None:
        self._stop = stop
        self._resolvers = [ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolve") for _ in range(LANES)]
        self._housekeeper = ThreadPoolExecutor(1, thread_name_prefix="chores")
        self._workers = ThreadPoolExecutor(self._settings.builders + SPARE, thread_name_prefix="builders")
        self._thread = threading.Thread(target=self._work, name="reconcile", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and wait a moment for steps that are being taken; they can be taken again."""
        self._stop.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join()
        for pool in (*self._resolvers, self._housekeeper, self._workers):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        with self._guard:
            self._guard.wait_for(lambda: not self._busy, timeout=CLOSE_SECONDS)

    def wake(self) -> None:
        """Something happened that may be acted on."""
        self._news.set()

    def idle_seconds(self) -> float:
        """Since the last whole pass; much more than `poll_seconds` means that nothing is acted on."""
        return max(0.0, self._ledger.clock.monotonic() - self._passed)

    # --- what is due ---
    def due(self) -> list[Task]:
        """What can be done now: for projects with builders, for accepted ones, and for those that get a place."""
        with self._guard:
            busy = set(self._busy)  # before the database is read: what ends in between was read too early
            passed_over = len(busy) + sum(kind is TaskKind.RESOLVE for _, kind in self._pauses)
        with self._ledger.store.read() as tables:
            tasks = [_for_builder(project, tables) for project in tables.deployed()]
            tasks += [
                Task(kind=TaskKind.RESOLVE, project=project)
                for project in tables.unresolved(limit=LANES * RESOLVERS + passed_over)
            ]
        admitted = self.steps.admit(self.prefix, not_counted=self._stubborn())
        tasks += [Task(kind=TaskKind.DEPLOY, project=project) for project in admitted]
        with self._guard:
            now = self._ledger.clock.monotonic()
            self._pauses = {key: one for key, one in self._pauses.items() if one.until + FORGET_SECONDS >= now}
            self._looked = now
            return [
                task
                for task in tasks
                if task.project.id not in busy
                and ((pause := self._pauses.get((task.project.id, task.kind))) is None or pause.until <= now)
            ]

    def perform(self, task: Task) -> Next:
        """Do it, and note when it is to be done again. Whatever goes wrong means: later."""
        step = getattr(self.steps, task.kind.value)
        about = {"project": task.project.id, "attempt": task.project.attempt}
        try:
            outcome: Next = step(task.project)
        except FlopsError as error:
            _log.warning("%s is tried again: %s", task.kind.value, error, extra=about)
            outcome = Next.AGAIN
        except Exception:  # noqa: BLE001 - a bug of ours or of an orchestrator must not end the manager
            _log.exception("%s failed and is tried again", task.kind.value, extra=about)
            outcome = Next.AGAIN
        self._note(task, outcome)
        return outcome

    @property
    def prefix(self) -> str:
        """What the names of all this manager's builders begin with."""
        self._prefix = self._prefix or self._ledger.store.prefix()
        return self._prefix

    def chores(self) -> None:
        """What is due now and then: unknown builders go, old projects are forgotten, nobody waits for nothing."""
        if self._is_due("orphans", ORPHAN_SECONDS):
            self.steps.remove_orphans(self.prefix)
        if self._is_due("retention", RETENTION_SECONDS):
            self.forget()
        if self._is_due("stranded", ORPHAN_SECONDS):
            self._unstrand()

    def forget(self) -> int:
        """Projects that ended long ago, or are too many; how many are gone."""
        before = self._ledger.clock.now() - self._settings.keep_days * DAY
        gone = 0
        while not self._stop.is_set():
            with self._ledger.entry() as entry:
                count = entry.tables.forget(before=before, beyond=self._settings.keep_projects, limit=FORGOTTEN)
            gone += count
            if count < FORGOTTEN:
                break
        return gone

    # --- inside ---
    def _work(self) -> None:
        while not self._stop.is_set():
            self._news.clear()
            try:
                for task in self.due():
                    self._hand_out(task)
                self._passed = self._ledger.clock.monotonic()
                self._hand_out_chores()
            except DiskFull as error:
                _log.warning("waiting for space on the disk: %s", error)
                self._stop.wait(self._settings.retry_seconds)
            except Exception:  # noqa: BLE001
                _log.exception("a pass failed; the next one follows")
                self._stop.wait(self._settings.retry_seconds)
            self._news.wait(self._rest())

    def _hand_out(self, task: Task) -> None:
        resolves = task.kind is TaskKind.RESOLVE and self._resolvers
        pool = self._resolvers[_lane(task.project.repository)] if resolves else self._workers
        with self._guard:
            if pool is None or task.project.id in self._busy:
                return
            self._busy.add(task.project.id)
        self._submit(pool, task.project.id, lambda: self.perform(task))

    def _hand_out_chores(self) -> None:
        name = "chores"
        with self._guard:
            if self._housekeeper is None or name in self._busy:
                return
            self._busy.add(name)
        self._submit(self._housekeeper, name, self._do_chores)

    def _submit(self, pool: ThreadPoolExecutor, name: str, call: Callable[[], object]) -> None:
        def done() -> None:
            with self._guard:
                self._busy.discard(name)
                self._guard.notify_all()

        def work() -> None:
            try:
                call()
            finally:
                done()
                if name != "chores":
                    self.wake()

        try:
            pool.submit(work).add_done_callback(lambda future: done() if future.cancelled() else None)
        except RuntimeError:  # shut down
            done()

    def _do_chores(self) -> None:
        try:
            self.chores()
        except FlopsError as error:
            _log.warning("chores are tried again later: %s", error)
        except Exception:  # noqa: BLE001
            _log.exception("chores failed")

    def _rest(self) -> float:
        """Seconds until the next pause ends, or until it is time to look anyway."""
        with self._guard:
            waiting = [pause for (name, _), pause in self._pauses.items() if name not in self._busy]
        # a pause that was over when we looked is of something no longer due: for it we would look without end
        now = self._ledger.clock.monotonic()
        ends = [max(0.01, pause.until - now) for pause in waiting if pause.until > self._looked]
        return min([self._settings.poll_seconds, *ends])

    def _note(self, task: Task, outcome: Next) -> None:
        key = (task.project.id, task.kind)
        now = self._ledger.clock.monotonic()
        with self._guard:
            before = self._pauses.pop(key, None)
            if outcome is Next.LATER:
                self._pauses[key] = _Pause(until=now + self._settings.poll_seconds, tries=0)
            elif outcome is Next.AGAIN:
                tries = before.tries if before else 0
                pause = min(PAUSE_LIMIT, self._settings.retry_seconds * 2 ** min(tries, 16))
                self._pauses[key] = _Pause(until=now + pause, tries=tries + 1)
            elif task.kind is not TaskKind.RESOLVE:  # its builder's story went on: no old pause holds
                for kind in TaskKind:
                    self._pauses.pop((task.project.id, kind), None)

    def _stubborn(self) -> set[str]:
        with self._guard:
            return {
                name for (name, kind), one in self._pauses.items() if kind is TaskKind.REMOVE and one.tries >= STUBBORN
            }

    def _is_due(self, chore: str, seconds: float) -> bool:
        now = self._ledger.clock.monotonic()
        last = self._chores.get(chore)
        if last is not None and now - last < seconds:
            return False
        self._chores[chore] = now
        return True

    def _unstrand(self) -> None:
        with self._ledger.store.read() as tables:
            found = tables.stranded()
        for project in found:
            with self._ledger.entry() as entry:
                current = entry.project(project.id)
                if current.leader == project.leader and not current.state.ended:
                    entry.put(replace(current, leader=None))


def _lane(repository: str) -> int:
    """The same for all of a host's repositories, and for all directories."""
    host = repository.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return zlib.crc32(host.lower().encode()) % LANES


def _for_builder(project: Project, tables: Tables) -> Task:
    if project.builder is BuilderState.REMOVING:
        return Task(kind=TaskKind.REMOVE, project=project)
    attempt = tables.attempt(project.id, project.attempt)
    if attempt is not None and attempt.claim is not None:
        return Task(kind=TaskKind.PROVE, project=project)
    deployed = attempt is not None and attempt.handle is not None
    return Task(kind=TaskKind.WATCH if deployed else TaskKind.DEPLOY, project=project)
