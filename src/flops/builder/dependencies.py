"""What is installed, decided: the doctor's locks, with the builds that are wanted, what the code imports, and no trackers.

Everything is said about locks, so before any wheel is fetched.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packaging.requirements import Requirement as Pep508
from packaging.utils import canonicalize_name

from flops.builder import accelerator, doctor, imports, own_lock, privacy
from flops.builder import requirements as requirement_files
from flops.builder.provides import provided
from flops.builder.requirement import Requirement
from flops.errors import Adjustment, DependencyError, Finding, FlopsError, ImportMissing, NoWheel, Unresolvable
from flops.progress import Silent, Stage
from flops.recipe import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flops.builder.accelerator import Chosen
    from flops.builder.doctor import PythonChoice, Resolution
    from flops.builder.imports import Missing
    from flops.builder.inspection import Inspection
    from flops.builder.lock import Lock, Locker
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


def settle(seen: Inspection, question: Question, *, locker: Locker, provides: Provides) -> Settlement:
    """Lock what the repository asks for and its code imports, without what would tell about a learner's data.

    Errors as `doctor.resolve` and `own_lock.compare_hashes`; under STRICT ImportMissing where a package would be added.
    """
    reporter = question.reporter
    requirements = privacy.without(seen.requirements)
    doctors = _Doctor(seen, question)
    chosen = accelerator.choose(
        requirements,
        question.recipe.accelerator,
        locker=locker,
        platforms=question.platforms,
        pythons=question.pythons,
        solve=doctors.solve,
    )
    if chosen.told:
        hint = (
            "set FLOPS_TORCH_INDEX to an index of CPU builds that answers; --accelerator cuda says that this is meant"
        )
        reporter.warning(Stage.RESOLVE, chosen.told, hint=hint)
    findings: tuple[Finding, ...] = ()
    added: tuple[Adjustment, ...] = ()
    try:
        chosen, added, findings = _Imports(seen, question, doctors, provides).settled(chosen)
    except ImportMissing:
        raise
    except FlopsError as error:
        reporter.warning(Stage.RESOLVE, f"imports were not compared with the packages: {error.message}")
    resolution = chosen.resolution
    findings += (*resolution.findings, *_trackers(chosen, seen, provides))
    adjustments = (
        *requirements.adjustments[len(seen.requirements.adjustments) :],
        *chosen.adjustments,
        *resolution.adjustments,
        *added,
    )
    for adjustment in adjustments:
        reporter.adjusted(adjustment)
    for finding in findings:
        reporter.finding(finding)
    hashes = own_lock.compare_hashes(seen.requirements, resolution.locks, reporter)
    return Settlement(chosen=chosen, findings=(*findings, *hashes), adjustments=adjustments)


class _Doctor:
    """Locks requirements, by the repository's own lock where it has one. What it tells is told once, when all is decided."""

    def __init__(self, seen: Inspection, question: Question) -> None:
        self._question = question
        self._modules = frozenset(item.module for item in seen.structure.imports if item.reached)
        self._files = seen.checkout.read(requirement_files.is_candidate)
        self._reporter = _Untold(question.reporter)

    def solve(self, requirements: Requirements, locker: Locker) -> Resolution:
        question = self._question

        def otherwise() -> Resolution:
            return doctor.resolve(
                requirements,
                question.platforms,
                question.pythons,
                locker=locker,
                policy=question.recipe.policy,
                python_flag=question.recipe.python,
                reporter=self._reporter,
                modules=self._modules,
                files=self._files,
            )

        return own_lock.resolve(
            requirements,
            question.platforms,
            question.pythons,
            locker=locker,
            policy=question.recipe.policy,
            python_flag=question.recipe.python,
            reporter=self._reporter,
            otherwise=otherwise,
        )


def _trackers(chosen: Chosen, seen: Inspection, provides: Provides) -> tuple[Finding, ...]:
    locks = chosen.resolution.locks
    try:
        return privacy.brought(chosen.requirements.entries, locks, provides)
    except FlopsError:  # what brings them could not be read; that they are there is certain
        return privacy.unexplained(locks, seen.requirements.path)


class _Imports:
    """From the modules that are missing to packages that are added, or findings."""

    def __init__(self, seen: Inspection, question: Question, doctors: _Doctor, provides: Provides) -> None:
        self._path = seen.requirements.path
        self._fixed = seen.requirements.complete
        self._doctor = doctors
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
            resolution = self._doctor.solve(changed.requirements, chosen.locker)
        except DependencyError:
            return None
        before = chosen.resolution
        if resolution.python != before.python or resolution.adjustments != before.adjustments:
            return None
        return self._changed(chosen, texts, resolution)

    def _changed(self, chosen: Chosen, texts: Iterable[str], resolution: Resolution) -> Chosen:
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
        hints = {one: imports.advice(one.item.module, roots) for one in left}
        for one in [one for one in left if imports.near(one.item.module, roots) is None][:TRIED]:
            if pin := self._same_name(chosen, one):
                hints[one] = f"add {pin} if that is meant (its wheel has this module, and it locks), or {GUARD}"
        return hints

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


class _Untold(Silent):
    """Passes on warnings, each once: of several resolutions only the last one's adjustments and findings count."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._warned: set[str] = set()

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        if message not in self._warned:
            self._warned.add(message)
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
