"""From requirements to one lock per platform, repaired where a lock proves that the repair works."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flops.errors import Adjustment, DependencyError, Finding, FlopsError, NoWheel, PythonUnavailable, Unresolvable
from flops.formats import bounds
from flops.formats import requirements as requirement_files
from flops.formats.requirement import Requirement
from flops.progress import Stage
from flops.recipe import Policy
from flops.repair import diagnosis, lock_findings
from flops.repair.lock_findings import differences, suspects, withdrawn
from flops.repair.pythons import MOVED, PythonChoice, Wish, order
from flops.repair.pythons import adjustments as python_adjustments
from flops.repair.repair import Case, Repair
from flops.repair.similar_names import distributions, lookalikes
from flops.repair.trial import Pages, Trial, TrialOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from flops.formats.bounds import Bound
    from flops.formats.requirements import Requirements
    from flops.locking.lock import Lock, Locker
    from flops.platforms import Platform
    from flops.progress import Reporter

__all__ = ["FoundLocks", "PythonChoice", "find_locks"]

#: Raised whenever the same requirements would be repaired otherwise, so that no older repair is recalled.
METHOD = 2
#: Seconds for which repairs are tried; most are found within ten.
SECONDS = 180.0


@dataclass(frozen=True, kw_only=True)
class FoundLocks:
    """What the images will hold."""

    python: PythonChoice
    locks: Mapping[Platform, Lock]
    adjustments: tuple[Adjustment, ...]
    """The doctor's own; those of the requirements file come before them."""
    findings: tuple[Finding, ...] = ()
    """Packages whose versions differ between the platforms or were withdrawn, names that may not be what was meant."""


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What is to be locked, and with what."""

    entries: tuple[Requirement, ...]
    platforms: tuple[Platform, ...]
    candidates: tuple[PythonChoice, ...]
    """Pythons, the nearest first."""
    wish: Wish | None
    modules: frozenset[str] | None
    deadline: float = field(compare=False, default_factory=lambda: time.monotonic() + SECONDS)
    """No further repair is tried after it (monotonic clock)."""
    proposing: bool = True
    """Whether a failure is worth the search for what might be meant."""
    locker: Locker = field(repr=False, compare=False)
    pages: Pages = field(repr=False, compare=False)

    @property
    def imported(self) -> Callable[[Requirement], bool]:
        """Whether the repository's code imports a requirement."""
        names = distributions(self.modules or ())
        return lambda entry: entry.name in names

    def locks(self, files: Mapping[str, bytes]) -> bool:
        """Whether these files, instead of the repository's, lock on every platform without a repair."""
        try:
            read = requirement_files.read(files, platforms=self.platforms)
            wish = Wish.read(read.python, None)
            choice = order(wish, self.candidates)[0]
        except FlopsError:
            return False
        entries = (*read.entries, *(entry for entry in self.entries if entry.line == 0))
        trial = Trial(self.locker, self.pages, choice, self.platforms)
        return trial.lock(dict.fromkeys(self.platforms, entries)).complete

    @property
    def key(self) -> dict[str, Any]:
        return {
            "method": METHOD,
            "repair of": [[entry.pep508, entry.where] for entry in self.entries],
            "platforms": [platform.value for platform in self.platforms],
            "pythons": [asdict(choice) for choice in self.candidates],
            "wish": [str(self.wish.specifier), self.wish.where] if self.wish else None,
            "imports": sorted(distributions(self.modules or ())),
        }


def find_locks(
    requirements: Requirements,
    platforms: Sequence[Platform],
    pythons: Sequence[PythonChoice],
    *,
    locker: Locker,
    policy: Policy,
    python_flag: str | None,
    reporter: Reporter,
    modules: Collection[str] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> FoundLocks:
    """Find one Python and a lock per platform, by the smallest repair that locks on all of them.

    `modules`: what the repository imports, dotted; None where nobody knows. `files`: its dependency files, for a patch.
    STRICT repairs nothing. DependencyError with findings, and with `repairs` and a patch in its hint where some were made
    sure of; IndexUnreachable, LockTimeout.
    """
    wish = Wish.read(requirements.python, python_flag)
    with Pages(locker) as pages:
        question = _Question(
            entries=requirements.entries,
            platforms=tuple(sorted(platforms)),
            candidates=tuple(order(wish, pythons)),
            wish=wish,
            modules=None if modules is None else frozenset(modules),
            locker=locker,
            pages=pages,
        )
        try:
            repair = _found(question)
            lock_findings.compare(repair.lines, repair.locks)
        except DependencyError as error:
            raise _with_patch(error, files, question) from error.__cause__
        moved = python_adjustments(requirements.python, wish, repair.trial.choice, pythons)
        locks, bound = _bounded(repair, requirements, reporter)
        if policy is Policy.STRICT:
            asked = (*(moved if python_flag is None else ()), *repair.adjustments, *bound)
            if asked:
                findings = (*repair.findings, *(_bound_finding(change, requirements) for change in bound))
                raise _with_patch(_refusal(asked, findings), files, question)
    adjustments = (*moved, *repair.adjustments, *bound)
    for adjustment in adjustments:
        reporter.adjusted(adjustment)
    findings = (
        *differences(locks, requirements),
        *withdrawn(locks, requirements),
        *suspects(requirements, modules or ()),
    )
    for finding in findings:
        reporter.finding(finding)
    return FoundLocks(python=repair.trial.choice, locks=locks, adjustments=adjustments, findings=findings)


def _found(question: _Question) -> Repair:
    """The repair that was found before for the same request, else a search; a search costs some seconds."""
    known = question.locker.recall(question.key)
    if known is not None:
        with contextlib.suppress(KeyError, TypeError, AttributeError, StopIteration, ValueError, Unresolvable, NoWheel):
            return _recalled(question, known)
    repair = _search(question)
    question.locker.remember(
        question.key,
        {
            "python": repair.trial.choice.version,
            "specifiers": {
                platform.value: [entry.specifier for entry in entries] for platform, entries in repair.lines.items()
            },
            "adjustments": [adjustment.to_json() for adjustment in repair.adjustments],
            "findings": [finding.to_json() for finding in repair.findings],
        },
    )
    return repair


def _recalled(question: _Question, known: Mapping[str, Any]) -> Repair:
    choice = next(choice for choice in question.candidates if choice.version == known["python"])
    lines = {
        platform: tuple(
            entry if specifier == entry.specifier else replace(entry, specifier=specifier, hashes=())
            for entry, specifier in zip(question.entries, known["specifiers"][platform.value], strict=True)
        )
        for platform in question.platforms
    }
    trial = Trial(question.locker, question.pages, choice, question.platforms)
    outcome = trial.lock(lines)
    if not outcome.complete:
        raise ValueError("the index has changed")
    return Repair(
        trial=trial,
        lines=lines,
        locks=outcome.locks,
        adjustments=tuple(Adjustment(**adjustment) for adjustment in known["adjustments"]),
        findings=tuple(Finding(**finding) for finding in known["findings"]),
    )


def _search(question: _Question) -> Repair:
    """The asked Python as it is, then with near pins; other Pythons likewise; then pins from afar, then without pins."""
    cases: list[Case] = []
    for choice in question.candidates:
        trial = Trial(question.locker, question.pages, choice, question.platforms)
        lines = dict.fromkeys(question.platforms, question.entries)
        outcome = trial.lock(lines)
        if outcome.complete:
            return Repair(trial=trial, lines=lines, locks=outcome.locks)
        case = _case(question, trial, outcome)
        cases.append(case)
        if case.whatever_python:
            break
        if question.wish is not None and question.wish.names_minor_of(choice):
            repair = case.mend(far=False)
            if repair is not None:
                return repair
    usable = [case for case in cases if not case.hopeless]
    if usable:
        repair = _mended(usable, question.wish) or _of_others(question, question.candidates[len(cases) :])
        if repair is not None:
            return repair
    found = cases[0].findings()
    error = diagnosis.error(found, details=cases[0].reasons)
    if question.proposing:
        from flops.repair import proposal  # noqa: PLC0415 - only failures need it, and a check is short

        changed = replace(question, proposing=False)
        error.repairs = proposal.propose(
            cases[0], question.modules, lambda entries: _search(replace(changed, entries=entries))
        )
    raise error


def _with_patch(error: DependencyError, files: Mapping[str, bytes] | None, question: _Question) -> DependencyError:
    from flops.repair import proposal  # noqa: PLC0415 - as above

    return proposal.with_patch(error, files, question.locks)


def _of_others(question: _Question, choices: Sequence[PythonChoice]) -> Repair | None:
    """Where one requirement fails with every Python and the others with the first: both at once."""
    for choice in choices:
        trial = Trial(question.locker, question.pages, choice, question.platforms)
        case = _case(question, trial, trial.lock(dict.fromkeys(question.platforms, question.entries)))
        if not case.hopeless and (repair := case.mend(far=True)) is not None:
            return repair
    return None


def _mended(cases: Sequence[Case], wish: Wish | None) -> Repair | None:
    later = [case for case in cases if wish is None or not wish.names_minor_of(case.trial.choice)]
    for case in sorted(later, key=lambda case: len(case.lacking)):
        if not case.whatever_python and (repair := case.mend(far=False)) is not None:
            return repair
    for case in cases:
        if (repair := case.mend(far=True)) is not None:
            return repair
    for case in cases:
        if (repair := case.unpin()) is not None:
            return repair
    return None


def _case(question: _Question, trial: Trial, outcome: TrialOutcome) -> Case:
    lines = dict.fromkeys(question.platforms, question.entries)
    return Case(
        trial=trial,
        entries=question.entries,
        outcome=outcome,
        lacking=trial.missing(lines, tuple(outcome.failures)),
        imported=question.imported,
        suspects=lookalikes([entry.name for entry in question.entries], question.modules or ()),
        deadline=question.deadline,
    )


def _refusal(adjustments: Sequence[Adjustment], findings: Sequence[Finding]) -> DependencyError:
    """What STRICT forbids to repair, with the repairs."""
    moved = [_python_finding(change) for change in adjustments if change.code == MOVED]
    told = (*findings, *moved)
    first = told[0]
    error = (
        diagnosis.error(findings)
        if findings
        else PythonUnavailable(f"{first.where}: {first.message}", hint=first.hint, findings=told)
    )
    error.findings = told
    error.repairs = tuple(adjustments)
    return error


def _python_finding(change: Adjustment) -> Finding:
    path, _, line = change.where.rpartition(":")
    place, number = (path, int(line)) if path and line.isdecimal() else (change.where, 0)
    hint = f"write python=={change.after}"
    return Finding(path=place, line=number, code=PythonUnavailable.code, message=change.reason, hint=hint)


def _bound_finding(change: Adjustment, requirements: Requirements) -> Finding:
    """What a bound that no metadata states is told as, where it may not be added."""
    entry = next((entry for entry in requirements.entries if entry.name == change.package), None)
    return Finding(
        path=entry.path if entry else change.where,
        line=entry.line if entry else 0,
        code=Unresolvable.code,
        message=change.reason,
        hint=f"write {change.package}{change.after}",
    )


def _bounded(
    repair: Repair, requirements: Requirements, reporter: Reporter
) -> tuple[Mapping[Platform, Lock], tuple[Adjustment, ...]]:
    """Keep bounds that no metadata states, where a lock breaks one and the repository does not ask for just that.

    What keeps one bound may break another, so until none is left.
    """
    locks, lines = repair.locks, repair.lines
    asked = {entry.name: entry for entry in requirements.entries if entry.specifier}
    added: dict[str, Adjustment] = {}
    while wrong := {name: bound for name, bound in _broken(locks).items() if name not in asked and name not in added}:
        entries = tuple(_entry(bound, requirements.path) for bound in wrong.values())
        lines = {platform: (*own, *entries) for platform, own in lines.items()}
        outcome = repair.trial.lock(lines)
        if not outcome.complete:
            text = ", ".join(entry.pep508 for entry in entries)
            message = f"{wrong[entries[0].name].reason}, and {text} can't be locked"
            reporter.warning(Stage.RESOLVE, message, hint="pin versions that fit")
            break
        locks = outcome.locks
        added |= {entry.name: _added(entry, wrong[entry.name].reason) for entry in entries}
    for name, bound in sorted(_broken(locks).items()):
        if name in asked:
            message = f"{diagnosis.shown(asked[name])} ({asked[name].where}): {bound.reason}"
            reporter.warning(Stage.RESOLVE, message, hint=f"write {name}{bound.specifier}")
    return locks, tuple(added.values())


def _broken(locks: Mapping[Platform, Lock]) -> dict[str, Bound]:
    return {bound.package: bound for lock in locks.values() for bound in bounds.broken(lock.versions)}


def _entry(bound: Bound, path: str) -> Requirement:
    text = bound.package + bound.specifier
    return Requirement(name=bound.package, specifier=bound.specifier, path=path, line=0, text=text)


def _added(entry: Requirement, reason: str) -> Adjustment:
    after, where = entry.specifier, entry.path
    return Adjustment(code="ADDED", package=entry.name, before="", after=after, where=where, reason=reason)
