"""From what the code imports and no locked package provides, to packages that are added, or findings that say what to add.

A package is added where `resources/modules.toml` is sure, its wheel has the module, and it locks beside exactly what is
locked already, or beside what is required without a further repair.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from packaging.requirements import Requirement as Pep508
from packaging.utils import canonicalize_name

from flops.errors import Adjustment, DependencyError, Finding, ImportMissing, NoWheel, Unresolvable
from flops.formats.requirement import Requirement
from flops.recipe import Policy
from flops.repair import accelerator, imports, trackers
from flops.wheels.provides import provided

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.repair.accelerator import Chosen, Solve
    from flops.repair.doctor import FoundLocks
    from flops.repair.imports import Missing
    from flops.repair.inspection import Inspection
    from flops.wheels.provides import Provides

ADDED = "ADDED"
#: Modules that nothing sure is known of, for which a package of the same name is looked at; each costs a lock.
TRIED = 3
GUARD = "guard the import with try/except ImportError"


class Additions:
    """From the modules that are missing to packages that are added, or findings."""

    def __init__(
        self, seen: Inspection, *, platforms: Sequence[Platform], policy: Policy, solve: Solve, provides: Provides
    ) -> None:
        self._path = seen.requirements.path
        self._fixed = seen.requirements.complete
        self._imports = seen.structure.imports
        self._files = [file.path for file in seen.checkout.files if file.link is None]
        self._platforms = platforms
        self._policy = policy
        self._solve = solve
        self._provides = provides

    def settled(self, chosen: Chosen) -> tuple[Chosen, tuple[Adjustment, ...], tuple[Finding, ...]]:
        """The resolution with what was added, and what was found. Errors as `Provides.modules`; ImportMissing."""
        missing = self._missing(chosen.resolution)
        tracked = [one for one in missing if one.item.name in trackers.modules()]
        others = [one for one in missing if one.item.name not in trackers.modules()]
        sure = {one: text for one in others if (text := imports.known().requirement(one.item.module))}
        again, added = self._with(chosen, sure)
        changes = {one: _adjustment(one, sure[one], again.resolution) for one in added}
        if self._policy is Policy.STRICT and changes:
            raise _refusal(changes, self._path, self._platforms)
        adjustments = tuple({change.package: change for change in reversed(changes.values())}.values())[::-1]
        left = [one for one in others if one not in added]
        hints = self._hints(again, left)
        findings = tuple(imports.finding(one, all_platforms=self._platforms, hint=hints[one]) for one in left)
        return again, adjustments, (*trackers.imported(one.item for one in tracked), *findings)

    def _missing(self, resolution: FoundLocks) -> list[Missing]:
        # MLflow's imports were noted when the requirements were read
        wanted = imports.wanted(self._imports, resolution.python.version, but={"mlflow"})
        return imports.missing(wanted, resolution.locks, self._provides)

    def _with(self, chosen: Chosen, sure: Mapping[Missing, str]) -> tuple[Chosen, list[Missing]]:
        """All of them where they lock together, else as many as do one after the other; each then provides its module."""
        if self._fixed or not sure:  # the repository's own lock holds all that is installed
            return chosen, []
        added: list[Missing] = []
        for some in [list(sure), *([one] for one in sure if len(sure) > 1)]:
            texts = [sure[one] for one in some]
            again = self._extended(chosen, texts) or (self._solved(chosen, texts) if len(some) == len(sure) else None)
            if again is not None and self._have(again, some):
                chosen, added = again, [*added, *some]
                if len(some) == len(sure):
                    break
        return chosen, added

    def _have(self, chosen: Chosen, some: Iterable[Missing]) -> bool:
        lacking = {one.item.module for one in self._missing(chosen.resolution)}
        return not any(one.item.module in lacking for one in some)

    def _extended(self, chosen: Chosen, texts: Sequence[str]) -> Chosen | None:
        """With these beside exactly what is locked; None where they want something else.

        One lock of pins, which takes uv a moment, and can't move anything.
        """
        before = chosen.resolution

        def lock(platform: Platform, prefer: Lock | None = None) -> Lock | None:
            pins = [f"{wheel.name}=={wheel.version}" for wheel in before.locks[platform].wheels]
            return self._lock([*pins, *texts], platform, chosen, prefer=prefer)

        with ThreadPoolExecutor(len(before.locks)) as pool:
            found = dict(zip(before.locks, pool.map(lock, before.locks), strict=True))
        locks = {platform: one for platform, one in found.items() if one is not None}
        if len(locks) < len(found):
            return None
        first = next(iter(locks.values()))
        for platform, one in locks.items():
            if any(first.versions.get(name, version) != version for name, version in one.versions.items()):
                locks[platform] = lock(platform, first) or one
        return self._changed(chosen, texts, replace(before, locks=locks))

    def _lock(self, lines: Sequence[str], platform: Platform, chosen: Chosen, *, prefer: Lock | None) -> Lock | None:
        """A refusal is remembered as long as a lock is: it costs as much."""
        python = chosen.resolution.python
        request = {"refused": sorted(lines), "target": [platform.value, python.version, list(python.glibc)]}
        if chosen.locker.recall(request) is True:
            return None
        try:
            return chosen.locker.lock(
                lines, platform=platform, python=python.version, glibc=python.glibc, prefer=prefer
            )
        except (NoWheel, Unresolvable):
            chosen.locker.remember(request, True)
            return None

    def _solved(self, chosen: Chosen, texts: Sequence[str]) -> Chosen | None:
        """With these beside what is required; None where that does not lock, or only with further repairs."""
        changed = self._changed(chosen, texts, chosen.resolution)
        try:
            resolution = self._solve(changed.requirements, chosen.locker)
        except DependencyError:
            return None
        before = chosen.resolution
        if resolution.python != before.python or resolution.adjustments != before.adjustments:
            return None
        return self._changed(chosen, texts, resolution)

    def _changed(self, chosen: Chosen, texts: Iterable[str], resolution: FoundLocks) -> Chosen:
        entries = tuple(_entry(text, self._path) for text in dict.fromkeys(texts))
        return replace(
            chosen,
            resolution=resolution,
            requirements=replace(chosen.requirements, entries=(*chosen.requirements.entries, *entries)),
            carried={platform: accelerator.carried(lock) for platform, lock in resolution.locks.items()},
        )

    def _hints(self, chosen: Chosen, left: Sequence[Missing]) -> dict[Missing, str]:
        roots = frozenset[str]()
        if left:
            wheels = [wheel for lock in chosen.resolution.locks.values() for wheel in lock.wheels]
            roots = roots.union(*self._provides.modules(wheels).values())
        hints = {one: self._advice(one, roots) for one in left}
        inside = {one: place for one in left if (place := imports.lies_in(one.item.module, self._files))}
        for one, place in inside.items():
            hints[one] = f"{one.item.name} lies in {place}: move it to the root, which alone is imported from"
        own = {one: hint for one in left if (hint := imports.not_in_directory(one.item.module, self._files))}
        hints |= own
        unknown = [
            one for one in left if one not in {**inside, **own} and not imports.known().requirement(one.item.module)
        ]
        for one in [one for one in unknown if imports.near(one.item.module, roots) is None][:TRIED]:
            if pin := self._same_name(chosen, one):
                hints[one] = f"add {pin} if that is meant (its wheel has this module, and it locks), or {GUARD}"
        return hints

    def _advice(self, one: Missing, roots: frozenset[str]) -> str:
        text = imports.known().requirement(one.item.module)
        if text is None:
            return imports.advice(one.item.module, roots)
        if self._fixed:
            return f"add {text} and lock again, or {GUARD}"
        return f"{text} provides it and does not lock beside what is required: loosen a pin for it, or {GUARD}"

    def _same_name(self, chosen: Chosen, one: Missing) -> str | None:
        """A pin of the package that is named as the module, where its wheel has it and it locks beside the others.

        It is only proposed: whose package it is, nobody said, and misspelt names are what others' packages wait for.
        """
        name = imports.same_name(one.item.module)
        if name is None or self._fixed:
            return None
        again = self._extended(chosen, [name])
        if again is None:
            return None
        for lock in again.resolution.locks.values():
            wheels = [wheel for wheel in lock.wheels if wheel.name == name]
            if not any(provided(one.item.module, found) for found in self._provides.modules(wheels).values()):
                return None
        return _pin(name, again.resolution)


def _entry(text: str, path: str) -> Requirement:
    parsed = Pep508(text)
    return Requirement(
        name=canonicalize_name(parsed.name), specifier=str(parsed.specifier), path=path, line=0, text=text
    )


def _pin(name: str, resolution: FoundLocks) -> str | None:
    """`name==version` where all platforms have one version, the bare name otherwise."""
    versions = {lock.versions[name] for lock in resolution.locks.values() if name in lock.versions}
    return f"{name}=={versions.pop()}" if len(versions) == 1 else name


def _adjustment(one: Missing, text: str, resolution: FoundLocks) -> Adjustment:
    name = canonicalize_name(Pep508(text).name)
    pin = _pin(name, resolution) or name
    return Adjustment(
        code=ADDED,
        package=name,
        before="",
        after=pin.removeprefix(name),
        where=f"{one.item.path}:{one.item.line}",
        reason=f"{one.item.module} is imported there, and no required package provides it",
    )


def _refusal(changes: Mapping[Missing, Adjustment], path: str, platforms: Sequence[Platform]) -> ImportMissing:
    findings = [
        imports.finding(one, all_platforms=platforms, hint=f"write {change.package}{change.after} into {path}")
        for one, change in changes.items()
    ]
    hints = "; ".join(dict.fromkeys(finding.hint for finding in findings))
    first = findings[0]
    return ImportMissing(f"{first.where}: {first.message}", hint=f"{hints} (or use --policy fix)", findings=findings)
