"""Why a requirement has no wheel, told by what the index published (pure), and the errors that say so.

Codes of findings: PACKAGE_NOT_FOUND, VERSION_NOT_FOUND, YANKED, SDIST_ONLY, NO_WHEEL (for the platform), NO_WHEEL_PYTHON,
REQUIRES_PYTHON, and RESOLVE for requirements that can't stand beside one another.
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
from flops.repair.pins import by_distance, contradicts_itself, named, near, pinned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from packaging.version import Version

    from flops.formats.requirement import Requirement
    from flops.locking.index import IndexFile, IndexProject
    from flops.locking.pylock import LockTarget
    from flops.platforms import Platform

#: The error that tells of all findings is of the kind that comes first here.
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
#: No other version of Python changes anything about these.
WHATEVER_PYTHON = frozenset({PackageNotFound, VersionNotFound, Yanked, SdistOnly})
#: Characters of uv's reasons that a message keeps.
REASONS = 400


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why one requirement has no wheel."""

    kind: type[DependencyError]
    message: str
    near: str = ""
    """Published versions that are near to the one that never was."""


def cause(project: IndexProject | None, entry: Requirement, targets: Sequence[LockTarget]) -> Cause:
    """Told by what was published under its name, for targets on which it is known to have no wheel."""
    if project is None:
        return Cause(kind=PackageNotFound, message=f"the package index has no package {entry.name}")
    files = project.allowed(entry.specifier)
    if not files:
        return Cause(kind=VersionNotFound, message=_never(project, entry), near=_near(project, entry))
    live = [file for file in files if not file.yanked]
    if not live:
        return Cause(kind=Yanked, message=f"{_subject(entry)} was withdrawn by its authors")
    wheels = [file for file in live if file.is_wheel]
    if not wheels:
        message = f"{_subject(entry)} was published as source only, and nothing is built here"
        return Cause(kind=SdistOnly, message=message)
    return _of_wheels(entry, wheels, targets)


def _of_wheels(entry: Requirement, wheels: Sequence[IndexFile], targets: Sequence[LockTarget]) -> Cause:
    for target in targets:
        places = {tag.platform for tag in target.tags}
        here = [file for file in wheels if any(tag.platform in places for tag in file.tags)]
        if not here:
            names = " and ".join(str(one.platform) for one in targets)
            return Cause(kind=NoWheel, message=f"{_subject(entry)} has no wheel for {names}")
        fitting = [file for file in here if any(tag in target.tags for tag in file.tags)]
        if not fitting:
            message = f"{_subject(entry)} has no wheel for Python {target.minor} on {target.platform}{_others(here)}"
            return Cause(kind=NoWheelForPython, message=message)
        if not any(file.takes(target.python) for file in fitting):
            asked = max(fitting, key=lambda file: file.version).requires_python
            message = f"{_subject(entry)} asks for Python {asked}, and Python {target.python} is used"
            return Cause(kind=RequiresPython, message=message)
    names = " and ".join(str(one.platform) for one in targets)
    return Cause(kind=NoWheel, message=f"{_subject(entry)} can't be had for Python {targets[0].minor} on {names}")


def _never(project: IndexProject, entry: Requirement) -> str:
    if not project.versions:
        return f"nothing was published under the name {entry.name}"
    version = pinned(entry)
    if contradicts_itself(entry):
        return f"the bounds of {entry.name}{entry.specifier} exclude each other"
    if version is None:
        return f"no version of {entry.name} that {entry.specifier} allows was ever published"
    return f"{entry.name} {version} was never published"


def _near(project: IndexProject, entry: Requirement) -> str:
    pin = pinned(entry) or named(entry)
    around = by_distance(project.versions, pin) if pin else []
    return ", ".join(str(one) for one in sorted(around[:3]))


def _subject(entry: Requirement) -> str:
    version = pinned(entry)
    if version is not None:
        return f"{entry.name} {version}"
    allowed = f" that {entry.specifier} allows" if entry.specifier else ""
    return f"every version of {entry.name}{allowed}"


def _others(files: Iterable[IndexFile]) -> str:
    """The Pythons for which there are wheels of their own."""
    minors = {
        (int(tag.interpreter[2]), int(tag.interpreter[3:]))
        for file in files
        for tag in file.tags
        if tag.interpreter.startswith("cp") and tag.interpreter[3:].isdecimal()
    }
    if not minors:
        return ""
    (low, high) = (".".join(map(str, end)) for end in (min(minors), max(minors)))
    return f"; there are some for {low}" + (f" to {high}" if low != high else "")


def finding(entry: Requirement, kind: type[DependencyError], message: str, hint: str) -> Finding:
    return Finding(path=entry.path, line=entry.line, code=kind.code, message=message, hint=hint)


def lacking(entry: Requirement, why: Cause, usable: Sequence[Version]) -> Finding:
    """The finding for a requirement without a wheel; `usable`: versions that have one wherever it lacks."""
    message = f"{why.message}; the nearest are {why.near}" if why.near else why.message
    if why.kind is PackageNotFound:
        return finding(entry, why.kind, message, "correct the name, or take the line out")
    if contradicts_itself(entry):
        return finding(entry, why.kind, why.message, "write the bounds that are meant")
    if not usable:
        hint = "no version of it can be used here; take the line out, or use another package"
        return finding(entry, why.kind, message, hint)
    best = (near(entry, usable) or usable)[0]
    return finding(entry, why.kind, message, f"the nearest that can be used is {best}: write {entry.name}=={best}")


def conflict(core: Sequence[Requirement], platform: Platform, python: str, reasons: str) -> list[Finding]:
    """One finding for each line of a smallest set that can't be locked."""
    if len(core) == 1:
        message = (
            f"{shown(core[0])} needs packages that can't be had for Python {python} on {platform}: {reasons[:REASONS]}"
        )
        hint = "use another version of it, or pin what it depends on to a version that has a wheel"
        return [finding(core[0], NoWheel, message, hint)]
    return [
        finding(
            entry,
            Unresolvable,
            f"{shown(entry)} can't stand beside {_and(other for other in core if other is not entry)}",
            f"change this line, or one of {_places(other for other in core if other is not entry)}",
        )
        for entry in core
    ]


def error(findings: Sequence[Finding], *, details: str = "") -> DependencyError:
    """One error that tells all findings; its message is that of the gravest."""
    kinds = {kind.code: kind for kind in KINDS}
    order = [kind.code for kind in KINDS]
    first = min(findings, key=lambda one: order.index(one.code))
    more = f"; {details[:REASONS]}" if details else ""
    return kinds[first.code](f"{first.where}: {first.message}{more}", hint=first.hint, findings=findings)


def shown(entry: Requirement) -> str:
    """The requirement as its author wrote it, where that is one line of text."""
    return entry.text if entry.text.isprintable() and entry.text else entry.pep508


def _and(entries: Iterable[Requirement]) -> str:
    return " and ".join(f"{shown(entry)} ({entry.where})" for entry in entries)


def _places(entries: Iterable[Requirement]) -> str:
    return ", ".join(entry.where for entry in entries)
