"""What a builder may ask of the manager with its attempt's token: its job, and to have its events committed."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flops.errors import AccessDenied, AttemptLimit, AttemptOver, ImagesUnproven
from flops.service import jobs
from flops.service.decision import contradiction
from flops.service.incoming import is_tagging, judge_events
from flops.service.sla import recipe_of
from flops_wire.events import TERMINAL_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from flops.errors import FlopsError
    from flops.service.ledger import Ledger, LedgerEntry
    from flops.service.manager_settings import ManagerSettings
    from flops.service.project import Attempt, Project


NAMES = ("events", "notes", "notes_dropped", "mirror_dropped", "logins_failed")


class Tallies:
    """Thread-safe; every name of NAMES is there from the beginning."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._counts = Counter(dict.fromkeys(NAMES, 0))

    def add(self, name: str, count: int = 1) -> None:
        with self._guard:
            self._counts[name] += count

    def counts(self) -> dict[str, int]:
        with self._guard:
            return dict(self._counts)


class Attempts:
    """Answers builders; `wake` is called where a project has ended."""

    def __init__(
        self, ledger: Ledger, settings: ManagerSettings, tallies: Tallies, *, wake: Callable[[], None]
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._tallies = tallies
        self._wake = wake

    def job(self, project: str, attempt: int, token: str) -> dict[str, Any]:
        """The job document. AccessDenied, AttemptOver."""
        with self._ledger.store.read() as tables:
            found = self._admit(tables.project(project), tables.attempt(project, attempt), token)
        now = self._ledger.clock.now()
        return jobs.job_document(found, attempt, recipe_of(found.sla), self._settings, now=now)

    def admit(self, project: str, attempt: int, token: str) -> Attempt:
        """AccessDenied where this token is not the attempt's, whether that is over or not."""
        with self._ledger.store.read(once=True) as tables:
            found = tables.attempt(project, attempt)
        if found is None or not jobs.opens(found, token):
            raise _denied()
        return found

    def post(self, admitted: Attempt, events: list[dict[str, Any]]) -> dict[str, int]:
        """Commit events; those that are known by their ids are passed over, and progress is told and not kept.

        `admitted` by `admit`, whose token stays good: what may have changed since, its end, is looked at with the commit.
        The answer to the event TAGGING is the leave to move tags. A success is believed once the registry was asked, which
        the reconciler does. AttemptOver, UsageError, ImagesUnproven, AttemptLimit; DiskFull.
        """
        project, attempt = admitted.project, admitted.number
        judged = judge_events(events, project=project, attempt=attempt)
        stored = [one for one in judged if one["kind"] != "progress"]
        if stored:
            with self._ledger.entry() as entry:
                over, refusal = self._take(entry, project, attempt, stored)
            if over:
                self._wake()
            if refusal is not None:
                raise refusal
        elif admitted.closed:
            raise _over(project, attempt)
        for one in judged:
            if one["kind"] == "progress":
                self._ledger.bus.broadcast(project, {**one, "sequence": None})
        return {"accepted": len(judged)}

    @staticmethod
    def _admit(project: Project | None, attempt: Attempt | None, token: str) -> Project:
        if project is None or attempt is None or not jobs.opens(attempt, token):
            raise _denied()
        if attempt.closed:
            raise _over(project.id, attempt.number)
        return project

    def _take(
        self, entry: LedgerEntry, number: str, attempt: int, events: list[dict[str, Any]]
    ) -> tuple[bool, FlopsError | None]:
        """Enter a builder's events; whether the attempt has ended with them, and what its builder is answered then."""
        project = entry.project(number)
        current = entry.tables.attempt(number, attempt)
        if current is None or current.closed:
            claimed = current.claim["id"] if current is not None and current.claim is not None else None
            known = (one["id"] for one in events if one["id"] != claimed)
            if entry.tables.has_events(number, known):  # its answer was lost on the way
                return False, None
            raise _over(number, attempt)
        project = entry.runs(project)
        if (error := self._above(project, current, events)) is not None:
            entry.fail(project, error, stage=entry.stage(project))
            return True, error
        for one in events:
            if one["kind"] in TERMINAL_KINDS:
                self._tallies.add("events")
                return True, self._finish(entry, project, current, one)
            if is_tagging(one):
                current = replace(current, move=one["data"])
                entry.tables.save_attempt(current)
                project = entry.put(replace(project, tagging=True))
            entry.tell(project, one, attempt=attempt)
            self._tallies.add("events")
        return False, None

    def _above(self, project: Project, attempt: Attempt, events: list[dict[str, Any]]) -> FlopsError | None:
        """Its outcome is always taken, and so is its question for leave until it has that."""
        free = [one for one in events if one["kind"] in TERMINAL_KINDS or (is_tagging(one) and not project.tagging)]
        more = len(events) - len(free)
        most, most_bytes = self._settings.events, self._settings.event_bytes
        if not more or (attempt.events + more <= most and attempt.bytes < most_bytes):
            return None
        return AttemptLimit(
            f"attempt {attempt.number} reported more than {most} events or {most_bytes} bytes of them",
            hint="a build reports some hundred; look at the last ones for what is repeated",
        )

    @staticmethod
    def _finish(entry: LedgerEntry, project: Project, attempt: Attempt, one: dict[str, Any]) -> FlopsError | None:
        if one["kind"] != "succeeded":
            entry.fail_by(project, one)
            return None
        if wrong := contradiction(project, attempt.move, one["data"]["result"]):
            error = ImagesUnproven(
                f"the builder's success is not believed: {wrong}", hint="use the same version for manager and builders"
            )
            entry.fail(project, error, stage="push")
            return error
        entry.tables.save_attempt(replace(attempt, claim=one, closed=True))
        return None


def _denied() -> AccessDenied:
    return AccessDenied("this attempt's token is missing or another one", hint="only its own builder may ask here")


def _over(project: str, attempt: int) -> AttemptOver:
    return AttemptOver(f"attempt {attempt} of project {project} is over", hint="its builder stops at once")
