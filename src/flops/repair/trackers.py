"""What would tell somebody else about a learner's training: taken out where it is required, told where something brings it.

Codes: REMOVED (an adjustment), TRACKER_IMPORTED and TRACKER (findings).
"""

from __future__ import annotations

import tomllib
from collections import deque
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from packaging.markers import Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Pep508
from packaging.utils import canonicalize_name

from flops.errors import Adjustment, Finding
from flops.locking.pylock import OLDEST_GLIBC, LockTarget

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flops.contract.structure import ImportedModule
    from flops.formats.requirement import Requirement
    from flops.formats.requirements import Requirements
    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.wheels.provides import Provides

REMOVED = "REMOVED"
IMPORTED = "TRACKER_IMPORTED"
BROUGHT = "TRACKER"


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A package of `resources/trackers.toml`."""

    name: str
    what: str
    """What it does, as the end of a sentence about it."""
    modules: tuple[str, ...] = ()
    """Top-level modules that code imports of it."""
    keep: bool = False
    """Not taken out where it is required directly."""


@cache
def trackers() -> dict[str, Tracker]:
    """By name in PEP 503's normal form."""
    with (resources.files("flops") / "resources" / "trackers.toml").open("rb") as file:
        data = tomllib.load(file)
    return {
        name: Tracker(name=name, what=one["what"], modules=tuple(one["modules"]), keep=one.get("keep", False))
        for kind in ("tracker", "telemetry")
        for name, one in data[kind].items()
    }


def without(requirements: Requirements) -> Requirements:
    """The requirements without those that are trackers, each told as an adjustment."""
    taken = [entry for entry in requirements.entries if (one := trackers().get(entry.name)) and not one.keep]
    adjustments = tuple(
        Adjustment(
            code=REMOVED,
            package=entry.name,
            before=entry.specifier,
            after="",
            where=entry.where,
            reason=f"a learner's training is private: {entry.name} {trackers()[entry.name].what}",
        )
        for entry in taken
    )
    return replace(
        requirements,
        entries=tuple(entry for entry in requirements.entries if entry not in taken),
        adjustments=(*requirements.adjustments, *adjustments),
    )


@cache
def modules() -> dict[str, Tracker]:
    """By the top-level modules that code imports of them."""
    return {module: one for one in reversed(trackers().values()) for module in one.modules}


def imported(items: Iterable[ImportedModule]) -> tuple[Finding, ...]:
    """Imports of trackers that a learner does not have: where nothing guards one, it would end the training."""
    return tuple(
        Finding(
            path=item.path,
            line=item.line,
            code=IMPORTED,
            message=f"{item.module} is imported, and a learner has no {one.name}: it {one.what}",
            hint="remove the import, or guard it with try/except ImportError",
        )
        for item in items
        if (one := modules()[item.name])
    )


def brought(entries: Sequence[Requirement], locks: Mapping[Platform, Lock], provides: Provides) -> tuple[Finding, ...]:
    """The trackers in the learner's packages, each with the shortest chain that brings it, at the line it begins at.

    Wheels' metadata are read only where a lock has a tracker. IndexUnreachable, WheelUnsafe.
    """
    found: dict[tuple[str, ...], list[Platform]] = {}
    for platform, lock in locks.items():
        if not trackers().keys() & lock.versions.keys():
            continue
        for chain in _chains(entries, lock, provides):
            found.setdefault(chain, []).append(platform)
    begins = {entry.name: entry for entry in reversed(entries)}
    return tuple(
        _finding(chain, begins.get(chain[0]), "" if len(on) == len(locks) else f" on {' and '.join(map(str, on))}")
        for chain, on in found.items()
    )


def unexplained(locks: Mapping[Platform, Lock], path: str) -> tuple[Finding, ...]:
    """The trackers in the learner's packages, where what brings them could not be read."""
    names = sorted({name for lock in locks.values() for name in trackers().keys() & lock.versions.keys()})
    return tuple(
        Finding(path=path, line=0, code=BROUGHT, message=f"{name} is among the learner's packages: it {what}")
        for name in names
        if (what := trackers()[name].what)
    )


def _finding(chain: tuple[str, ...], entry: Requirement | None, where: str) -> Finding:
    one = trackers()[chain[-1]]
    how = f" ({' -> '.join(chain)})" if len(chain) > 1 else ""
    begin = chain[0]
    return Finding(
        path=entry.path if entry else begin,
        line=entry.line if entry else 0,
        code=BROUGHT,
        message=f"{one.name} is among the learner's packages{where}{how}: it {one.what}",
        hint=f"see that it is switched off, or use something else than {begin}"
        if len(chain) == 1
        else f"use a version or an extra of {begin} that does without, or something else than {begin}",
    )


def _chains(entries: Sequence[Requirement], lock: Lock, provides: Provides) -> Iterator[tuple[str, ...]]:
    """Breadth first over the lock's own edges; nothing is looked for behind a tracker."""
    requires = provides.requires(lock.wheels)
    lines = {wheel.name: requires[wheel.sha256] for wheel in lock.wheels}
    glibc = (2, OLDEST_GLIBC[lock.platform.machine])
    environment = LockTarget(platform=lock.platform, python=lock.python, glibc=glibc).marker_environment
    starts = [Pep508(entry.pep508) for entry in entries]
    queue: deque[tuple[tuple[str, ...], frozenset[str]]] = deque(
        ((canonicalize_name(one.name),), frozenset(one.extras)) for one in starts if _applies(one, environment)
    )
    seen: set[tuple[str, frozenset[str]]] = set()
    told: set[str] = set()
    while queue:
        chain, extras = queue.popleft()
        name = chain[-1]
        if (name, extras) in seen or name not in lines:
            continue
        seen.add((name, extras))
        if name in trackers():
            if name not in told:
                told.add(name)
                yield chain
            continue
        for line in lines[name]:
            try:
                wanted = Pep508(line)
            except InvalidRequirement:  # of old packages; uv read it in its own way
                continue
            if any(_applies(wanted, {**environment, "extra": extra}) for extra in ("", *extras)):
                queue.append(((*chain, canonicalize_name(wanted.name)), frozenset(wanted.extras)))


def _applies(requirement: Pep508, environment: Mapping[str, str]) -> bool:
    marker: Marker | None = requirement.marker
    try:
        return marker is None or marker.evaluate(dict(environment))
    except (UndefinedComparison, UndefinedEnvironmentName):
        return True
