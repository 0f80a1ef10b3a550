"""Repairs of requirements that can't be locked, each made sure of by a lock on all requested platforms.

A requirement without a wheel moves to the nearest version that has one, where it lacks. Of a smallest set that can't be
locked together one requirement moves, first those that the repository's code never imports, then the one that moves least.
At last the specifiers of the smallest set that helps are left out.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import TYPE_CHECKING

from flops.errors import Adjustment
from flops.repair import diagnosis, pins
from flops.repair.conflict import minimal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from packaging.version import Version

    from flops.errors import Finding
    from flops.formats.requirement import Requirement
    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.repair.trial import Lines, Trial, TrialOutcome

RELAXED = "PIN_RELAXED"
UNPINNED = "UNPINNED"
#: Versions tried for one pin, changes that follow from one another, locks in all, and locks without specifiers.
NEAREST = 4
DEPTH = 8
LOCKS = 16
UNPINNED_LOCKS = 8


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Requirements and locks that work, and what was changed for them."""

    trial: Trial
    lines: Lines
    locks: Mapping[Platform, Lock]
    adjustments: tuple[Adjustment, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What was wrong, for each thing that was repaired."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Changed requirements on their way to a lock."""

    lines: Lines
    reasons: Mapping[int, str] = field(default_factory=dict)
    """By place, the last reason for which it was changed."""
    findings: tuple[Finding, ...] = ()

    def moved(self, place: int, version: Version | None, platforms: Sequence[Platform], reason: str) -> Draft:
        """With this version (None: any) at a place."""
        lines = dict(self.lines)
        for platform in platforms:
            entries = list(lines[platform])
            moved = replace(entries[place], specifier=f"=={version}" if version else "")
            entries[place] = replace(moved, text=moved.pep508, hashes=())
            lines[platform] = tuple(entries)
        return replace(self, lines=lines, reasons={**self.reasons, place: reason})

    def noting(self, findings: Sequence[Finding]) -> Draft:
        return replace(self, findings=tuple(dict.fromkeys((*self.findings, *findings))))


@dataclass(kw_only=True)
class Case:
    """Requirements that failed with one Python, and what is found out about it on the way."""

    trial: Trial
    entries: tuple[Requirement, ...]
    outcome: TrialOutcome
    lacking: Mapping[int, tuple[Platform, ...]]
    imported: Callable[[Requirement], bool]
    cores: dict[tuple[int, ...], list[Finding]] = field(default_factory=dict)
    """Smallest sets that failed, with a finding for each of their lines."""
    locks: int = LOCKS
    """How many may still be tried."""

    suspects: Collection[str] = ()
    """Names that are probably misspelt: no version of a stranger's package takes the place of the one that was meant."""
    deadline: float = math.inf
    """No further repair is tried after it (monotonic clock)."""
    reasons: str = ""
    """uv's own words about the smallest set, where there is one."""

    @property
    def draft(self) -> Draft:
        return Draft(lines=dict.fromkeys(self.trial.platforms, self.entries))

    @property
    def whatever_python(self) -> bool:
        """Whether no other version of Python helps: a requirement that was never published, or two that exclude each other."""
        kinds = {cause.kind for cause in self.causes().values()}
        return bool(kinds & diagnosis.WHATEVER_PYTHON) or any(
            pins.exclude(one, other) for one, other in combinations(self.entries, 2)
        )

    @property
    def hopeless(self) -> bool:
        """Whether a requirement has no version at all that could be used with this Python, or contradicts itself."""
        return any(self.is_hopeless(place) for place in self.lacking)

    def is_hopeless(self, place: int) -> bool:
        if place not in self.lacking:
            return False
        name = self.entries[place].name
        if pins.contradicts_itself(self.entries[place]):
            return True
        return name in self.suspects or not self.trial.with_wheels(name, self.lacking[place])

    def causes(self) -> dict[int, diagnosis.Cause]:
        """Why each requirement lacks a wheel."""
        return {place: self._cause(self.entries[place], where) for place, where in self.lacking.items()}

    def findings(self) -> list[Finding]:
        """All that is known to be wrong: requirements without a wheel, else the smallest set that fails."""
        causes = self.causes()
        told = [self._lacking(self.entries[place], causes[place], where) for place, where in self.lacking.items()]
        if told:
            return told
        if not self.cores:
            self._core(self.draft, self.outcome)
        return [finding for findings in self.cores.values() for finding in findings]

    def mend(self, *, far: bool) -> Repair | None:
        """Move pins to the nearest versions with which everything locks; only within a major version where not `far`."""
        self.locks = LOCKS
        return self._mend(self.draft, self.outcome, DEPTH, far=far)

    def unpin(self) -> Repair | None:
        """Leave out the specifiers of the smallest set with which everything locks, of those known to fail."""
        guilty = {place for core in self.cores for place in core} | set(self.lacking)
        places = sorted(
            (self.imported(self.entries[place]), place) for place in guilty if self.entries[place].specifier
        )
        sets = (chosen for size in range(1, len(places) + 1) for chosen in combinations([p for _, p in places], size))
        for chosen in islice(sets, UNPINNED_LOCKS):
            if time.monotonic() > self.deadline:
                return None
            draft = self.draft.noting(self.findings())
            for place in chosen:
                reason = f"{diagnosis.shown(self.entries[place])} and the other requirements exclude each other"
                draft = draft.moved(place, None, self.trial.platforms, reason)
            outcome = self.trial.lock(draft.lines)
            if outcome.complete:
                return self._done(draft, outcome)
        return None

    def _mend(self, draft: Draft, outcome: TrialOutcome, depth: int, *, far: bool) -> Repair | None:
        tried: list[tuple[Draft, TrialOutcome]] = []
        for change in islice(self._changes(draft, outcome, far=far), NEAREST):
            if self.locks == 0 or time.monotonic() > self.deadline:
                return None
            self.locks -= 1
            result = self.trial.lock(change.lines)
            if result.complete:
                return self._done(change, result)
            tried.append((change, result))
        if depth == 0:
            return None
        found = (self._mend(change, result, depth - 1, far=far) for change, result in tried)
        return next((repair for repair in found if repair is not None), None)

    def _changes(self, draft: Draft, outcome: TrialOutcome, *, far: bool) -> Iterator[Draft]:
        platforms = tuple(outcome.failures)
        lacking = self.lacking if draft == self.draft else self.trial.missing(draft.lines, platforms)
        if lacking:
            yield from self._with_wheels(draft, lacking, far=far)
        else:
            yield from self._loosened(draft, outcome, platforms, far=far)

    def _with_wheels(self, draft: Draft, lacking: Mapping[int, tuple[Platform, ...]], *, far: bool) -> Iterator[Draft]:
        """The nearest of each that lacks a wheel; then one of them at a time farther away."""
        found = {place: self._usable(draft, place, where, far=far) for place, where in lacking.items()}
        if not all(found.values()):
            return
        causes = {place: self._cause(draft.lines[where[0]][place], where) for place, where in lacking.items()}
        told = [self._lacking(draft.lines[where[0]][place], causes[place], where) for place, where in lacking.items()]
        steps = [dict.fromkeys(found, 0)]
        steps += [
            {**steps[0], place: step} for step in range(1, NEAREST) for place in found if step < len(found[place])
        ]
        for step in steps:
            change = draft.noting(told)
            for place, number in step.items():
                version = found[place][number]
                reason = f"{causes[place].message}; {version} is the nearest version that can be used"
                change = change.moved(place, version, lacking[place], reason)
            yield change

    def _usable(self, draft: Draft, place: int, where: Sequence[Platform], *, far: bool) -> list[Version]:
        entry = draft.lines[where[0]][place]
        versions = self.trial.with_wheels(entry.name, where)
        return pins.near(entry, versions, stages=pins.ALL if far else pins.SAME_MAJOR)[:NEAREST]

    def _loosened(
        self, draft: Draft, outcome: TrialOutcome, platforms: Sequence[Platform], *, far: bool
    ) -> Iterator[Draft]:
        core = self._core(draft, outcome)
        entries = draft.lines[platforms[0]]
        noted = draft.noting(self.cores.get(core, ()))
        options: list[tuple[tuple[object, ...], int, Version]] = []
        for place in core:
            others = [entries[other] for other in core if other != place]
            version = next(self.trial.beside(entries[place], others, platforms, far=far), None)
            pin = pins.pinned(entries[place])
            if version is not None and pin is not None:
                rank = (self.imported(entries[place]), *pins.distance(version, pin), place)
                options.append((rank, place, version))
        for _, place, version in sorted(options):
            beside = " and ".join(
                f"{diagnosis.shown(entries[other])} ({entries[other].where})" for other in core if other != place
            )
            why = f"can't stand beside {beside}" if beside else "needs packages that can't be had"
            reason = (
                f"{entries[place].name} {pins.pinned(entries[place])} {why}; {version} is the nearest version that can"
            )
            yield noted.moved(place, version, self.trial.platforms, reason)

    def _core(self, draft: Draft, outcome: TrialOutcome) -> tuple[int, ...]:
        """The smallest set that fails on the first platform that fails, and its findings."""
        platform, failure = next(iter(outcome.failures.items()))
        entries = draft.lines[platform]
        places = tuple(range(len(entries)))
        core = minimal(
            places,
            lambda part: self.trial.fails([entries[place] for place in part], platform),
            guess=[place for place in places if mentions(failure.message, entries[place].name)],
        )
        if core and core not in self.cores:
            chosen = [entries[place] for place in core]
            answer = self.trial.solve([entry.pep508 for entry in chosen], platform)
            reasons = "" if isinstance(answer, dict) else answer.message
            self.reasons = self.reasons or (reasons if len(core) > 1 else "")
            self.cores[core] = diagnosis.conflict(chosen, platform, self.trial.choice.minor, reasons)
        return core

    def _cause(self, entry: Requirement, where: Sequence[Platform]) -> diagnosis.Cause:
        targets = [self.trial.target(platform) for platform in where]
        return diagnosis.cause(self.trial.pages.project(entry.name), entry, targets)

    def _lacking(self, entry: Requirement, why: diagnosis.Cause, where: Sequence[Platform]) -> Finding:
        return diagnosis.lacking(entry, why, self.trial.with_wheels(entry.name, where))

    def _done(self, draft: Draft, outcome: TrialOutcome) -> Repair:
        told = tuple(
            adjustment
            for place, entry in enumerate(self.entries)
            for adjustment in _adjustments(entry, place, draft, outcome)
        )
        return Repair(
            trial=self.trial, lines=draft.lines, locks=outcome.locks, adjustments=told, findings=draft.findings
        )


def _adjustments(entry: Requirement, place: int, draft: Draft, outcome: TrialOutcome) -> Iterator[Adjustment]:
    """One per platform on which the requirement changed, or a single one where it is the same on all."""
    after = {
        platform: lines[place].specifier or _locked(entry, outcome.locks[platform])
        for platform, lines in draft.lines.items()
        if lines[place] != entry
    }
    if not after:
        return
    everywhere = len(after) == len(draft.lines) and len(set(after.values())) == 1
    for platform, specifier in islice(after.items(), 1 if everywhere else None):
        yield Adjustment(
            code=RELAXED if draft.lines[platform][place].specifier else UNPINNED,
            package=entry.name,
            before=entry.specifier,
            after=specifier,
            where=entry.where,
            reason=draft.reasons[place],
            platform=None if everywhere else platform.value,
        )


def _locked(entry: Requirement, lock: Lock) -> str:
    """What a requirement without a specifier got."""
    version = lock.versions.get(entry.name)
    return f"=={version}" if version else ""


def mentions(text: str, name: str) -> bool:
    """Whether the package's name stands in the text as a word of its own; a guess that is tested, never a verdict."""
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text) is not None
