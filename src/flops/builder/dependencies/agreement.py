"""What there is to say about locks that were found: versions that differ or were withdrawn, names that may not be meant (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from flops.builder.dependencies.nearest import lookalikes
from flops.errors import Finding

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flops.builder.formats.requirement import Requirement
    from flops.builder.formats.requirements import Requirements
    from flops.builder.locking.lock import Lock
    from flops.platforms import Platform


def differences(locks: Mapping[Platform, Lock], requirements: Requirements) -> list[Finding]:
    """One finding for each package whose version is not the same on all platforms that have it."""
    found: list[Finding] = []
    versions = {platform: lock.versions for platform, lock in sorted(locks.items())}
    for name in sorted({name for one in versions.values() for name in one}):
        own = {platform: one[name] for platform, one in versions.items() if name in one}
        # `2.1.1+cpu` and `2.1.1` are builds of one release
        if len({Version(version).public for version in own.values()}) < 2:  # noqa: PLR2004
            continue
        entry = next((entry for entry in requirements.entries if entry.name == name), None)
        shown = ", ".join(f"{version} on {platform}" for platform, version in own.items())
        found.append(
            _finding(
                requirements,
                entry,
                code="VERSIONS_DIFFER",
                message=f"{name} is {shown}: learners of these platforms may not agree on parameters",
                hint=f"pin a version of {name} that has a wheel on every platform",
            )
        )
    return found


def withdrawn(locks: Mapping[Platform, Lock], requirements: Requirements) -> list[Finding]:
    """One finding for each version that is locked, since it is pinned, though its authors withdrew it (PEP 592)."""
    found: dict[tuple[str, str, str], list[Platform]] = {}
    for platform, lock in sorted(locks.items()):
        for wheel in lock.wheels:
            if wheel.yanked is not None:
                found.setdefault((wheel.name, wheel.version, wheel.yanked), []).append(platform)
    findings: list[Finding] = []
    for (name, version, reason), on in found.items():
        own = [entry for entry in requirements.entries if entry.name == name]
        entry = next((one for one in own if SpecifierSet(one.specifier).contains(version, prereleases=True)), None)
        where = "" if len(on) == len(locks) else f" (on {' and '.join(map(str, on))})"
        findings.append(
            _finding(
                requirements,
                entry,
                code="PIN_YANKED",
                message=f"{name} {version} was withdrawn by its authors{where}{f': {reason}' if reason else ''}",
                hint=f"it is taken as it is pinned; pin a version of {name} that stands",
            )
        )
    return findings


def outgrown(
    locks: Mapping[Platform, Lock], requires: Mapping[str, str], requirements: Requirements
) -> tuple[Finding, ...]:
    """One finding for each package whose own Requires-Python excludes the Python that it is locked for.

    uv, as other resolvers, takes no heed of its upper bounds, which are mostly guesses. `requires`: by the wheels' sha256.
    """
    found: dict[tuple[str, str], Finding] = {}
    for lock in locks.values():
        for wheel in lock.wheels:
            asked = requires.get(wheel.sha256, "")
            try:
                fits = SpecifierSet(asked).contains(lock.python, prereleases=True)
            except InvalidSpecifier:
                continue
            if not fits:
                shown = " ".join(asked.split())[:100]
                entry = next((entry for entry in requirements.entries if entry.name == wheel.name), None)
                found[wheel.name, wheel.version] = _finding(
                    requirements,
                    entry,
                    code="PYTHON_NOT_FORESEEN",
                    message=f"{wheel.name} {wheel.version} asks for Python {shown}, and Python {lock.python} is used",
                    hint=f"see that it works, or take a version of {wheel.name} or of Python for which it is made",
                )
    return tuple(found[key] for key in sorted(found))


def suspects(requirements: Requirements, modules: Collection[str]) -> list[Finding]:
    """One finding for each name that exists but is nearly that of a package that the code imports."""
    alike = lookalikes([entry.name for entry in requirements.entries], modules)
    return [
        Finding(
            path=entry.path,
            line=entry.line,
            code="NAME_SUSPECT",
            message=f"{entry.name} is imported nowhere, and {alike[entry.name]}, which is imported, is named nearly so",
            hint=f"did you mean {alike[entry.name]}?",
        )
        for entry in requirements.entries
        if entry.name in alike
    ]


def _finding(requirements: Requirements, entry: Requirement | None, *, code: str, message: str, hint: str) -> Finding:
    """At the line that asks for a package; of one that nobody asks for, in the file that counts."""
    path, line = (entry.path, entry.line) if entry else (requirements.path, 0)
    return Finding(path=path, line=line, code=code, message=message, hint=hint)
