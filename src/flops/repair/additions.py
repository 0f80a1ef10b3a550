"""Adds packages for modules that the code imports and no locked package provides, or reports what to add.

A package is added where `resources/modules.toml` names it, its wheel has the module, and it locks beside exactly what is
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
from flops.repair import imports, trackers
from flops.wheels.provides import provided

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.repair.accelerator import AcceleratorChoice, Solve
    from flops.repair.doctor import FoundLocks, LockRequest
    from flops.repair.imports import MissingModule
    from flops.repair.inspection import Inspection
    from flops.wheels.provides import Provides

ADDED = "ADDED"
#: Unknown modules for which a package of the same name is tried; each costs a lock.
TRIED = 3
GUARD = "guard the import with try/except ImportError"


class Additions:
    """Packages for the modules that a repository imports and that are missing."""

    def __init__(self, inspection: Inspection, request: LockRequest, *, solve: Solve, provides: Provides) -> None:
        self._path = inspection.requirements.path
        self._complete = inspection.requirements.complete
        self._imports = inspection.structure.imports
        self._files = [file.path for file in inspection.checkout.files if file.link is None]
        self._request = request
        self._solve = solve
        self._provides = provides

    def added(self, choice: AcceleratorChoice) -> tuple[AcceleratorChoice, tuple[Adjustment, ...], tuple[Finding, ...]]:
        """The choice with packages added, the adjustments for them, and findings for what is still missing.

        Errors as `Provides.modules`; ImportMissing where the policy STRICT forbids to add a package.
        """
        missing = self._missing(choice.found)
        tracked = [one for one in missing if one.item.name in trackers.modules()]
        others = [one for one in missing if one.item.name not in trackers.modules()]
        packages = {one: text for one in others if (text := imports.known().requirement(one.item.module))}
        choice, added = self._with(choice, packages)
        changes = {one: _adjustment(one, packages[one], choice.found) for one in added}
        if self._request.recipe.policy is Policy.STRICT and changes:
            raise self._refusal(changes)
        first_of_each = {change.package: change for change in reversed(changes.values())}
        left = [one for one in others if one not in added]
        hints = self._hints(choice, left)
        findings = (self._finding(one, hints[one]) for one in left)
        adjustments = tuple(first_of_each.values())[::-1]
        return choice, adjustments, (*trackers.imported(one.item for one in tracked), *findings)

    def _missing(self, found: FoundLocks) -> list[MissingModule]:
        # imports of MLflow were noted when the requirements were read
        needed = imports.needed(self._imports, found.python.version, ignored={"mlflow"})
        return imports.missing(needed, found.locks, self._provides)

    def _with(
        self, choice: AcceleratorChoice, packages: Mapping[MissingModule, str]
    ) -> tuple[AcceleratorChoice, list[MissingModule]]:
        """All of the packages where they lock together, else one after the other; each must provide its module."""
        if self._complete:  # the repository's own lock holds all that is installed
            return choice, []
        everything = list(packages)
        again = self._with_texts(choice, packages.values(), resolve=True) if everything else None
        if again is not None and self._provide(again, everything):
            return again, everything
        added: list[MissingModule] = []
        for one in everything if len(everything) > 1 else ():
            again = self._with_texts(choice, [packages[one]], resolve=False)
            if again is not None and self._provide(again, [one]):
                choice = again
                added.append(one)
        return choice, added

    def _provide(self, choice: AcceleratorChoice, modules: Iterable[MissingModule]) -> bool:
        missing = {one.item.module for one in self._missing(choice.found)}
        return missing.isdisjoint(one.item.module for one in modules)

    def _with_texts(
        self, choice: AcceleratorChoice, texts: Iterable[str], *, resolve: bool
    ) -> AcceleratorChoice | None:
        """With these requirements beside exactly what is locked.

        Where that does not lock: with `resolve` beside what is required, if no further repair is needed; else None.
        """
        texts = list(dict.fromkeys(texts))
        own = tuple(_requirement(text, self._path) for text in texts)
        requirements = replace(choice.requirements, entries=(*choice.requirements.entries, *own))
        locks = self._extended_locks(choice, texts)
        if locks is not None:
            return replace(choice, found=replace(choice.found, locks=locks), requirements=requirements)
        if not resolve:
            return None
        try:
            found = self._solve(requirements, choice.locker)
        except DependencyError:
            return None
        if (found.python, found.adjustments) != (choice.found.python, choice.found.adjustments):
            return None
        return replace(choice, found=found, requirements=requirements)

    def _extended_locks(self, choice: AcceleratorChoice, texts: Sequence[str]) -> dict[Platform, Lock] | None:
        """Locks of pins, which take uv a moment and can't move anything."""
        before = choice.found.locks

        def lock(platform: Platform, prefer: Lock | None = None) -> Lock | None:
            pins = [f"{wheel.name}=={wheel.version}" for wheel in before[platform].wheels]
            return _lock([*pins, *texts], platform, choice, prefer=prefer)

        with ThreadPoolExecutor(len(before)) as pool:
            found = dict(zip(before, pool.map(lock, before), strict=True))
        locks = {platform: one for platform, one in found.items() if one is not None}
        if len(locks) < len(found):
            return None
        first = next(iter(locks.values()))
        for platform, one in locks.items():
            if any(first.versions.get(name, version) != version for name, version in one.versions.items()):
                locks[platform] = lock(platform, first) or one
        return locks

    def _finding(self, one: MissingModule, hint: str) -> Finding:
        return imports.finding(one, all_platforms=self._request.platforms, hint=hint)

    def _refusal(self, changes: Mapping[MissingModule, Adjustment]) -> ImportMissing:
        findings = [
            self._finding(one, f"write {change.package}{change.after} into {self._path}")
            for one, change in changes.items()
        ]
        hints = "; ".join(dict.fromkeys(finding.hint for finding in findings))
        first = findings[0]
        message, hint = f"{first.where}: {first.message}", f"{hints} (or use --policy fix)"
        return ImportMissing(message, hint=hint, findings=findings)

    def _hints(self, choice: AcceleratorChoice, left: Sequence[MissingModule]) -> dict[MissingModule, str]:
        if not left:
            return {}
        wheels = [wheel for lock in choice.found.locks.values() for wheel in lock.wheels]
        roots = frozenset[str]().union(*self._provides.modules(wheels).values())
        hints: dict[MissingModule, str] = {}
        tried = 0
        for one in left:
            module = one.item.module
            text = imports.known().requirement(module)
            if hint := imports.not_in_directory(module, self._files):
                hints[one] = hint
            elif directory := imports.directory_of(module, self._files):
                hints[one] = f"{one.item.name} is in {directory}: move it to the root, which alone is imported from"
            elif text is not None and self._complete:
                hints[one] = f"add {text} and lock again, or {GUARD}"
            elif text is not None:
                hints[one] = (
                    f"{text} provides it and does not lock beside what is required: loosen a pin for it, or {GUARD}"
                )
            else:
                hints[one] = imports.advice(module, roots)
                if tried < TRIED and imports.near(module, roots) is None:
                    tried += 1
                    if pin := self._same_name(choice, one):
                        hints[one] = f"add {pin} if that is meant (its wheel has this module, and it locks), or {GUARD}"
        return hints

    def _same_name(self, choice: AcceleratorChoice, one: MissingModule) -> str | None:
        """A pin of the package that is named as the module, if its wheel has the module and it locks beside the others.

        It is only proposed: nobody said which package is meant, and misspelt names are registered by people who wait for that.
        """
        name = imports.same_name(one.item.module)
        if name is None or self._complete:
            return None
        locks = self._extended_locks(choice, [name])
        if locks is None:
            return None
        for lock in locks.values():
            wheels = [wheel for wheel in lock.wheels if wheel.name == name]
            if not any(provided(one.item.module, roots) for roots in self._provides.modules(wheels).values()):
                return None
        return _pin(name, locks)


def _lock(lines: Sequence[str], platform: Platform, choice: AcceleratorChoice, *, prefer: Lock | None) -> Lock | None:
    """A failure costs as much as a lock, so it is remembered as long."""
    python = choice.found.python
    request = {"refused": sorted(lines), "target": [platform.value, python.version, list(python.glibc)]}
    if choice.locker.recall(request) is True:
        return None
    try:
        return choice.locker.lock(lines, platform=platform, python=python.version, glibc=python.glibc, prefer=prefer)
    except (NoWheel, Unresolvable):
        choice.locker.remember(request, True)
        return None


def _requirement(text: str, path: str) -> Requirement:
    parsed = Pep508(text)
    name = canonicalize_name(parsed.name)
    return Requirement(name=name, specifier=str(parsed.specifier), path=path, line=0, text=text)


def _pin(name: str, locks: Mapping[Platform, Lock]) -> str:
    """`name==version` where all platforms have one version, the bare name otherwise."""
    versions = {lock.versions[name] for lock in locks.values() if name in lock.versions}
    return f"{name}=={versions.pop()}" if len(versions) == 1 else name


def _adjustment(one: MissingModule, text: str, found: FoundLocks) -> Adjustment:
    name = canonicalize_name(Pep508(text).name)
    return Adjustment(
        code=ADDED,
        package=name,
        before="",
        after=_pin(name, found.locks).removeprefix(name),
        path=one.item.path,
        line=one.item.line,
        reason=f"{one.item.module} is imported there, and no required package provides it",
    )
