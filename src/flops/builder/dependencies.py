"""What is installed, decided: the doctor's locks, with the builds that are wanted, what the code imports, and no trackers.

Everything is said about locks, so before any wheel is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packaging.requirements import Requirement as Pep508
from packaging.utils import canonicalize_name

from flops.builder import accelerator, doctor, imports, privacy
from flops.builder.provides import provided
from flops.builder.requirement import Requirement
from flops.errors import Adjustment, DependencyError, Finding, FlopsError, ImportMissing
from flops.progress import Stage
from flops.recipe import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from flops.builder.accelerator import Chosen
    from flops.builder.doctor import PythonChoice, Resolution
    from flops.builder.imports import Missing
    from flops.builder.inspection import Inspection
    from flops.builder.lock import Locker
    from flops.builder.provides import Provides
    from flops.builder.requirements import Requirements
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.recipe import Recipe

ADDED = "ADDED"
#: Modules that nothing sure is known of, for which a package of the same name is looked at; each costs a lock.
TRIED = 3
GUARD = "guard the import with try/except ImportError"


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """What the images will hold, and what there is to say about it."""

    chosen: Chosen
    findings: tuple[Finding, ...]
    adjustments: tuple[Adjustment, ...]
    """All that were made here; those of the requirements file come before them."""

    @property
    def resolution(self) -> Resolution:
        return replace(self.chosen.resolution, adjustments=self.adjustments)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the doctor, but for the requirements and the locker."""

    platforms: Sequence[Platform]
    pythons: Sequence[PythonChoice]
    recipe: Recipe
    reporter: Reporter

    def solve(self, requirements: Requirements, locker: Locker) -> Resolution:
        return doctor.resolve(
            requirements,
            self.platforms,
            self.pythons,
            locker=locker,
            policy=self.recipe.policy,
            python_flag=self.recipe.python,
            reporter=_Untold(self.reporter),
        )


def settle(seen: Inspection, question: Question, *, locker: Locker, provides: Provides) -> Settlement:
    """Lock what the repository asks for and its code imports, without what would tell about a learner's data.

    Errors as `doctor.resolve`; under STRICT ImportMissing where a package would have to be added.
    """
    reporter = question.reporter
    requirements = privacy.without(seen.requirements)
    chosen = accelerator.choose(
        requirements,
        question.recipe.accelerator,
        locker=locker,
        platforms=question.platforms,
        pythons=question.pythons,
        solve=question.solve,
    )
    if chosen.told:
        hint = "set FLOPS_TORCH_INDEX to an index of CPU builds that answers, or say with --accelerator cuda that this is meant"
        reporter.warning(Stage.RESOLVE, chosen.told, hint=hint)
    findings: tuple[Finding, ...] = ()
    added: tuple[Adjustment, ...] = ()
    try:
        chosen, added, findings = _Imports(seen, question, provides).settled(chosen)
    except ImportMissing:
        raise
    except FlopsError as error:
        reporter.warning(Stage.RESOLVE, f"imports were not compared with the packages: {error.message}")
    findings += _trackers(chosen, seen, provides)
    adjustments = (
        *requirements.adjustments[len(seen.requirements.adjustments) :],
        *chosen.adjustments,
        *chosen.resolution.adjustments,
        *added,
    )
    for adjustment in adjustments:
        reporter.adjusted(adjustment)
    for finding in findings:
        reporter.finding(finding)
    return Settlement(chosen=chosen, findings=findings, adjustments=adjustments)


def _trackers(chosen: Chosen, seen: Inspection, provides: Provides) -> tuple[Finding, ...]:
    locks = chosen.resolution.locks
    try:
        return privacy.brought(chosen.requirements.entries, locks, provides)
    except FlopsError:  # what brings them could not be read; that they are there is certain
        return privacy.unexplained(locks, seen.requirements.path)


class _Imports:
    """From the modules that are missing to packages that are added, or findings."""

    def __init__(self, seen: Inspection, question: Question, provides: Provides) -> None:
        self._path = seen.requirements.path
        self._imports = seen.structure.imports
        self._question = question
        self._provides = provides

    def settled(self, chosen: Chosen) -> tuple[Chosen, tuple[Adjustment, ...], tuple[Finding, ...]]:
        """The resolution with what was added, and what was found. Errors as `Provides.modules`; ImportMissing."""
        missing = self._missing(chosen.resolution)
        tracked = [one for one in missing if one.item.name in privacy.modules()]
        others = [one for one in missing if one.item.name not in privacy.modules()]
        sure = {one: text for one in others if (text := imports.known().requirement(one.item.module))}
        again, added = self._with(chosen, sure)
        adjustments = tuple(_adjustment(one, sure[one], again.resolution) for one in added)
        if self._question.recipe.policy is Policy.STRICT and adjustments:
            raise _refusal(added, adjustments, self._path, self._question.platforms)
        left = [one for one in others if one not in added]
        hints = self._hints(again, left)
        findings = tuple(imports.finding(one, all_platforms=self._question.platforms, hint=hints[one]) for one in left)
        return again, adjustments, (*privacy.imported(one.item for one in tracked), *findings)

    def _missing(self, resolution: Resolution) -> list[Missing]:
        # MLflow's imports were noted when the requirements were read
        wanted = imports.wanted(self._imports, resolution.python.version, but={"mlflow"})
        return imports.missing(wanted, resolution.locks, self._provides)

    def _with(self, chosen: Chosen, sure: Mapping[Missing, str]) -> tuple[Chosen, list[Missing]]:
        """All of them where they lock together, else as many as do one after the other; each then provides its module."""
        for some in [list(sure)] if len(sure) == 1 else [list(sure), *([one] for one in sure)]:
            again = self._locked(chosen, [sure[one] for one in some]) if some else None
            if again is None:
                continue
            lacking = {one.item.module for one in self._missing(again.resolution)}
            if not any(one.item.module in lacking for one in some):
                rest = {one: text for one, text in sure.items() if one not in some}
                further, more = self._with(again, rest) if rest else (again, [])
                return further, [*some, *more]
        return chosen, []

    def _locked(self, chosen: Chosen, texts: Iterable[str]) -> Chosen | None:
        """With these requirements beside the others; None where that does not lock, or moves what was locked."""
        entries = tuple(_entry(text, self._path) for text in dict.fromkeys(texts))
        requirements = replace(chosen.requirements, entries=(*chosen.requirements.entries, *entries))
        try:
            resolution = self._question.solve(requirements, chosen.locker)
        except DependencyError:
            return None
        before = chosen.resolution
        if resolution.python != before.python or resolution.adjustments != before.adjustments:
            return None
        return replace(
            chosen,
            resolution=resolution,
            requirements=requirements,
            carried={platform: accelerator.carried(lock) for platform, lock in resolution.locks.items()},
        )

    def _hints(self, chosen: Chosen, left: Sequence[Missing]) -> dict[Missing, str]:
        roots = frozenset[str]()
        if left:
            wheels = [wheel for lock in chosen.resolution.locks.values() for wheel in lock.wheels]
            roots = roots.union(*self._provides.modules(wheels).values())
        hints = {one: imports.advice(one.item.module, roots) for one in left}
        for one in left[:TRIED]:
            pin = self._same_name(chosen, one)
            if pin:
                hints[one] = f"add {pin} if that is meant (its wheel has this module, and it locks), or {GUARD}"
        return hints

    def _same_name(self, chosen: Chosen, one: Missing) -> str | None:
        """A pin of the package that is named as the module, where its wheel has it and it locks beside the others.

        It is only proposed: whose package it is, nobody said.
        """
        name = imports.same_name(one.item.module)
        if name is None:
            return None
        again = self._locked(chosen, [name])
        if again is None:
            return None
        for lock in again.resolution.locks.values():
            wheels = [wheel for wheel in lock.wheels if wheel.name == name]
            if not any(provided(one.item.module, found) for found in self._provides.modules(wheels).values()):
                return None
        return _pin(name, again.resolution)


class _Untold:
    """A reporter that passes on all but adjustments: of several resolutions only the last one's count."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def stage(self, stage: Stage, message: str) -> AbstractContextManager[None]:
        return self._reporter.stage(stage, message)

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:
        self._reporter.progress(stage, done=done, total=total, platform=platform)

    def adjusted(self, adjustment: Adjustment) -> None:
        pass

    def finding(self, finding: Finding) -> None:
        self._reporter.finding(finding)

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        self._reporter.warning(stage, message, hint=hint)


def _entry(text: str, path: str) -> Requirement:
    parsed = Pep508(text)
    return Requirement(
        name=canonicalize_name(parsed.name), specifier=str(parsed.specifier), path=path, line=0, text=text
    )


def _pin(name: str, resolution: Resolution) -> str | None:
    """`name==version` where all platforms have one version, the bare name otherwise."""
    versions = {lock.versions[name] for lock in resolution.locks.values() if name in lock.versions}
    return f"{name}=={versions.pop()}" if len(versions) == 1 else name


def _adjustment(one: Missing, text: str, resolution: Resolution) -> Adjustment:
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


def _refusal(
    added: Sequence[Missing], adjustments: Sequence[Adjustment], path: str, platforms: Sequence[Platform]
) -> ImportMissing:
    findings = [
        imports.finding(one, all_platforms=platforms, hint=f"write {change.package}{change.after} into {path}")
        for one, change in zip(added, adjustments, strict=True)
    ]
    hints = "; ".join(finding.hint for finding in findings)
    first = findings[0]
    return ImportMissing(f"{first.where}: {first.message}", hint=f"{hints} (or use --policy fix)", findings=findings)
