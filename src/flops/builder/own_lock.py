"""A repository's own lock, taken as the lock: its versions from our index, unresolved; and hashes that a repository names, compared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

from flops.builder.doctor import Resolution
from flops.builder.pylock import Target
from flops.builder.pythons import Wish, order
from flops.builder.pythons import adjustments as python_adjustments
from flops.errors import Finding, NoWheel, Unresolvable, WheelHash
from flops.recipe import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.builder.lock import Lock, Locker
    from flops.builder.pylock import LockedWheel
    from flops.builder.pythons import PythonChoice
    from flops.builder.requirement import Requirement
    from flops.builder.requirements import Requirements
    from flops.platforms import Platform
    from flops.progress import Reporter

HINT = "remove the hash, or correct it; the same version must not have other bytes"


def take(
    requirements: Requirements,
    platforms: Sequence[Platform],
    pythons: Sequence[PythonChoice],
    *,
    locker: Locker,
    policy: Policy,
    python_flag: str | None,
    reporter: Reporter,
) -> Resolution | None:
    """One lock per platform that holds exactly the entries; None where no Python that is wished for has wheels for all.

    IndexUnreachable, LockTimeout; PythonUnavailable where `--python` names one that is not offered.
    """
    if not requirements.complete:
        return None
    wish = Wish.read(requirements.python, python_flag)
    for choice in order(wish, pythons):
        if wish is not None and not wish.fits(choice) and not (python_flag and wish.names_minor_of(choice)):
            continue
        moved = python_adjustments(requirements.python, wish, choice, pythons)
        if moved and policy is Policy.STRICT and python_flag is None:
            return None
        locks = _locks(requirements, platforms, choice, locker)
        if locks is not None:
            for adjustment in moved:
                reporter.adjusted(adjustment)
            return Resolution(python=choice, locks=locks, adjustments=moved)
    return None


def compare_hashes(
    requirements: Requirements, locks: Mapping[Platform, Lock], reporter: Reporter
) -> tuple[Finding, ...]:
    """Compare what was locked with the hashes that the repository names.

    WheelHash, with every line, where a file has other bytes. Notes where a lock file does not list what was locked for another
    Python than it was made for. A version that was moved has nothing to be compared with.
    """
    wrong: dict[Finding, None] = {}
    notes: dict[Finding, None] = {}
    for platform, lock in sorted(locks.items()):
        wheels = {wheel.name: wheel for wheel in lock.wheels}
        for entry in _named(requirements.entries, platform, lock.python):
            wheel = wheels.get(entry.name)
            if wheel is None or not SpecifierSet(entry.specifier).contains(wheel.version, prereleases=True):
                continue
            match _judge(entry, wheel):
                case "unlisted":
                    message = f"{wheel.filename} is not listed, so it was taken without a hash to compare"
                    finding = _finding(entry, "LOCK_FILE_MISSING", message, "lock for this Python and platform too")
                    notes[finding] = None
                case "different":
                    message = f"the package index has {wheel.filename} with another hash: sha256:{wheel.sha256}"
                    wrong[_finding(entry, WheelHash.code, message, HINT)] = None
    if wrong:
        first = next(iter(wrong))
        raise WheelHash(f"{first.where}: {first.message}", hint=first.hint, findings=wrong)
    for note in notes:
        reporter.finding(note)
    return tuple(notes)


def _locks(
    requirements: Requirements, platforms: Sequence[Platform], choice: PythonChoice, locker: Locker
) -> dict[Platform, Lock] | None:
    lines = [entry.pep508 for entry in requirements.entries]
    with ThreadPoolExecutor(max(1, len(platforms))) as pool:
        futures = {
            platform: pool.submit(
                locker.lock,
                lines,
                platform=platform,
                python=choice.version,
                glibc=choice.glibc,
                dependencies=False,
            )
            for platform in platforms
        }
    try:
        return {platform: future.result() for platform, future in futures.items()}
    except (Unresolvable, NoWheel):
        return None


def _named(entries: Sequence[Requirement], platform: Platform, python: str) -> Iterator[Requirement]:
    """Those with hashes whose markers hold there."""
    environment = Target(platform=platform, python=python, glibc=(2, 36)).marker_environment
    for entry in entries:
        if entry.hashes and (not entry.marker or Marker(entry.marker).evaluate(dict(environment))):
            yield entry


def _judge(entry: Requirement, wheel: LockedWheel) -> str:
    if any(known.sha256 == wheel.sha256 for known in entry.hashes):
        return "same"
    names = {known.filename for known in entry.hashes}
    return "unlisted" if "" not in names and wheel.filename not in names else "different"


def _finding(entry: Requirement, code: str, message: str, hint: str) -> Finding:
    return Finding(path=entry.path, line=entry.line, code=code, message=message, hint=hint)
