"""What is installed, decided: the doctor's locks, with the builds that are wanted, what the code imports, and no trackers.

Everything is said about locks, so before any wheel is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flops.errors import Adjustment, Finding, FlopsError, ImportMissing
from flops.formats import requirements as requirement_files
from flops.progress import Silent, Stage
from flops.repair import accelerator, doctor, lock_findings, own_lock, trackers
from flops.repair.additions import Additions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flops.formats.requirements import Requirements
    from flops.locking.lock import Locker
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.recipe import Recipe
    from flops.repair.accelerator import Chosen
    from flops.repair.doctor import FoundLocks, PythonChoice
    from flops.repair.inspection import Inspection
    from flops.wheels.provides import Provides


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What the images will hold, and what there is to say about it."""

    chosen: Chosen
    findings: tuple[Finding, ...]
    adjustments: tuple[Adjustment, ...]
    """All that were made here; those of the requirements file come before them."""

    @property
    def resolution(self) -> FoundLocks:
        return replace(self.chosen.resolution, adjustments=self.adjustments)


@dataclass(frozen=True, kw_only=True)
class LockRequest:
    """What is asked of the doctor, but for the requirements and the locker."""

    platforms: Sequence[Platform]
    pythons: Sequence[PythonChoice]
    recipe: Recipe
    reporter: Reporter


def resolve(seen: Inspection, question: LockRequest, *, locker: Locker, provides: Provides) -> Resolution:
    """Lock what the repository asks for and its code imports, without what would tell about a learner's data.

    Errors as `doctor.resolve` and `own_lock.compare_hashes`; under STRICT ImportMissing where a package would be added.
    """
    reporter = question.reporter
    requirements = trackers.without(seen.requirements)
    doctors = _Doctor(seen, question)
    chosen = accelerator.choose(
        requirements,
        question.recipe.accelerator,
        locker=locker,
        platforms=question.platforms,
        pythons=question.pythons,
        solve=doctors.solve,
    )
    if chosen.told:
        hint = (
            "set FLOPS_TORCH_INDEX to an index of CPU builds that answers; --accelerator cuda says that this is meant"
        )
        reporter.warning(Stage.RESOLVE, chosen.told, hint=hint)
    findings: tuple[Finding, ...] = ()
    added: tuple[Adjustment, ...] = ()
    try:
        chosen, added, findings = Additions(
            seen,
            platforms=question.platforms,
            policy=question.recipe.policy,
            solve=doctors.solve,
            provides=provides,
        ).settled(chosen)
    except ImportMissing:
        raise
    except FlopsError as error:
        reporter.warning(Stage.RESOLVE, f"imports were not compared with the packages: {error.message}")
    resolution = chosen.resolution
    wheels = [wheel for lock in resolution.locks.values() for wheel in lock.wheels]
    foreseen = lock_findings.python_excluded(resolution.locks, provides.pythons(wheels), chosen.requirements)
    findings += (*resolution.findings, *foreseen, *_trackers(chosen, seen, provides))
    adjustments = (
        *requirements.adjustments[len(seen.requirements.adjustments) :],
        *chosen.adjustments,
        *resolution.adjustments,
        *added,
    )
    for adjustment in adjustments:
        reporter.adjusted(adjustment)
    for finding in findings:
        reporter.finding(finding)
    hashes = own_lock.compare_hashes(seen.requirements, resolution.locks, reporter)
    return Resolution(chosen=chosen, findings=(*findings, *hashes), adjustments=adjustments)


class _Doctor:
    """Locks requirements, by the repository's own lock where it has one. What it tells is told once, when all is decided."""

    def __init__(self, seen: Inspection, question: LockRequest) -> None:
        self._question = question
        self._modules = frozenset(item.module for item in seen.structure.imports if item.reached)
        self._files = seen.checkout.read(requirement_files.is_candidate)
        self._reporter = _Untold(question.reporter)

    def solve(self, requirements: Requirements, locker: Locker) -> FoundLocks:
        question = self._question

        def otherwise() -> FoundLocks:
            return doctor.find_locks(
                requirements,
                question.platforms,
                question.pythons,
                locker=locker,
                policy=question.recipe.policy,
                python_flag=question.recipe.python,
                reporter=self._reporter,
                modules=self._modules,
                files=self._files,
            )

        return own_lock.resolve(
            requirements,
            question.platforms,
            question.pythons,
            locker=locker,
            policy=question.recipe.policy,
            python_flag=question.recipe.python,
            reporter=self._reporter,
            otherwise=otherwise,
        )


def _trackers(chosen: Chosen, seen: Inspection, provides: Provides) -> tuple[Finding, ...]:
    locks = chosen.resolution.locks
    try:
        return trackers.brought(chosen.requirements.entries, locks, provides)
    except FlopsError:  # what brings them could not be read; that they are there is certain
        return trackers.unexplained(locks, seen.requirements.path)


class _Untold(Silent):
    """Passes on warnings, each once: of several resolutions only the last one's adjustments and findings count."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._warned: set[str] = set()

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._reporter.warning(stage, message, hint=hint)
