"""What locks show beside the repository's requirements: other hashes, other versions, withdrawn ones, suspect names (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.markers import Marker
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from flops.errors import WheelHash
from flops.locking.pylock import LockTarget
from flops.repair.pins import same_release
from flops.repair.similar_names import lookalikes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flops.errors import Finding
    from flops.formats.requirement import Requirement
    from flops.formats.requirements import Requirements
    from flops.locking.lock import Lock
    from flops.locking.pylock import LockedWheel
    from flops.platforms import Platform
    from flops.repair.trial import Entries

#: Markers do not depend on it.
GLIBC = (2, 36)


def compare_hashes(entries: Entries, locks: Mapping[Platform, Lock]) -> tuple[Finding, ...]:
    """Compare locked wheels with the hashes that requirements (of each platform) name; moved versions have none.

    WheelHash, with every line, where the repository names other bytes. Notes, LOCK_FILE_MISSING, where it does not list the
    wheel: its lock was made for another Python or platform, or the accelerator chose another build.
    """
    wrong: dict[Finding, None] = {}
    notes: dict[Finding, None] = {}
    for platform, lock in sorted(locks.items()):
        wheels = {wheel.name: wheel for wheel in lock.wheels}
        environment = dict(LockTarget(platform=platform, python=lock.python, glibc=GLIBC).marker_environment)
        for entry in entries[platform]:
            wheel = wheels.get(entry.name)
            if not entry.hashes or wheel is None or (entry.marker and not Marker(entry.marker).evaluate(environment)):
                continue
            if not entry.allows(wheel.version):
                continue
            if any(known.sha256 == wheel.sha256 for known in entry.hashes):
                continue
            if _is_listed(wheel, entry):
                message = f"none of the hashes is that of {wheel.filename}"
                hint = f"if this is the file you mean, its hash is sha256:{wheel.sha256}; else leave the hashes out"
                wrong[entry.finding(WheelHash.code, message, hint)] = None
            else:
                message = f"{wheel.filename} is not listed, so it was used without comparing a hash"
                hint = "make the lock for this Python and platform too"
                notes[entry.finding("LOCK_FILE_MISSING", message, hint)] = None
    if wrong:
        first = next(iter(wrong))
        raise WheelHash(f"{first.where}: {first.message}", hint=first.hint, findings=wrong)
    return tuple(notes)


def _is_listed(wheel: LockedWheel, entry: Requirement) -> bool:
    """Whether the repository's hashes are meant for this file; hashes without file names are meant for all files."""
    if "+" in wheel.version and "+" not in entry.specifier:  # the accelerator's build, which is another file
        return False
    return any(known.filename in {"", wheel.filename} for known in entry.hashes)


def versions_differ(locks: Mapping[Platform, Lock], requirements: Requirements) -> list[Finding]:
    """One finding for each package whose version is not the same on all platforms that have it."""
    findings: list[Finding] = []
    versions = {platform: lock.versions for platform, lock in sorted(locks.items())}
    for name in sorted({name for one in versions.values() for name in one}):
        own = {platform: one[name] for platform, one in versions.items() if name in one}
        if same_release(*own.values()):
            continue
        shown = ", ".join(f"{version} on {platform}" for platform, version in own.items())
        message = f"{name} is {shown}: learners of these platforms may not agree on parameters"
        hint = f"pin a version of {name} that has a wheel on every platform"
        findings.append(requirements.finding(name, "VERSIONS_DIFFER", message, hint))
    return findings


def withdrawn(locks: Mapping[Platform, Lock], requirements: Requirements) -> list[Finding]:
    """One finding for each locked version that its authors withdrew (PEP 592); only a pin makes uv take one."""
    found: dict[tuple[str, str, str], list[Platform]] = {}
    for platform, lock in sorted(locks.items()):
        for wheel in lock.wheels:
            if wheel.yanked is not None:
                found.setdefault((wheel.name, wheel.version, wheel.yanked), []).append(platform)
    findings: list[Finding] = []
    for (name, version, reason), on in found.items():
        where = "" if len(on) == len(locks) else f" (on {' and '.join(map(str, on))})"
        message = f"{name} {version} was withdrawn by its authors{where}{f': {reason}' if reason else ''}"
        hint = f"it is used because it is pinned; pin a version of {name} that was not withdrawn"
        findings.append(requirements.finding(name, "PIN_YANKED", message, hint, version=version))
    return findings


def python_excluded(
    locks: Mapping[Platform, Lock], requires_python: Mapping[str, str], requirements: Requirements
) -> tuple[Finding, ...]:
    """One finding for each package whose own Requires-Python (by its wheel's sha256) excludes the Python in use.

    uv ignores the upper bounds in it, as other resolvers do, because most of them are guesses.
    """
    found: dict[tuple[str, str], Finding] = {}
    for lock in locks.values():
        for wheel in lock.wheels:
            specifier = requires_python.get(wheel.sha256, "")
            try:
                fits = SpecifierSet(specifier).contains(lock.python, prereleases=True)
            except InvalidSpecifier:
                continue
            if not fits:
                shown = " ".join(specifier.split())[:100]
                message = f"{wheel.name} {wheel.version} asks for Python {shown}, and Python {lock.python} is used"
                hint = f"check that it works, or use a version of {wheel.name} or of Python that fit each other"
                finding = requirements.finding(wheel.name, "PYTHON_NOT_FORESEEN", message, hint)
                found[wheel.name, wheel.version] = finding
    return tuple(found[key] for key in sorted(found))


def suspect_names(requirements: Requirements, modules: Collection[str]) -> list[Finding]:
    """One finding for each name that exists but is nearly that of a package that the code imports."""
    alike = lookalikes([entry.name for entry in requirements.entries], modules)
    return [
        entry.finding(
            "NAME_SUSPECT",
            f"{entry.name} is not imported, and {alike[entry.name]}, which is imported, has nearly the same name",
            f"did you mean {alike[entry.name]}?",
        )
        for entry in requirements.entries
        if entry.name in alike
    ]
