"""Decides what is installed: the locks, with CPU or CUDA builds, with what the code imports, and without trackers.

Everything is decided by locks alone, before any wheel is fetched.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flops.errors import Finding, FlopsError, ImportMissing, NoWheel, Unresolvable
from flops.formats import requirements as requirement_files
from flops.progress import Stage
from flops.recipe import Policy
from flops.repair import accelerator, lock_findings, pythons, trackers
from flops.repair.additions import Additions
from flops.repair.doctor import FoundLocks, LockRequest, find_locks

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flops.errors import Adjustment
    from flops.formats.requirements import Requirements
    from flops.locking.lock import Lock, Locker
    from flops.platforms import Platform
    from flops.repair.accelerator import CudaPackages
    from flops.repair.inspection import Inspection
    from flops.repair.pythons import PythonChoice
    from flops.wheels.provides import Provides

__all__ = ["LockRequest", "Resolution", "lock_requirements", "resolve", "use_own_lock"]


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What the images will hold, and what there is to report about it."""

    python: PythonChoice
    locks: Mapping[Platform, Lock]
    adjustments: tuple[Adjustment, ...]
    """Those of the dependency file come before them."""
    findings: tuple[Finding, ...] = ()
    cuda: Mapping[Platform, CudaPackages]
    cpu_refusal: str = ""
    """Why PyTorch's CPU builds are not used; empty where they are, or where none are needed."""


def resolve(inspection: Inspection, request: LockRequest, *, locker: Locker, provides: Provides) -> Resolution:
    """Lock what the repository requires and what its code imports, without packages that report a learner's training.

    Errors as `find_locks`; WheelHash; ImportMissing where the policy STRICT forbids to add a package.
    """
    reporter = request.reporter
    modules = frozenset(item.module for item in inspection.structure.imports if item.reached)
    files = inspection.checkout.read(requirement_files.is_candidate)

    def solve(requirements: Requirements, locker: Locker) -> FoundLocks:
        return lock_requirements(requirements, request, locker=locker, modules=modules, files=files)

    requirements, removed = trackers.without(inspection.requirements)
    choice = accelerator.choose(requirements, request, locker=locker, solve=solve)
    if choice.warning:
        hint = "set FLOPS_TORCH_INDEX to an index of CPU builds that answers, or use --accelerator cuda if this is intended"
        reporter.warning(Stage.RESOLVE, choice.warning, hint=hint)
    added: tuple[Adjustment, ...] = ()
    missing: tuple[Finding, ...] = ()
    try:
        choice, added, missing = Additions(inspection, request, solve=solve, provides=provides).added(choice)
    except ImportMissing:
        raise
    except FlopsError as error:
        reporter.warning(Stage.RESOLVE, f"imports were not compared with the packages: {error.message}")
    found = choice.found
    for message, hint in found.warnings:
        reporter.warning(Stage.RESOLVE, message, hint=hint)
    wheels = [wheel for lock in found.locks.values() for wheel in lock.wheels]
    excluded = lock_findings.python_excluded(found.locks, provides.pythons(wheels), choice.requirements)
    adjustments = (*removed, *choice.adjustments, *found.adjustments, *added)
    for adjustment in adjustments:
        reporter.adjusted(adjustment)
    findings = (*missing, *found.findings, *excluded, *trackers.brought(choice.requirements, found.locks, provides))
    for finding in findings:
        reporter.finding(finding)
    notes = lock_findings.compare_hashes(dict.fromkeys(found.locks, inspection.requirements.entries), found.locks)
    for note in notes:
        reporter.finding(note)
    return Resolution(
        python=found.python,
        locks=found.locks,
        adjustments=adjustments,
        findings=(*findings, *notes),
        cuda=choice.cuda,
        cpu_refusal=choice.cpu_refusal,
    )


def lock_requirements(
    requirements: Requirements,
    request: LockRequest,
    *,
    locker: Locker,
    modules: Collection[str] = (),
    files: Mapping[str, bytes] | None = None,
) -> FoundLocks:
    """The repository's own lock where it has one that can be used, else what `find_locks` finds; a finding says which."""
    own = use_own_lock(requirements, request, locker=locker)
    if own is not None:
        count = len({entry.name for entry in requirements.entries})
        note = Finding(path=requirements.path, line=0, code="LOCK_TAKEN", message=f"used as the lock: {count} packages")
        return replace(own, findings=(*own.findings, note))
    found = find_locks(requirements, request, locker=locker, modules=modules, files=files)
    if not requirements.complete:
        return found
    message = (
        "the package index lacks some of its wheels for every Python that it allows: its versions were used as pins"
    )
    hint = f"lock for Python {found.python.minor}"
    note = Finding(path=requirements.path, line=0, code="LOCK_NOT_TAKEN", message=message, hint=hint)
    return replace(found, findings=(*found.findings, note))


def use_own_lock(requirements: Requirements, request: LockRequest, *, locker: Locker) -> FoundLocks | None:
    """One lock per platform with exactly the repository's own versions, from our index; nothing is resolved again.

    None where the repository has no lock, or where the index lacks wheels for every Python that it allows. IndexUnreachable,
    LockTimeout; PythonUnavailable where `--python` requests one that is not offered.
    """
    if not requirements.complete:
        return None
    flag = request.recipe.python
    constraint = pythons.PythonConstraint.read(requirements.python, flag)
    for choice in pythons.by_nearness(constraint, request.pythons):
        if constraint and not (constraint.allows_minor_of(choice) if flag else constraint.allows(choice)):
            continue
        moved = pythons.adjustments(requirements.python, constraint, choice, request.pythons)
        if moved and request.recipe.policy is Policy.STRICT and flag is None:
            return None
        locks = _own_locks(requirements, request.platforms, choice, locker)
        if locks is not None:
            findings = tuple(lock_findings.withdrawn(locks, requirements))
            return FoundLocks(python=choice, locks=locks, adjustments=moved, findings=findings)
    return None


def _own_locks(
    requirements: Requirements, platforms: Collection[Platform], choice: PythonChoice, locker: Locker
) -> dict[Platform, Lock] | None:
    lines = [entry.pep508 for entry in requirements.entries]

    def own(platform: Platform) -> Lock:
        return locker.lock(lines, platform=platform, python=choice.version, glibc=choice.glibc, dependencies=False)

    with ThreadPoolExecutor(max(1, len(platforms))) as pool:
        try:
            return dict(zip(platforms, pool.map(own, platforms), strict=True))
        except (Unresolvable, NoWheel):
            return None
