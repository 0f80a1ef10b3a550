"""What is done for one project at a time: resolve its commit, deploy its builder, look at it, remove it.

Each step asks the outside first and enters what came of it then, if the project still stands where it stood: meanwhile its
builder may have told its outcome, or somebody cancelled it. A step that was cut short anywhere is simply taken again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from flops.errors import (
    DiskFull,
    FlopsError,
    ImagesUnproven,
    OrchestratorUnreachable,
    RegistryRefused,
    RegistryUnreachable,
    StoreError,
)
from flops.service import jobs
from flops.service.decision import Verdict, decide, is_over
from flops.service.existing_images import StandingImages
from flops.service.project import BuilderState, State

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flops.orchestrators import Handle, Orchestrator, Status
    from flops.service.decision import Decision
    from flops.service.existing_images import Images, Sources
    from flops.service.ledger import Ledger, LedgerEntry
    from flops.service.manager_settings import ManagerSettings
    from flops.service.project import Attempt, Project
    from flops.use_cases.lookup import ProjectSource

_log = logging.getLogger("flops.service")
#: Characters of what a builder printed that are kept.
LOG_LIMIT = 64 * 1024


class Next(Enum):
    NOW = "now"
    """Something changed: look again at once."""
    LATER = "later"
    """Nothing changed: look again at the usual pace."""
    AGAIN = "again"
    """It did not work: once more, after a growing pause."""


class Steps:
    """May be called for different projects at the same time, for one project from one thread at a time."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        orchestrator: Orchestrator,
        sources: Sources,
        images: Images,
        settings: ManagerSettings,
    ) -> None:
        self._ledger = ledger
        self._orchestrator = orchestrator
        self._sources = sources
        self._images = StandingImages(images, settings)
        self._settings = settings
        self._tokens: dict[str, str] = {}  # of builders that are being deployed, by job

    # --- before there is a builder ---
    def resolve(self, project: Project) -> Next:
        """Ask for its commit, once; take images that stand already; else queue it, or let it wait for another project."""
        try:
            place = self._sources.judge(project.repository, ref=project.ref, subdir=project.subdir)
            project = self._with_commit(project, place)
        except (DiskFull, StoreError):
            raise
        except FlopsError as error:
            with self._ledger.entry() as entry:
                if (current := _unmoved(entry, project)) is not None:
                    entry.fail(current, error, stage="queue")
            return Next.NOW
        result = None if project.force or self._is_led(project) else self._images.found(project, place)
        with self._ledger.entry() as entry:
            current = _unmoved(entry, project)
            if current is None:
                return Next.NOW
            leader = entry.tables.leader(current)
            if result is not None:
                entry.succeed(current, result, message="images of this commit and recipe were there already")
            elif leader is not None:
                entry.follow(current, leader)
            else:
                entry.queue(current, places=self._settings.builders)
        return Next.NOW

    def admit(self, prefix: str, *, not_counted: Collection[str] = ()) -> list[Project]:
        """Give free places to those that waited longest. A builder that can't be removed (`not_counted`) takes none."""
        with self._ledger.store.read() as tables:
            taken = sum(one.id not in not_counted for one in tables.deployed())
            free = self._settings.builders - taken
            waiting = tables.queued(limit=free) if free > 0 else []
        admitted = []
        for project in waiting:
            with self._ledger.entry() as entry:
                current = entry.project(project.id)
                if current.builder is BuilderState.QUEUED:
                    entry.admit(current, prefix)
                    admitted.append(entry.project(project.id))
        return admitted

    # --- while there is one ---
    def deploy(self, project: Project) -> Next:
        """Start its builder, or find the one that an interrupted try has started."""
        if (decision := self._decide(project, None)).error is not None:
            return self._act(project, decision)
        attempt, token = self._with_token(project)
        try:
            handle = self._orchestrator.deploy(jobs.deployment(attempt, token, self._settings), _handle(attempt))
        except (OrchestratorUnreachable, DiskFull) as error:
            _log.warning("deploying later: %s", error, extra=_about(project))
            return Next.AGAIN
        except FlopsError as error:
            with self._ledger.entry() as entry:
                if (current := _same_attempt(entry, project)) is not None:
                    entry.fail(current, error, stage="deploy")
            return Next.NOW
        with self._ledger.entry() as entry:
            kept = entry.tables.attempt(project.id, project.attempt)
            if kept is not None:
                entry.tables.save_attempt(replace(kept, handle=handle))
        self._tokens.pop(attempt.job, None)
        return Next.NOW

    def watch(self, project: Project) -> Next:
        """See how its builder stands, and act on it."""
        attempt = self._attempt(project)
        status, trouble = None, ""
        try:
            status = self._orchestrator.status(attempt.job, _handle(attempt) or {})
        except FlopsError as error:
            trouble = error.message
            _log.warning("the builder's status is not known: %s", error, extra=_about(project))
        decision = self._decide(project, status, trouble)
        if decision.verdict is Verdict.STAY:
            return Next.AGAIN if trouble else Next.LATER
        return self._act(project, decision)

    def prove(self, project: Project) -> Next:
        """Ask the registry for what its builder reported, and believe nothing else."""
        attempt = self._attempt(project)
        proof, error = None, None
        try:
            place = self._sources.judge(project.repository, ref=project.ref, subdir=project.subdir)
            proof = self._images.proof(project, place, attempt)
        except FlopsError as failure:
            error = failure
            over = is_over(project, now=self._ledger.clock.now(), seconds=self._settings.project_seconds)
            if isinstance(failure, RegistryUnreachable | RegistryRefused) and not over:  # a proxy may answer for it
                self._tell_once(project, f"the registry is asked again for the builder's images: {failure.message}")
                return Next.AGAIN
        with self._ledger.entry() as entry:
            current = _same_attempt(entry, project)
            kept = entry.attempt(current) if current is not None else None
            if current is None or kept is None or kept.claim is None:
                return Next.NOW
            entry.tables.save_attempt(replace(kept, claim=None))
            if proof is not None:
                result = _believed(kept.claim["data"]["result"], proof)
                entry.succeed(current, result, {**kept.claim, "data": {"result": result}})
            else:
                entry.fail(current, error or _unproven(), stage="push")
        return Next.NOW

    def remove(self, project: Project) -> Next:
        """Take away what there is of its builder, and keep what it printed."""
        attempt = self._attempt(project)
        handle = _handle(attempt)
        if attempt.logs is None:
            self._keep_logs(attempt, handle)
        if not self._orchestrator.remove(attempt.job, handle):
            return Next.AGAIN
        self._tokens.pop(attempt.job, None)
        with self._ledger.entry() as entry:
            current = entry.project(project.id)
            if current.builder is BuilderState.REMOVING and current.attempt == project.attempt:
                entry.removed(current)
        return Next.NOW

    def remove_orphans(self, prefix: str) -> int:
        """End builders of this manager that it knows nothing of; how many there were."""
        with self._ledger.store.read() as tables:
            known = tables.jobs()
        found = self._orchestrator.orphans(prefix, known)
        if not found:
            return 0
        with self._ledger.store.read() as tables:  # one that was deployed meanwhile is none
            orphans = {job: handle for job, handle in found.items() if job not in tables.jobs()}
        for job, handle in orphans.items():
            _log.warning("an unknown builder is removed", extra={"job": job})
            self._orchestrator.remove(job, dict(handle))
        return len(orphans)

    # --- inside ---
    def _with_commit(self, project: Project, place: ProjectSource) -> Project:
        if project.commit is not None or place.local:
            return project
        commit = self._sources.commit(place, project.ref, jobs.git_login(project, self._settings))
        with self._ledger.entry() as entry:
            current = _unmoved(entry, project)
            return entry.put(replace(current, commit=commit)) if current is not None else project

    def _is_led(self, project: Project) -> bool:
        with self._ledger.store.read() as tables:
            leader = tables.leader(project)
        return leader is not None and not leader.state.ended  # else its images stand, or it is no longer of use

    def _attempt(self, project: Project) -> Attempt:
        with self._ledger.store.read() as tables:
            found = tables.attempt(project.id, project.attempt)
        if found is None:
            raise StoreError(f"attempt {project.attempt} of project {project.id} is not in the database")
        return found

    def _with_token(self, project: Project) -> tuple[Attempt, str]:
        """A token that the database knows before a builder has it; the one of an earlier try of this process again."""
        attempt = self._attempt(project)
        if (known := self._tokens.get(attempt.job)) is not None:
            return attempt, known
        attempt, token = jobs.with_token(attempt)
        with self._ledger.entry() as entry:
            kept = entry.tables.attempt(project.id, project.attempt) or attempt
            entry.tables.save_attempt(replace(kept, tokens=attempt.tokens))
        self._tokens[attempt.job] = token
        return attempt, token

    def _decide(self, project: Project, status: Status | None, trouble: str = "") -> Decision:
        return decide(
            project, status, now=self._ledger.clock.now(), seconds=self._settings.project_seconds, trouble=trouble
        )

    def _act(self, project: Project, decision: Decision) -> Next:
        result = None
        if decision.verdict is Verdict.PROVE:
            try:
                place = self._sources.judge(project.repository, ref=project.ref, subdir=project.subdir)
                result = self._images.proof(project, place, self._attempt(project))
            except FlopsError as error:
                _log.warning(
                    "the registry can't be asked for a lost builder's images: %s", error, extra=_about(project)
                )
                if not is_over(project, now=self._ledger.clock.now(), seconds=self._settings.project_seconds):
                    return Next.AGAIN
        with self._ledger.entry() as entry:
            current = _same_attempt(entry, project)
            if current is None:
                return Next.NOW
            attempt = entry.attempt(current)
            if current.tagging != project.tagging or (attempt is not None and attempt.claim is not None):
                return Next.NOW  # it got its leave meanwhile, or reported success: judged anew
            if result is not None:
                entry.succeed(current, result, message="the builder was lost, and the registry holds all of its images")
            elif decision.error is not None:
                entry.fail(current, decision.error, stage=entry.stage(current))
            elif decision.verdict is Verdict.RETRY:
                entry.retry(current, decision.reason)
            elif decision.verdict is Verdict.RUNNING:
                entry.runs(current)
        return Next.NOW

    def _tell_once(self, project: Project, message: str) -> None:
        _log.warning("%s", message, extra=_about(project))
        with self._ledger.entry() as entry:
            current, last = _same_attempt(entry, project), entry.tables.last_event(project.id)
            if current is not None and (last is None or last["message"] != message):
                entry.say(current, "push", "warning", message)

    def _keep_logs(self, attempt: Attempt, handle: Handle | None) -> None:
        try:
            text = self._orchestrator.logs(attempt.job, handle)
        except FlopsError:
            return
        text = text.encode("utf-8", "replace").decode()[-LOG_LIMIT:]
        with self._ledger.entry() as entry:
            kept = entry.tables.attempt(attempt.project, attempt.number)
            if kept is not None:
                entry.tables.save_attempt(replace(kept, logs=text))


def _unmoved(entry: LedgerEntry, project: Project) -> Project | None:
    """The project as it is now, if it still waits for being resolved."""
    current = entry.project(project.id)
    waiting = current.state is State.ACCEPTED and current.builder is BuilderState.NONE and current.leader is None
    return current if waiting else None


def _same_attempt(entry: LedgerEntry, project: Project) -> Project | None:
    """The project as it is now, if it has not ended and this attempt is its current one."""
    current = entry.project(project.id)
    live = current.builder in (BuilderState.DEPLOYING, BuilderState.RUNNING)
    return current if live and not current.state.ended and current.attempt == project.attempt else None


def _believed(reported: Mapping[str, Any], proof: Mapping[str, Any]) -> dict[str, Any]:
    """A builder's result with what the registry says in its place; titles of layers are the builder's own words."""
    images = {
        actor: {
            **image,
            "platforms": {
                platform: {**one, "layer_sizes": _titled(one, reported["images"][actor]["platforms"][platform])}
                for platform, one in image["platforms"].items()
            },
        }
        for actor, image in proof["images"].items()
    }
    sure = ("repository", "commit", "recipe", "registry")
    return {**reported, **{name: proof[name] for name in sure}, "images": images}


def _titled(one: Mapping[str, Any], reported: Mapping[str, Any]) -> list[dict[str, Any]]:
    layers = reported.get("layer_sizes")
    named = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    titles = {str(layer.get("digest")): str(layer.get("title", "")) for layer in named}
    return [{**layer, "title": titles.get(layer["digest"], "")} for layer in one.get("layer_sizes", ())]


def _unproven() -> FlopsError:
    return ImagesUnproven(
        "the builder reported success, and the registry does not hold the images that it asked to name",
        hint="start the project again: somebody may have named other images of this commit meanwhile",
    )


def _handle(attempt: Attempt) -> Handle | None:
    return dict(attempt.handle) if attempt.handle is not None else None


def _about(project: Project) -> dict[str, Any]:
    return {"project": project.id, "attempt": project.attempt}
