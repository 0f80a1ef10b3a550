"""Why a requirement has no wheel, judged by what the index published (pure), and the findings and errors that say so.

Codes of findings: PACKAGE_NOT_FOUND, VERSION_NOT_FOUND, YANKED, SDIST_ONLY, NO_WHEEL (for the platform), NO_WHEEL_PYTHON,
REQUIRES_PYTHON, and RESOLVE for requirements that conflict with each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops.errors import (
    DependencyError,
    Finding,
    NoWheel,
    NoWheelForPython,
    PackageNotFound,
    PythonUnavailable,
    RequiresPython,
    SdistOnly,
    Unresolvable,
    VersionNotFound,
    Yanked,
)
from flops.repair.pins import by_distance, contradicts_itself, mentioned, nearest_first, pinned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from packaging.version import Version

    from flops.formats.requirement import Requirement
    from flops.locking.index import IndexFile, IndexProject
    from flops.locking.pylock import LockTarget
    from flops.platforms import Platform

#: By gravity: an error with several findings is of the kind that comes first here.
KINDS: tuple[type[DependencyError], ...] = (
    PackageNotFound,
    VersionNotFound,
    Yanked,
    SdistOnly,
    NoWheel,
    NoWheelForPython,
    RequiresPython,
    PythonUnavailable,
    Unresolvable,
)
#: Another version of Python does not help against these.
INDEPENDENT_OF_PYTHON = frozenset({PackageNotFound, VersionNotFound, Yanked, SdistOnly})
#: Characters of uv's explanation that a message keeps.
EXPLANATION = 400


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why one requirement has no wheel."""

    kind: type[DependencyError]
    message: str
    near: str = ""
    """Published versions near a requested one that was never published."""


def cause(project: IndexProject | None, entry: Requirement, targets: Sequence[LockTarget]) -> Cause:
    """Judge by the index's page of the package, for targets on which the requirement is known to have no wheel."""
    if project is None:
        return Cause(kind=PackageNotFound, message=f"the package index has no package {entry.name}")
    files = project.allowed(entry.specifier)
    if not files:
        pin = pinned(entry) or mentioned(entry)
        near = by_distance(project.versions, pin)[:3] if pin else []
        return Cause(
            kind=VersionNotFound, message=_never_published(project, entry), near=", ".join(map(str, sorted(near)))
        )
    live = [file for file in files if not file.yanked]
    if not live:
        return Cause(kind=Yanked, message=f"{_subject(entry)} was withdrawn by its authors")
    wheels = [file for file in live if file.is_wheel]
    if not wheels:
        message = f"{_subject(entry)} was published as source only, and packages are not built from source"
        return Cause(kind=SdistOnly, message=message)
    return _unsuitable_wheels(entry, wheels, targets)


def _unsuitable_wheels(entry: Requirement, wheels: Sequence[IndexFile], targets: Sequence[LockTarget]) -> Cause:
    names = " and ".join(str(target.platform) for target in targets)
    for target in targets:
        systems = {tag.platform for tag in target.tags}
        here = [file for file in wheels if any(tag.platform in systems for tag in file.tags)]
        if not here:
            return Cause(kind=NoWheel, message=f"{_subject(entry)} has no wheel for {names}")
        fitting = [file for file in here if any(tag in target.tags for tag in file.tags)]
        if not fitting:
            message = f"{_subject(entry)} has no wheel for Python {target.minor} on {target.platform}{_others(here)}"
            return Cause(kind=NoWheelForPython, message=message)
        if not any(file.takes(target.python) for file in fitting):
            needed = max(fitting, key=lambda file: file.version).requires_python
            message = f"{_subject(entry)} asks for Python {needed}, and Python {target.python} is used"
            return Cause(kind=RequiresPython, message=message)
    message = f"{_subject(entry)} is not available for Python {targets[0].minor} on {names}"
    return Cause(kind=NoWheel, message=message)


def _never_published(project: IndexProject, entry: Requirement) -> str:
    if not project.versions:
        return f"nothing was published under the name {entry.name}"
    if contradicts_itself(entry):
        return f"the bounds of {entry.name}{entry.specifier} exclude each other"
    version = pinned(entry)
    if version is None:
        return f"no version of {entry.name} that {entry.specifier} allows was ever published"
    return f"{entry.name} {version} was never published"


def _subject(entry: Requirement) -> str:
    version = pinned(entry)
    if version is not None:
        return f"{entry.name} {version}"
    allowed = f" that {entry.specifier} allows" if entry.specifier else ""
    return f"every version of {entry.name}{allowed}"


def _others(files: Iterable[IndexFile]) -> str:
    """The Pythons for which there are wheels."""
    minors = {
        (int(tag.interpreter[2]), int(tag.interpreter[3:]))
        for file in files
        for tag in file.tags
        if tag.interpreter.startswith("cp") and tag.interpreter[3:].isdecimal()
    }
    if not minors:
        return ""
    low, high = (".".join(map(str, end)) for end in (min(minors), max(minors)))
    return f"; there are some for {low}" + (f" to {high}" if low != high else "")


def no_wheel_finding(entry: Requirement, why: Cause, usable: Sequence[Version]) -> Finding:
    """The finding for a requirement without a wheel; `usable`: versions that have one on all affected platforms."""
    message = f"{why.message}; the nearest are {why.near}" if why.near else why.message
    if why.kind is PackageNotFound:
        hint = "correct the name, or remove the line"
    elif contradicts_itself(entry):
        message, hint = why.message, "correct the bounds"
    elif not usable:
        hint = "no version of it can be used here; remove the line, or use another package"
    else:
        best = (nearest_first(entry, usable) or usable)[0]
        hint = f"the nearest that can be used is {best}: write {entry.name}=={best}"
    return entry.finding(why.kind.code, message, hint)


def conflict_findings(
    entries: Sequence[Requirement], platform: Platform, python: str, explanation: str
) -> list[Finding]:
    """One finding for each requirement of a smallest set that can't be locked."""
    if len(entries) == 1:
        (entry,) = entries
        message = (
            f"{as_written(entry)} needs packages that are not available for Python {python} on {platform}: "
            f"{explanation[:EXPLANATION]}"
        )
        hint = "use another version of it, or pin its dependency to a version that has a wheel"
        return [entry.finding(NoWheel.code, message, hint)]
    findings: list[Finding] = []
    for entry in entries:
        others = [other for other in entries if other is not entry]
        message = f"{as_written(entry)} conflicts with {with_places(others)}"
        hint = f"change this line, or one of {', '.join(other.where for other in others)}"
        findings.append(entry.finding(Unresolvable.code, message, hint))
    return findings


def error(findings: Sequence[Finding], *, details: str = "") -> DependencyError:
    """One error with all findings; its kind, message and hint are those of the gravest."""
    kinds = {kind.code: kind for kind in KINDS}
    gravity = list(kinds)
    first = min(findings, key=lambda one: gravity.index(one.code))
    more = f"; {details[:EXPLANATION]}" if details else ""
    return kinds[first.code](f"{first.where}: {first.message}{more}", hint=first.hint, findings=findings)


def as_written(entry: Requirement) -> str:
    """The requirement as its author wrote it, where that is one line of text."""
    return entry.text if entry.text.isprintable() and entry.text else entry.pep508


def with_places(entries: Iterable[Requirement]) -> str:
    """Requirements with their files and lines, as part of a sentence."""
    return " and ".join(f"{as_written(entry)} ({entry.where})" for entry in entries)
