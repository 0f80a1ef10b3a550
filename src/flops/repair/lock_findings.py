"""Hashes that a repository names (in requirements.txt, or in its own lock), compared with what was locked (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.markers import Marker
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from flops.errors import Finding, WheelHash
from flops.locking.pylock import LockTarget
from flops.repair.similar_names import lookalikes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from flops.formats.requirement import Requirement
    from flops.formats.requirements import Requirements
    from flops.locking.lock import Lock
    from flops.locking.pylock import LockedWheel
    from flops.platforms import Platform


#: Does not change what a marker says.
GLIBC = (2, 36)


def compare(lines: Mapping[Platform, Sequence[Requirement]], locks: Mapping[Platform, Lock]) -> tuple[Finding, ...]:
    """Compare each platform's lock with the hashes of its requirements; a version that was moved has nothing to be compared with.

    WheelHash, with every line, where a file has other bytes. Notes, LOCK_FILE_MISSING, where a lock file does not list what was
    locked, since it was made for another Python, or where it is another build.
    """
    wrong: dict[Finding, None] = {}
    notes: dict[Finding, None] = {}
    for platform, lock in sorted(locks.items()):
        wheels = {wheel.name: wheel for wheel in lock.wheels}
        for entry in _named(lines[platform], platform, lock.python):
            wheel = wheels.get(entry.name)
            if wheel is None or not SpecifierSet(entry.specifier).contains(wheel.version, prereleases=True):
                continue
            match _judge(entry, wheel):
                case "unlisted":
                    message = f"{wheel.filename} is not listed, so it was taken without a hash to compare"
                    note = _hash_finding(entry, "LOCK_FILE_MISSING", message, "lock for this Python and platform too")
                    notes[note] = None
                case "different":
                    message = f"none of the hashes is that of {wheel.filename}"
                    hint = f"if this is the file you mean, its hash is sha256:{wheel.sha256}; else leave the hashes out"
                    wrong[_hash_finding(entry, WheelHash.code, message, hint)] = None
    if wrong:
        first = next(iter(wrong))
        raise WheelHash(f"{first.where}: {first.message}", hint=first.hint, findings=wrong)
    return tuple(notes)


def _named(entries: Sequence[Requirement], platform: Platform, python: str) -> Iterator[Requirement]:
    """Those with hashes whose markers hold there."""
    environment = LockTarget(platform=platform, python=python, glibc=GLIBC).marker_environment
    for entry in entries:
        if entry.hashes and (not entry.marker or Marker(entry.marker).evaluate(dict(environment))):
            yield entry


def _judge(entry: Requirement, wheel: LockedWheel) -> str:
    if any(known.sha256 == wheel.sha256 for known in entry.hashes):
        return "same"
    if "+" in wheel.version and "+" not in entry.specifier:  # the accelerator's build of it, which is another file
        return "unlisted"
    names = {known.filename for known in entry.hashes}
    return "unlisted" if "" not in names and wheel.filename not in names else "different"


def _hash_finding(entry: Requirement, code: str, message: str, hint: str) -> Finding:
    return Finding(path=entry.path, line=entry.line, code=code, message=message, hint=hint)


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


def python_excluded(
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
