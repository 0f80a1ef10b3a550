"""Repairs of requirements that can't be locked with one Python, each proven by a lock on all requested platforms.

A requirement without a wheel moves to the nearest version that has one, on the platforms where it lacks one. Of a smallest
set that can't be locked together one requirement moves: those that the repository's code never imports are tried first,
then the one that moves least. As a last resort the specifiers of the smallest set that helps are left out.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, islice
from typing import TYPE_CHECKING

from flops.repair import diagnosis, pins
from flops.repair.conflict import minimal
from flops.repair.similar_names import distributions, lookalikes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from packaging.version import Version

    from flops.errors import Adjustment, Finding
    from flops.formats.requirement import Requirement
    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.repair.trial import Entries, Trial, TrialOutcome

RELAXED = "PIN_RELAXED"
UNPINNED = "UNPINNED"
#: Versions that are tried for one pin.
VERSIONS = 4
#: Changes that may follow from one another.
DEPTH = 8
#: Locks that are tried while pins move.
LOCKS = 16
#: Locks that are tried without specifiers.
UNPINNED_LOCKS = 8


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Requirements and locks that work, and what was changed for them."""

    trial: Trial
    entries: Entries
    locks: Mapping[Platform, Lock]
    adjustments: tuple[Adjustment, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What was wrong, for everything that was repaired."""


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """Changed requirements that are to be locked."""

    entries: Entries
    reasons: Mapping[int, str] = field(default_factory=dict)
    """By position of the requirement, the reason for its last change."""
    findings: tuple[Finding, ...] = ()

    def moved(self, position: int, version: Version | None, platforms: Sequence[Platform], reason: str) -> _Draft:
        """With the requirement at this position pinned to a version, or without a specifier (None)."""
        changed = dict(self.entries)
        for platform in platforms:
            entries = list(changed[platform])
            moved = replace(entries[position], specifier=f"=={version}" if version else "")
            entries[position] = replace(moved, text=moved.pep508, hashes=())
            changed[platform] = tuple(entries)
        return replace(self, entries=changed, reasons={**self.reasons, position: reason})

    def noting(self, findings: Sequence[Finding]) -> _Draft:
        return replace(self, findings=tuple(dict.fromkeys((*self.findings, *findings))))


@dataclass(kw_only=True)
class FailedTrial:
    """Requirements that can't be locked with one Python, and what becomes known about them during the search."""

    trial: Trial
    entries: tuple[Requirement, ...]
    outcome: TrialOutcome
    modules: Collection[str]
    """Dotted names that the repository's code imports."""
    deadline: float = math.inf
    """No further repair is tried after it (monotonic clock)."""
    conflicts: dict[tuple[int, ...], list[Finding]] = field(default_factory=dict)
    """Smallest sets that failed, by their positions, with a finding for each requirement."""
    explanation: str = ""
    """uv's own words about the first conflict of several requirements."""
    locks_left: int = LOCKS

    @cached_property
    def imported(self) -> frozenset[str]:
        """Packages that the repository's code imports."""
        return distributions(self.modules)

    @cached_property
    def without_wheel(self) -> Mapping[int, tuple[Platform, ...]]:
        """The positions of requirements that have no wheel, and the platforms."""
        return self.trial.without_wheel(self.unchanged.entries, tuple(self.outcome.failures))

    @property
    def unchanged(self) -> _Draft:
        return _Draft(entries=dict.fromkeys(self.trial.platforms, self.entries))

    @property
    def independent_of_python(self) -> bool:
        """Whether no other Python helps: a requirement was never published, or two requirements exclude each other."""
        kinds = {cause.kind for cause in self.causes().values()}
        return bool(kinds & diagnosis.INDEPENDENT_OF_PYTHON) or any(
            pins.exclude_each_other(one, other) for one, other in combinations(self.entries, 2)
        )

    @property
    def unrepairable(self) -> list[int]:
        """The positions of requirements that no version can satisfy with this Python.

        A name that is probably misspelt is one of them: a stranger's package is no repair for the one that was meant.
        """
        suspects = lookalikes([entry.name for entry in self.entries], self.modules)
        return [
            position
            for position, platforms in self.without_wheel.items()
            if pins.contradicts_itself(entry := self.entries[position])
            or entry.name in suspects
            or not self.trial.versions_with_wheels(entry.name, platforms)
        ]

    def causes(self) -> dict[int, diagnosis.Cause]:
        """Why each requirement without a wheel has none, by position."""
        return {
            position: self._cause(self.entries[position], platforms)
            for position, platforms in self.without_wheel.items()
        }

    def findings(self) -> list[Finding]:
        """What is wrong: the requirements without a wheel, else the smallest set that fails."""
        if self.without_wheel:
            return [self._no_wheel(self.entries[position], where) for position, where in self.without_wheel.items()]
        if not self.conflicts:
            self._conflict(self.unchanged, self.outcome)
        return [finding for findings in self.conflicts.values() for finding in findings]

    def relax_pins(self, *, any_major: bool) -> Repair | None:
        """Move pins to the nearest versions with which everything locks; within their major version unless `any_major`."""
        self.locks_left = LOCKS
        return self._relax(self.unchanged, self.outcome, DEPTH, any_major=any_major)

    def unpin(self) -> Repair | None:
        """Leave out the fewest specifiers with which everything locks, of the requirements that are known to fail."""
        failing = {position for conflict in self.conflicts for position in conflict} | set(self.without_wheel)
        imported_last = sorted(
            (position for position in failing if self.entries[position].specifier),
            key=lambda position: (self.entries[position].name in self.imported, position),
        )
        sets = (chosen for size in range(len(imported_last)) for chosen in combinations(imported_last, size + 1))
        for chosen in islice(sets, UNPINNED_LOCKS):
            if time.monotonic() > self.deadline:
                return None
            draft = self.unchanged.noting(self.findings())
            for position in chosen:
                reason = f"{diagnosis.as_written(self.entries[position])} conflicts with the other requirements"
                draft = draft.moved(position, None, self.trial.platforms, reason)
            outcome = self.trial.lock(draft.entries)
            if outcome.complete:
                return self._repair(draft, outcome)
        return None

    def _relax(self, draft: _Draft, outcome: TrialOutcome, depth: int, *, any_major: bool) -> Repair | None:
        tried: list[tuple[_Draft, TrialOutcome]] = []
        for change in islice(self._changes(draft, outcome, any_major=any_major), VERSIONS):
            if self.locks_left == 0 or time.monotonic() > self.deadline:
                return None
            self.locks_left -= 1
            result = self.trial.lock(change.entries)
            if result.complete:
                return self._repair(change, result)
            tried.append((change, result))
        if depth == 0:
            return None
        repairs = (self._relax(change, result, depth - 1, any_major=any_major) for change, result in tried)
        return next((repair for repair in repairs if repair is not None), None)

    def _changes(self, draft: _Draft, outcome: TrialOutcome, *, any_major: bool) -> Iterator[_Draft]:
        platforms = tuple(outcome.failures)
        unchanged = draft == self.unchanged
        without_wheel = self.without_wheel if unchanged else self.trial.without_wheel(draft.entries, platforms)
        if without_wheel:
            yield from self._with_wheels(draft, without_wheel, any_major=any_major)
        else:
            yield from self._without_conflict(draft, outcome, platforms, any_major=any_major)

    def _with_wheels(
        self, draft: _Draft, without_wheel: Mapping[int, tuple[Platform, ...]], *, any_major: bool
    ) -> Iterator[_Draft]:
        """The nearest version of each requirement that lacks a wheel; then the next versions of one at a time."""
        stages = pins.ANY_MAJOR if any_major else pins.SAME_MAJOR
        versions: dict[int, list[Version]] = {}
        causes: dict[int, diagnosis.Cause] = {}
        findings: list[Finding] = []
        for position, platforms in without_wheel.items():
            entry = draft.entries[platforms[0]][position]
            usable = self.trial.versions_with_wheels(entry.name, platforms)
            versions[position] = pins.nearest_first(entry, usable, stages=stages)[:VERSIONS]
            if not versions[position]:
                return
            causes[position] = self._cause(entry, platforms)
            findings.append(self._no_wheel(entry, platforms))
        nearest = dict.fromkeys(versions, 0)
        steps = [
            nearest | {position: rank}
            for rank in range(1, VERSIONS)
            for position in versions
            if rank < len(versions[position])
        ]
        for ranks in (nearest, *steps):
            change = draft.noting(findings)
            for position, number in ranks.items():
                version = versions[position][number]
                reason = f"{causes[position].message}; {version} is the nearest version that can be used"
                change = change.moved(position, version, without_wheel[position], reason)
            yield change

    def _without_conflict(
        self, draft: _Draft, outcome: TrialOutcome, platforms: Sequence[Platform], *, any_major: bool
    ) -> Iterator[_Draft]:
        """Each pinned requirement of a smallest failing set moved to the nearest version that agrees with the others."""
        conflict = self._conflict(draft, outcome)
        entries = draft.entries[platforms[0]]
        draft = draft.noting(self.conflicts.get(conflict, ()))
        options: list[tuple[tuple[object, ...], int, Version, str]] = []
        for position in conflict:
            entry = entries[position]
            others = [entries[other] for other in conflict if other != position]
            compatible = self.trial.compatible_versions(entry, others, platforms, any_major=any_major)
            version, pin = next(compatible, None), pins.pinned(entry)
            if version is not None and pin is not None:
                rank = (entry.name in self.imported, *pins.distance(version, pin), position)
                why = f"conflicts with {diagnosis.with_places(others)}" if others else "needs unavailable packages"
                reason = f"{entry.name} {pin} {why}; {version} is the nearest version that does not"
                options.append((rank, position, version, reason))
        for _, position, version, reason in sorted(options):
            yield draft.moved(position, version, self.trial.platforms, reason)

    def _conflict(self, draft: _Draft, outcome: TrialOutcome) -> tuple[int, ...]:
        """The positions of the smallest set that fails on the first platform that fails; its findings are kept."""
        platform, failure = next(iter(outcome.failures.items()))
        entries = draft.entries[platform]
        positions = tuple(range(len(entries)))
        conflict = minimal(
            positions,
            lambda part: self.trial.fails([entries[position] for position in part], platform),
            guess=[position for position in positions if mentions(failure.message, entries[position].name)],
        )
        if conflict and conflict not in self.conflicts:
            chosen = [entries[position] for position in conflict]
            solved = self.trial.solve([entry.pep508 for entry in chosen], platform)
            explanation = "" if isinstance(solved, dict) else solved.message
            if len(conflict) > 1:
                self.explanation = self.explanation or explanation
            python = self.trial.choice.minor
            self.conflicts[conflict] = diagnosis.conflict_findings(chosen, platform, python, explanation)
        return conflict

    def _cause(self, entry: Requirement, platforms: Sequence[Platform]) -> diagnosis.Cause:
        targets = [self.trial.target(platform) for platform in platforms]
        return diagnosis.cause(self.trial.pages.project(entry.name), entry, targets)

    def _no_wheel(self, entry: Requirement, platforms: Sequence[Platform]) -> Finding:
        usable = self.trial.versions_with_wheels(entry.name, platforms)
        return diagnosis.no_wheel_finding(entry, self._cause(entry, platforms), usable)

    def _repair(self, draft: _Draft, outcome: TrialOutcome) -> Repair:
        adjustments = tuple(
            adjustment
            for position, entry in enumerate(self.entries)
            for adjustment in _adjustments(entry, position, draft, outcome)
        )
        return Repair(
            trial=self.trial,
            entries=draft.entries,
            locks=outcome.locks,
            adjustments=adjustments,
            findings=draft.findings,
        )


def _adjustments(entry: Requirement, position: int, draft: _Draft, outcome: TrialOutcome) -> Iterator[Adjustment]:
    """One for each platform on which the requirement changed, or a single one where it changed alike on all."""
    after: dict[Platform, str] = {}
    for platform, entries in draft.entries.items():
        if entries[position] != entry:
            version = outcome.locks[platform].versions.get(entry.name)
            after[platform] = entries[position].specifier or (f"=={version}" if version else "")
    everywhere = len(after) == len(draft.entries) and len(set(after.values())) == 1
    for platform, specifier in islice(after.items(), 1 if everywhere else None):
        yield entry.adjustment(
            RELAXED if draft.entries[platform][position].specifier else UNPINNED,
            before=entry.specifier,
            after=specifier,
            reason=draft.reasons[position],
            platform=None if everywhere else platform.value,
        )


def mentions(text: str, name: str) -> bool:
    """Whether the text has the package's name as a word of its own; a guess that is tested, never a verdict."""
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text) is not None
