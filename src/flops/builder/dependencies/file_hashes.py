"""Hashes that a repository names (in requirements.txt, or in its own lock), compared with what was locked (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

from flops.builder.locking.pylock import Target
from flops.errors import Finding, WheelHash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.builder.formats.requirement import Requirement
    from flops.builder.locking.lock import Lock
    from flops.builder.locking.pylock import LockedWheel
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
                    note = _finding(entry, "LOCK_FILE_MISSING", message, "lock for this Python and platform too")
                    notes[note] = None
                case "different":
                    message = f"none of the hashes is that of {wheel.filename}"
                    hint = f"if this is the file you mean, its hash is sha256:{wheel.sha256}; else leave the hashes out"
                    wrong[_finding(entry, WheelHash.code, message, hint)] = None
    if wrong:
        first = next(iter(wrong))
        raise WheelHash(f"{first.where}: {first.message}", hint=first.hint, findings=wrong)
    return tuple(notes)


def _named(entries: Sequence[Requirement], platform: Platform, python: str) -> Iterator[Requirement]:
    """Those with hashes whose markers hold there."""
    environment = Target(platform=platform, python=python, glibc=GLIBC).marker_environment
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


def _finding(entry: Requirement, code: str, message: str, hint: str) -> Finding:
    return Finding(path=entry.path, line=entry.line, code=code, message=message, hint=hint)
