"""Finds one Python and one lock per platform; requirements that can't be locked are repaired, each repair proven by a lock."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flops.errors import Adjustment, DependencyError, Finding, FlopsError, NoWheel, PythonUnavailable, Unresolvable
from flops.formats import bounds
from flops.formats import requirements as requirement_files
from flops.formats.requirement import Requirement
from flops.recipe import Policy
from flops.repair import diagnosis, lock_findings, proposal, pythons
from flops.repair.pin_repairs import FailedTrial, Repair
from flops.repair.similar_names import distributions
from flops.repair.trial import IndexPages, Trial

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from flops.formats.bounds import Bound
    from flops.formats.requirements import Requirements
    from flops.locking.lock import Lock, Locker
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.recipe import Recipe
    from flops.repair.pythons import PythonChoice, PythonConstraint

#: Increased whenever the same requirements would be repaired in another way, so that no older repair is recalled.
METHOD = 3
#: Seconds for which repairs are tried; most are found within ten.
SECONDS = 180.0


@dataclass(frozen=True, kw_only=True)
class LockRequest:
    """What locks are made for, apart from the requirements."""

    platforms: Sequence[Platform]
    pythons: Sequence[PythonChoice]
    """The offered ones."""
    recipe: Recipe
    reporter: Reporter


@dataclass(frozen=True, kw_only=True)
class FoundLocks:
    """One Python, the locks for it, and what was changed for them."""

    python: PythonChoice
    locks: Mapping[Platform, Lock]
    adjustments: tuple[Adjustment, ...]
    """Those of the dependency file are not among them."""
    findings: tuple[Finding, ...] = ()
    """Versions that differ between platforms or were withdrawn, names that are probably misspelt."""
    warnings: tuple[tuple[str, str], ...] = ()
    """(message, hint) about bounds that could not be kept."""


def find_locks(
    requirements: Requirements,
    request: LockRequest,
    *,
    locker: Locker,
    modules: Collection[str] = (),
    files: Mapping[str, bytes] | None = None,
) -> FoundLocks:
    """Find one Python and a lock per platform, by the smallest repair with which all platforms lock.

    `modules`: dotted names that the repository imports. `files`: its dependency files, for a patch. The policy STRICT
    repairs nothing. DependencyError with findings, and with `repairs` and a patch where a lock proves them; IndexUnreachable,
    LockTimeout.
    """
    flag = request.recipe.python
    constraint = pythons.PythonConstraint.read(requirements.python, flag)
    with IndexPages(locker) as pages:
        search = _Search(
            entries=requirements.entries,
            platforms=tuple(sorted(request.platforms)),
            pythons=tuple(pythons.by_nearness(constraint, request.pythons)),
            constraint=constraint,
            modules=frozenset(modules),
            locker=locker,
            pages=pages,
        )
        try:
            repair = search.remembered() or search.run_and_remember()
            lock_findings.compare_hashes(repair.entries, repair.locks)
        except DependencyError as error:
            raise proposal.with_patch(error, files, search.locks) from error.__cause__
        choice = repair.trial.choice
        moved = pythons.adjustments(requirements.python, constraint, choice, request.pythons)
        locks, bounded, warnings = _with_bounds(repair, requirements)
        if request.recipe.policy is Policy.STRICT:
            changes = (*(moved if flag is None else ()), *repair.adjustments, *bounded)
            if changes:
                refusal = _refusal(changes, (*repair.findings, *_bound_findings(bounded, requirements)))
                raise proposal.with_patch(refusal, files, search.locks)
    return FoundLocks(
        python=choice,
        locks=locks,
        adjustments=(*moved, *repair.adjustments, *bounded),
        findings=(
            *lock_findings.versions_differ(locks, requirements),
            *lock_findings.withdrawn(locks, requirements),
            *lock_findings.suspect_names(requirements, modules),
        ),
        warnings=warnings,
    )


@dataclass(frozen=True, kw_only=True)
class _Search:
    """The search for the smallest repair of some requirements."""

    entries: tuple[Requirement, ...]
    platforms: tuple[Platform, ...]
    pythons: tuple[PythonChoice, ...]
    """The nearest first."""
    constraint: PythonConstraint | None
    modules: frozenset[str]
    locker: Locker
    pages: IndexPages
    deadline: float = field(default_factory=lambda: time.monotonic() + SECONDS)
    """No further repair is tried after it (monotonic clock)."""

    @property
    def _key(self) -> dict[str, Any]:
        constraint = self.constraint
        return {
            "method": METHOD,
            "repair of": [[entry.pep508, entry.where] for entry in self.entries],
            "platforms": [platform.value for platform in self.platforms],
            "pythons": [asdict(choice) for choice in self.pythons],
            "python": [str(constraint.specifier), constraint.path, constraint.line] if constraint else None,
            "imports": sorted(distributions(self.modules)),
        }

    def remembered(self) -> Repair | None:
        """The repair that was found before for the same requirements, if it still locks; a search takes seconds."""
        known = self.locker.recall(self._key)
        if known is None:
            return None
        with contextlib.suppress(KeyError, TypeError, AttributeError, StopIteration, ValueError, Unresolvable, NoWheel):
            choice = next(choice for choice in self.pythons if choice.version == known["python"])
            entries = {
                platform: tuple(
                    entry if specifier == entry.specifier else replace(entry, specifier=specifier, hashes=())
                    for entry, specifier in zip(self.entries, known["specifiers"][platform.value], strict=True)
                )
                for platform in self.platforms
            }
            trial = self._trial(choice)
            outcome = trial.lock(entries)
            if outcome.complete:
                return Repair(
                    trial=trial,
                    entries=entries,
                    locks=outcome.locks,
                    adjustments=tuple(Adjustment(**adjustment) for adjustment in known["adjustments"]),
                    findings=tuple(Finding(**finding) for finding in known["findings"]),
                )
        return None

    def run_and_remember(self) -> Repair:
        """As `run`. Where it finds no repair: DependencyError, with repairs that need the author's consent."""
        repair = self.run()
        if isinstance(repair, FailedTrial):
            error = diagnosis.error(repair.findings(), details=repair.explanation)
            error.repairs = proposal.propose(repair, lambda entries: replace(self, entries=entries).run())
            raise error
        content = {
            "python": repair.trial.choice.version,
            "specifiers": {
                platform.value: [entry.specifier for entry in entries] for platform, entries in repair.entries.items()
            },
            "adjustments": [asdict(adjustment) for adjustment in repair.adjustments],
            "findings": [finding.to_json() for finding in repair.findings],
        }
        self.locker.remember(self._key, content)
        return repair

    def run(self) -> Repair | FailedTrial:
        """The first repair that locks, else the failed trial of the nearest Python.

        First the requested Python, as it is, then with pins moved within their major version; then other Pythons likewise; then
        pins moved to any version; then requirements without specifiers.
        """
        failed: list[FailedTrial] = []
        for choice in self.pythons:
            result = self._try(choice)
            if isinstance(result, Repair):
                return result
            failed.append(result)
            if result.independent_of_python:
                break
            if self._requests(choice) and (repair := result.relax_pins(any_major=False)):
                return repair
        repairable = [trial for trial in failed if not trial.unrepairable]
        if not repairable:
            return failed[0]
        untried = self.pythons[len(failed) :]
        return self._repaired(repairable) or self._repaired_with_another_python(untried) or failed[0]

    def _repaired(self, failed: Sequence[FailedTrial]) -> Repair | None:
        others = [trial for trial in failed if not self._requests(trial.trial.choice)]
        for trial in sorted(others, key=lambda trial: len(trial.without_wheel)):
            if not trial.independent_of_python and (repair := trial.relax_pins(any_major=False)):
                return repair
        for trial in failed:
            if repair := trial.relax_pins(any_major=True):
                return repair
        return next(filter(None, (trial.unpin() for trial in failed)), None)

    def _repaired_with_another_python(self, choices: Sequence[PythonChoice]) -> Repair | None:
        """For a requirement that fails with every Python, beside others that fail with the first one only."""
        for choice in choices:
            result = self._try(choice)
            if isinstance(result, Repair):
                return result
            if not result.unrepairable and (repair := result.relax_pins(any_major=True)):
                return repair
        return None

    def _requests(self, choice: PythonChoice) -> bool:
        return self.constraint is not None and self.constraint.allows_minor_of(choice)

    def _trial(self, choice: PythonChoice) -> Trial:
        return Trial(self.locker, self.pages, choice, self.platforms)

    def _try(self, choice: PythonChoice) -> Repair | FailedTrial:
        """The requirements as they are, with one Python."""
        trial, entries = self._trial(choice), dict.fromkeys(self.platforms, self.entries)
        outcome = trial.lock(entries)
        if outcome.complete:
            return Repair(trial=trial, entries=entries, locks=outcome.locks)
        return FailedTrial(
            trial=trial, entries=self.entries, outcome=outcome, modules=self.modules, deadline=self.deadline
        )

    def locks(self, files: Mapping[str, bytes]) -> bool:
        """Whether these files, instead of the repository's, lock on every platform without a repair."""
        try:
            read = requirement_files.read(files, platforms=self.platforms)
            choice = pythons.by_nearness(pythons.PythonConstraint.read(read.python, None), self.pythons)[0]
        except FlopsError:
            return False
        entries = (*read.entries, *(entry for entry in self.entries if entry.line == 0))
        return self._trial(choice).lock(dict.fromkeys(self.platforms, entries)).complete


def _refusal(changes: Sequence[Adjustment], findings: Sequence[Finding]) -> DependencyError:
    """The error for repairs that the policy STRICT forbids; it proposes them."""
    moved = [
        Finding(
            path=change.path,
            line=change.line,
            code=PythonUnavailable.code,
            message=change.reason,
            hint=f"write python=={change.after}",
        )
        for change in changes
        if change.code == pythons.MOVED
    ]
    error = diagnosis.error(findings or moved)
    error.findings = (*findings, *moved)
    error.repairs = tuple(changes)
    return error


def _bound_findings(changes: Sequence[Adjustment], requirements: Requirements) -> Iterator[Finding]:
    """The findings that bounds are missing, where they may not be added."""
    for change in changes:
        hint = f"write {change.package}{change.after}"
        yield requirements.finding(change.package, Unresolvable.code, change.reason, hint)


def _with_bounds(
    repair: Repair, requirements: Requirements
) -> tuple[Mapping[Platform, Lock], tuple[Adjustment, ...], tuple[tuple[str, str], ...]]:
    """Add bounds that no metadata states, where a lock breaks one and the repository does not require such a version.

    A lock that keeps one bound may break another, so this goes on until none is broken.
    """
    locks, entries = repair.locks, repair.entries
    specified = {entry.name: entry for entry in requirements.entries if entry.specifier}
    added: dict[str, Adjustment] = {}
    warnings: list[tuple[str, str]] = []
    while broken := {name: one for name, one in _broken(locks).items() if name not in {*specified, *added}}:
        missing = {
            name: Requirement(
                name=name, specifier=bound.specifier, path=requirements.path, line=0, text=name + bound.specifier
            )
            for name, bound in broken.items()
        }
        entries = {platform: (*own, *missing.values()) for platform, own in entries.items()}
        outcome = repair.trial.lock(entries)
        if not outcome.complete:
            text = ", ".join(entry.pep508 for entry in missing.values())
            message = f"{next(iter(broken.values())).reason}, and {text} can't be locked"
            warnings.append((message, "pin versions that fit each other"))
            break
        locks = outcome.locks
        added |= {
            name: entry.adjustment("ADDED", before="", after=entry.specifier, reason=broken[name].reason)
            for name, entry in missing.items()
        }
    for name, bound in sorted(_broken(locks).items()):
        if name in specified:
            message = f"{diagnosis.with_places([specified[name]])}: {bound.reason}"
            warnings.append((message, f"write {name}{bound.specifier}"))
    return locks, tuple(added.values()), tuple(warnings)


def _broken(locks: Mapping[Platform, Lock]) -> dict[str, Bound]:
    return {bound.package: bound for lock in locks.values() for bound in bounds.broken(lock.versions)}
