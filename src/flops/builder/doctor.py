"""From requirements to one lock per platform, repaired where a lock proves that the repair works."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from flops.builder import pins
from flops.builder.diagnosis import explain
from flops.builder.pythons import MOVED, PythonChoice, Wish, order
from flops.builder.pythons import adjustments as python_adjustments
from flops.builder.requirements import with_pyarrow_bound
from flops.builder.trial import Outcome, Trial
from flops.errors import Adjustment, Finding, NoWheel, PythonUnavailable, Unresolvable
from flops.progress import Stage
from flops.recipe import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.builder.lock import Lock, Locker
    from flops.builder.requirement import Requirement
    from flops.builder.requirements import Requirements
    from flops.platforms import Platform
    from flops.progress import Reporter

__all__ = ["PythonChoice", "Resolution", "resolve"]

RELAXED = "PIN_RELAXED"
#: Versions tried for one pin, and locks tried for one set of pins.
NEAREST = 4
LOCKS = 8


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What the images will hold."""

    python: PythonChoice
    locks: Mapping[Platform, Lock]
    adjustments: tuple[Adjustment, ...]
    """The doctor's own; those of the requirements file come before them."""


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A trial that failed, and why as far as single requirements tell."""

    trial: Trial
    outcome: Outcome
    missing: Mapping[Requirement, tuple[Platform, ...]]


@dataclass(frozen=True, kw_only=True)
class _Repair:
    """Lines and locks that work, and what was changed for them."""

    trial: Trial
    lines: Mapping[Platform, tuple[str, ...]]
    locks: Mapping[Platform, Lock]
    adjustments: tuple[Adjustment, ...] = ()


def resolve(
    requirements: Requirements,
    platforms: Sequence[Platform],
    pythons: Sequence[PythonChoice],
    *,
    locker: Locker,
    policy: Policy,
    python_flag: str | None,
    reporter: Reporter,
) -> Resolution:
    """Find one Python and a lock per platform, by the smallest repair that locks on all of them.

    STRICT repairs nothing and names the repairs. PythonUnavailable, PackageNotFound, NoWheel, Unresolvable with
    findings; IndexUnreachable, LockTimeout.
    """
    wish = Wish.read(requirements.python, python_flag)
    repair = _found(requirements.entries, sorted(platforms), order(wish, pythons), wish, locker)
    moved = python_adjustments(requirements.python, wish, repair.trial.choice, pythons)
    if policy is Policy.STRICT:
        _refuse((*(moved if python_flag is None else ()), *repair.adjustments))
    locks, bound = _bound_pyarrow(repair, requirements, reporter)
    adjustments = (*moved, *repair.adjustments, *bound)
    for adjustment in adjustments:
        reporter.adjusted(adjustment)
    return Resolution(python=repair.trial.choice, locks=locks, adjustments=adjustments)


def _found(
    entries: Sequence[Requirement],
    platforms: Sequence[Platform],
    candidates: Sequence[PythonChoice],
    wish: Wish | None,
    locker: Locker,
) -> _Repair:
    """The repair that was found before for the same request, else a search; a search costs some seconds."""
    request = {
        "repair of": [[entry.pep508, entry.where] for entry in entries],
        "platforms": [platform.value for platform in platforms],
        "pythons": [asdict(choice) for choice in candidates],
        "wish": [str(wish.specifier), wish.where] if wish else None,
    }
    known = locker.recall(request)
    if known is not None:
        with contextlib.suppress(KeyError, TypeError, AttributeError, StopIteration, Unresolvable, NoWheel):
            choice = next(choice for choice in candidates if choice.version == known["python"])
            lines = {platform: tuple(known["lines"][platform.value]) for platform in platforms}
            told = tuple(Adjustment(**adjustment) for adjustment in known["adjustments"])
            trial = Trial(locker, choice, platforms)
            outcome = trial.lock(lines)
            if outcome.complete:
                return _Repair(trial=trial, lines=lines, locks=outcome.locks, adjustments=told)
    repair = _search(entries, platforms, candidates, wish, locker)
    locker.remember(
        request,
        {
            "python": repair.trial.choice.version,
            "lines": {platform.value: list(lines) for platform, lines in repair.lines.items()},
            "adjustments": [adjustment.to_json() for adjustment in repair.adjustments],
        },
    )
    return repair


def _search(
    entries: Sequence[Requirement],
    platforms: Sequence[Platform],
    candidates: Sequence[PythonChoice],
    wish: Wish | None,
    locker: Locker,
) -> _Repair:
    """The asked Python as it is, then with pins moved; then other Pythons as they are, then with pins moved."""
    lines = {platform: tuple(entry.pep508 for entry in entries) for platform in platforms}
    failed: list[_Case] = []
    later: list[_Case] = []
    for choice in candidates:
        trial = Trial(locker, choice, platforms)
        outcome = trial.lock(lines)
        if outcome.complete:
            return _Repair(trial=trial, lines=lines, locks=outcome.locks)
        case = _Case(trial=trial, outcome=outcome, missing=trial.missing(entries, tuple(outcome.failures)))
        failed.append(case)
        if wish is None or not wish.names_minor_of(choice):
            later.append(case)
        elif (repair := _relax(case, entries)) is not None:
            return repair
    for case in sorted(later, key=lambda case: len(case.missing)):
        if (repair := _relax(case, entries)) is not None:
            return repair
    raise explain(failed[0].trial, entries, failed[0].outcome, failed[0].missing)


def _relax(case: _Case, entries: Sequence[Requirement]) -> _Repair | None:
    """Move each pin that has no wheel to the nearest version that has one, where all of them then lock."""
    trial = case.trial
    searches: dict[Requirement, Iterator[Version]] = {}
    for entry, platforms in case.missing.items():
        version = pins.pinned(entry)
        if version is None:
            return None
        searches[entry] = islice(trial.nearest(entry.name, version, platforms), NEAREST)
    for versions in islice(_combinations(searches), LOCKS):
        lines = {platform: _lines(case, entries, versions, platform) for platform in trial.platforms}
        outcome = trial.lock(lines)
        if outcome.complete:
            told = tuple(adjustment for entry in versions for adjustment in _relaxed(case, entry, versions[entry]))
            return _Repair(trial=trial, lines=lines, locks=outcome.locks, adjustments=told)
    return None


def _combinations(searches: Mapping[Requirement, Iterator[Version]]) -> Iterator[dict[Requirement, Version]]:
    """The nearest of each; then one pin at a time farther away. Nothing where a pin has none."""
    nearest: dict[Requirement, Version] = {}
    for entry, search in searches.items():
        version = next(search, None)
        if version is None:
            return
        nearest[entry] = version
    if nearest:
        yield nearest
    for _ in range(1, NEAREST):
        for entry, search in searches.items():
            version = next(search, None)
            if version is not None:
                yield {**nearest, entry: version}


def _lines(
    case: _Case, entries: Sequence[Requirement], versions: Mapping[Requirement, Version], platform: Platform
) -> tuple[str, ...]:
    return tuple(
        pins.repinned(entry, versions[entry]) if platform in case.missing.get(entry, ()) else entry.pep508
        for entry in entries
    )


def _relaxed(case: _Case, entry: Requirement, version: Version) -> Iterator[Adjustment]:
    """One adjustment per platform, or a single one where it holds for all of them."""
    platforms = case.missing[entry]
    everywhere = set(platforms) == set(case.trial.platforms)
    for platform in [None] if everywhere else platforms:
        where = "any requested platform" if everywhere and len(platforms) > 1 else str(platform or platforms[0])
        yield Adjustment(
            code=RELAXED,
            package=entry.name,
            before=entry.specifier,
            after=f"=={version}",
            where=entry.where,
            reason=f"{entry.name} {pins.pinned(entry)} has no wheel for Python {case.trial.choice.minor} on {where}; "
            f"{version} is the nearest version that has one",
            platform=platform.value if platform else None,
        )


def _refuse(adjustments: Sequence[Adjustment]) -> None:
    """Raise what STRICT forbids to repair, with each repair as a finding."""
    if not adjustments:
        return
    findings = []
    for change in adjustments:
        path, _, line = change.where.rpartition(":")
        place, number = (path, int(line)) if path and line.isdecimal() else (change.where, 0)
        hint = f"write {change.package}=={change.after.removeprefix('==')}" + (
            f" for {change.platform}" if change.platform else ""
        )
        findings.append(Finding(path=place, line=number, code=change.code, message=change.reason, hint=hint))
    kind = PythonUnavailable if adjustments[0].code == MOVED else NoWheel
    hints = "; ".join(dict.fromkeys(finding.hint for finding in findings))
    raise kind(f"{findings[0].where}: {findings[0].message}", hint=f"{hints} (or use --policy fix)", findings=findings)


def _bound_pyarrow(
    repair: _Repair, requirements: Requirements, reporter: Reporter
) -> tuple[Mapping[Platform, Lock], tuple[Adjustment, ...]]:
    """Keep pyarrow below the versions that don't import beside NumPy 1, where only the lock tells which NumPy it is."""
    bounded = with_pyarrow_bound(requirements)
    if bounded == requirements or not any(
        _pyarrow_clashes(lock, bounded.entries[-1]) for lock in repair.locks.values()
    ):
        return repair.locks, ()
    added = bounded.adjustments[len(requirements.adjustments) :]
    line = bounded.entries[-1].pep508
    outcome = repair.trial.lock({platform: (*lines, line) for platform, lines in repair.lines.items()})
    if not outcome.complete:
        message = f"the pyarrow that was locked can't be imported beside NumPy 1, and {line} can't be locked"
        reporter.warning(Stage.RESOLVE, message, hint="allow NumPy 2, or pin an older pyarrow")
        return repair.locks, ()
    return outcome.locks, added


def _pyarrow_clashes(lock: Lock, bound: Requirement) -> bool:
    versions = lock.versions
    return (
        "numpy" in versions
        and bound.name in versions
        and Version(versions["numpy"]).major < 2  # noqa: PLR2004
        and versions[bound.name] not in SpecifierSet(bound.specifier)
    )
