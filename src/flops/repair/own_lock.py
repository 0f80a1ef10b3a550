"""A repository's own lock, taken as the lock: its versions from our index, not resolved again, with the hashes that it names."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from flops.errors import Finding, NoWheel, Unresolvable
from flops.recipe import Policy
from flops.repair import lock_findings
from flops.repair.doctor import FoundLocks
from flops.repair.lock_findings import withdrawn
from flops.repair.pythons import Wish, order
from flops.repair.pythons import adjustments as python_adjustments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.formats.requirements import Requirements
    from flops.locking.lock import Lock, Locker
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.repair.pythons import PythonChoice


def resolve(
    requirements: Requirements,
    platforms: Sequence[Platform],
    pythons: Sequence[PythonChoice],
    *,
    locker: Locker,
    policy: Policy,
    python_flag: str | None,
    reporter: Reporter,
    otherwise: Callable[[], FoundLocks],
) -> FoundLocks:
    """The repository's own lock where it has one that can be taken, else what `otherwise` finds; a finding says which.

    Errors as `take`, and those of `otherwise`.
    """
    own = take(
        requirements,
        platforms,
        pythons,
        locker=locker,
        policy=policy,
        python_flag=python_flag,
        reporter=reporter,
    )
    path = requirements.path
    if own is not None:
        count = len({entry.name for entry in requirements.entries})
        taken = Finding(path=path, line=0, code="LOCK_TAKEN", message=f"taken as the lock: {count} packages")
        return replace(own, findings=(*own.findings, taken))
    found = otherwise()
    if not requirements.complete:
        return found
    message = "no Python that it is for has all of its wheels on this builder's index: its versions were taken as pins"
    hint = f"lock for Python {found.python.minor}"
    left = Finding(path=path, line=0, code="LOCK_NOT_TAKEN", message=message, hint=hint)
    return replace(found, findings=(*found.findings, left))


def take(
    requirements: Requirements,
    platforms: Sequence[Platform],
    pythons: Sequence[PythonChoice],
    *,
    locker: Locker,
    policy: Policy,
    python_flag: str | None,
    reporter: Reporter,
) -> FoundLocks | None:
    """One lock per platform that holds exactly the entries; None where no Python that is wished for has wheels for all.

    IndexUnreachable, LockTimeout; PythonUnavailable where `--python` names one that is not offered.
    """
    if not requirements.complete:
        return None
    wish = Wish.read(requirements.python, python_flag)
    for choice in order(wish, pythons):
        if wish is not None and not wish.fits(choice) and not (python_flag and wish.names_minor_of(choice)):
            continue
        moved = python_adjustments(requirements.python, wish, choice, pythons)
        if moved and policy is Policy.STRICT and python_flag is None:
            return None
        locks = _locks(requirements, platforms, choice, locker)
        if locks is not None:
            for adjustment in moved:
                reporter.adjusted(adjustment)
            findings = tuple(withdrawn(locks, requirements))
            return FoundLocks(python=choice, locks=locks, adjustments=moved, findings=findings)
    return None


def compare_hashes(
    requirements: Requirements, locks: Mapping[Platform, Lock], reporter: Reporter
) -> tuple[Finding, ...]:
    """As `file_hashes.compare`, for all platforms alike; what is noted is reported."""
    notes = lock_findings.compare(dict.fromkeys(locks, requirements.entries), locks)
    for note in notes:
        reporter.finding(note)
    return notes


def _locks(
    requirements: Requirements, platforms: Sequence[Platform], choice: PythonChoice, locker: Locker
) -> dict[Platform, Lock] | None:
    lines = [entry.pep508 for entry in requirements.entries]
    with ThreadPoolExecutor(max(1, len(platforms))) as pool:
        futures = {
            platform: pool.submit(
                locker.lock,
                lines,
                platform=platform,
                python=choice.version,
                glibc=choice.glibc,
                dependencies=False,
            )
            for platform in platforms
        }
    try:
        return {platform: future.result() for platform, future in futures.items()}
    except (Unresolvable, NoWheel):
        return None
