"""Packages that report a learner's training to others: removed where required, reported where another package brings them.

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

from flops.errors import Finding, FlopsError
from flops.locking.pylock import OLDEST_GLIBC, LockTarget

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flops.contract.structure import ImportedModule
    from flops.errors import Adjustment
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
    """Its top-level modules."""
    keep: bool = False
    """Not removed where it is required directly."""


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


def without(requirements: Requirements) -> tuple[Requirements, tuple[Adjustment, ...]]:
    """The requirements without trackers, and an adjustment for each that was removed."""
    removed = [entry for entry in requirements.entries if (one := trackers().get(entry.name)) and not one.keep]
    adjustments = tuple(
        entry.adjustment(
            REMOVED,
            before=entry.specifier,
            after="",
            reason=f"a learner's training is private: {entry.name} {trackers()[entry.name].what}",
        )
        for entry in removed
    )
    kept = tuple(entry for entry in requirements.entries if entry not in removed)
    return replace(requirements, entries=kept), adjustments


@cache
def modules() -> dict[str, Tracker]:
    """By their top-level modules."""
    return {module: one for one in reversed(trackers().values()) for module in one.modules}


def imported(items: Iterable[ImportedModule]) -> tuple[Finding, ...]:
    """One finding for each unguarded import of a tracker that a learner does not have: it would end the training."""
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


def brought(requirements: Requirements, locks: Mapping[Platform, Lock], provides: Provides) -> tuple[Finding, ...]:
    """One finding for each locked tracker, with the shortest chain of packages that brings it, at the line of the first one.

    Wheels' metadata is read only where a lock has a tracker; where it can't be read, there is no chain.
    """
    found: dict[tuple[str, ...], list[Platform]] = {}
    for platform, lock in locks.items():
        names = trackers().keys() & lock.versions.keys()
        try:
            chains = list(_chains(requirements.entries, lock, provides)) if names else []
        except FlopsError:
            chains = [(name,) for name in sorted(names)]
        for chain in chains:
            found.setdefault(chain, []).append(platform)
    findings: list[Finding] = []
    for chain, on in found.items():
        first, tracker = chain[0], trackers()[chain[-1]]
        where = "" if len(on) == len(locks) else f" on {' and '.join(map(str, on))}"
        through = f" ({' -> '.join(chain)})" if len(chain) > 1 else ""
        message = f"{tracker.name} is among the learner's packages{where}{through}: it {tracker.what}"
        hint = f"check that it is switched off, or use another package than {first}"
        if len(chain) > 1:
            hint = f"use a version or an extra of {first} that does without it, or another package than {first}"
        findings.append(requirements.finding(first, BROUGHT, message, hint))
    return tuple(findings)


def _chains(entries: Sequence[Requirement], lock: Lock, provides: Provides) -> Iterator[tuple[str, ...]]:
    """The shortest chain to each tracker, breadth first along the lock's own edges; trackers are not followed further."""
    requires = provides.requires(lock.wheels)
    lines = {wheel.name: requires[wheel.sha256] for wheel in lock.wheels}
    glibc = (2, OLDEST_GLIBC[lock.platform.machine])
    environment = LockTarget(platform=lock.platform, python=lock.python, glibc=glibc).marker_environment
    starts = [Pep508(entry.pep508) for entry in entries]
    queue: deque[tuple[tuple[str, ...], frozenset[str]]] = deque(
        ((canonicalize_name(one.name),), frozenset(one.extras)) for one in starts if _applies(one, environment)
    )
    visited: set[tuple[str, frozenset[str]]] = set()
    found: set[str] = set()
    while queue:
        chain, extras = queue.popleft()
        name = chain[-1]
        if (name, extras) in visited or name not in lines:
            continue
        visited.add((name, extras))
        if name in trackers():
            if name not in found:
                found.add(name)
                yield chain
            continue
        for line in lines[name]:
            try:
                required = Pep508(line)
            except InvalidRequirement:  # in old packages; uv has its own way to read it
                continue
            if any(_applies(required, {**environment, "extra": extra}) for extra in ("", *extras)):
                queue.append(((*chain, canonicalize_name(required.name)), frozenset(required.extras)))


def _applies(requirement: Pep508, environment: Mapping[str, str]) -> bool:
    marker: Marker | None = requirement.marker
    try:
        return marker is None or marker.evaluate(dict(environment))
    except (UndefinedComparison, UndefinedEnvironmentName):
        return True
