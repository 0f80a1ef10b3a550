"""Experiments with one Python on all requested platforms: what locks, what has no wheel, which versions are compatible."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from packaging.markers import Marker
from packaging.version import Version

from flops.errors import NoWheel, Unresolvable
from flops.locking.lock import Lock
from flops.locking.pylock import LockTarget
from flops.repair import pins
from flops.repair.conflict import WORKERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.errors import FlopsError
    from flops.formats.requirement import Requirement
    from flops.locking.index import IndexProject
    from flops.locking.lock import Locker
    from flops.platforms import Platform
    from flops.repair.pythons import PythonChoice

    #: The requirements of each platform, of the same packages in the same order.
    Entries = Mapping[Platform, tuple[Requirement, ...]]

#: Pages of the index that are requested at a time.
REQUESTS = 6


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """The locks of the platforms that lock, and the errors of the others."""

    locks: Mapping[Platform, Lock]
    failures: Mapping[Platform, FlopsError]

    @property
    def complete(self) -> bool:
        return not self.failures


class IndexPages:
    """The index's pages of packages, each fetched once; `with` closes the connections."""

    def __init__(self, locker: Locker) -> None:
        self._locker = locker
        self._stack = ExitStack()
        self._known: dict[str, IndexProject | None] = {}
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def project(self, name: str) -> IndexProject | None:
        """None where no index has the package; IndexUnreachable where an index does not answer."""
        return self.projects([name])[name]

    def projects(self, names: Sequence[str]) -> dict[str, IndexProject | None]:
        """The same for many packages at once."""
        with self._guard:
            new = [name for name in dict.fromkeys(names) if name not in self._known]
            if new:
                indexes = [self._stack.enter_context(index) for index in self._locker.indexes()]
                with ThreadPoolExecutor(REQUESTS) as pool:
                    pages = pool.map(lambda name: next(filter(None, (i.project(name) for i in indexes)), None), new)
                    self._known.update(zip(new, pages, strict=True))
            return {name: self._known[name] for name in names}


class Trial:
    """One Python and the requested platforms, tried with one locker."""

    def __init__(self, locker: Locker, pages: IndexPages, choice: PythonChoice, platforms: Sequence[Platform]) -> None:
        self.pages = pages
        self.choice = choice
        self.platforms = tuple(platforms)
        self._locker = locker
        self._solved: dict[tuple[object, ...], dict[str, str] | Unresolvable | NoWheel] = {}

    def lock(self, entries: Entries) -> TrialOutcome:
        """Lock all platforms at once; where their versions differ, once more with the first one's preferred.

        A second run is seldom needed, so both at once are quicker than one after the other (2.0 s, not 2.6 s, for 43 packages).
        """
        with ThreadPoolExecutor(max(1, len(self.platforms))) as pool:
            results = dict(
                zip(self.platforms, pool.map(lambda p: self._lock(entries[p], p), self.platforms), strict=True)
            )
        locks = {platform: result for platform, result in results.items() if isinstance(result, Lock)}
        failures = {platform: result for platform, result in results.items() if not isinstance(result, Lock)}
        if not failures and locks:
            first = locks[self.platforms[0]]
            for platform in self.platforms[1:]:
                if not _agree(first, locks[platform]):
                    again = self._lock(entries[platform], platform, prefer=first)
                    locks[platform] = again if isinstance(again, Lock) else locks[platform]
        return TrialOutcome(locks=locks, failures=failures)

    def without_wheel(self, entries: Entries, platforms: Sequence[Platform]) -> dict[int, tuple[Platform, ...]]:
        """The positions of requirements without a wheel of their own, and on which platforms.

        The index's pages say which may lack one, and uv confirms it.
        """
        projects = self.pages.projects([entry.name for platform in platforms for entry in entries[platform]])
        suspects = [
            (position, platform)
            for platform in platforms
            for position, entry in enumerate(entries[platform])
            if self._applies(entry, platform) and not self._has_wheel(projects[entry.name], entry, platform)
        ]
        with ThreadPoolExecutor(WORKERS) as pool:
            solved = pool.map(lambda one: self.solve([entries[one[1]][one[0]].pep508], one[1], alone=True), suspects)
        lacking: dict[int, tuple[Platform, ...]] = {}
        for (position, platform), versions in zip(suspects, solved, strict=True):
            if not isinstance(versions, dict):
                lacking[position] = (*lacking.get(position, ()), platform)
        return dict(sorted(lacking.items()))

    def solve(
        self, requirements: Sequence[str], platform: Platform, *, lowest: bool = False, alone: bool = False
    ) -> dict[str, str] | Unresolvable | NoWheel:
        """As `Locker.experiment`, for this Python; each question is asked once."""
        key = (frozenset(requirements), platform, lowest, alone)
        if key not in self._solved:
            target = self.target(platform)
            self._solved[key] = self._locker.experiment(requirements, target=target, lowest=lowest, alone=alone)
        return self._solved[key]

    def fails(self, requirements: Sequence[Requirement], platform: Platform) -> bool:
        """Whether these requirements can't be locked together, with all that they depend on."""
        return not isinstance(self.solve([entry.pep508 for entry in requirements], platform), dict)

    def versions_with_wheels(self, name: str, platforms: Sequence[Platform]) -> tuple[Version, ...]:
        """The versions that have a wheel on each of the platforms, ascending."""
        project = self.pages.project(name)
        return project.usable([self.target(platform) for platform in platforms]) if project else ()

    def compatible_versions(
        self, entry: Requirement, others: Sequence[Requirement], platforms: Sequence[Platform], *, any_major: bool
    ) -> Iterator[Version]:
        """Versions of a pinned package that lock together with the others on each platform, nearest first.

        Only of the pin's own major version unless `any_major`.
        """
        pin = pins.pinned(entry)
        if pin is None:
            return
        context = [other.pep508 for other in others]

        def find(clauses: str, newest: bool) -> Version | None:
            text = pins.with_specifier(entry, clauses)
            found = self.solve([*context, text], platforms[0], lowest=not newest)
            return Version(found[entry.name]) if isinstance(found, dict) and entry.name in found else None

        for candidate in pins.find_nearest(pin, find, stages=pins.ANY_MAJOR if any_major else pins.SAME_MAJOR):
            text = pins.with_specifier(entry, f"=={candidate}")
            if all(isinstance(self.solve([*context, text], platform), dict) for platform in platforms[1:]):
                yield candidate

    def target(self, platform: Platform) -> LockTarget:
        return LockTarget(platform=platform, python=self.choice.version, glibc=self.choice.glibc)

    def _applies(self, entry: Requirement, platform: Platform) -> bool:
        environment = dict(self.target(platform).marker_environment)
        return not entry.marker or Marker(entry.marker).evaluate(environment)

    def _has_wheel(self, project: IndexProject | None, entry: Requirement, platform: Platform) -> bool:
        target = self.target(platform)
        return project is not None and any(file.runs_on(target) for file in project.allowed(entry.specifier))

    def _lock(
        self, entries: Sequence[Requirement], platform: Platform, *, prefer: Lock | None = None
    ) -> Lock | FlopsError:
        lines = [entry.pep508 for entry in entries]
        python, glibc = self.choice.version, self.choice.glibc
        try:
            return self._locker.lock(lines, platform=platform, python=python, glibc=glibc, prefer=prefer)
        except (Unresolvable, NoWheel) as error:
            return error


def _agree(one: Lock, other: Lock) -> bool:
    """Whether both have the same release of every package that both have."""
    versions = one.versions
    return all(pins.same_release(versions.get(name, version), version) for name, version in other.versions.items())
