"""Exact pins, and the versions nearest to one (pure; what exists is asked through a function)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.requirements import Requirement as Pep508
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flops.builder.requirement import Requirement

    #: The newest (True) or oldest (False) version that has a wheel and fits a PEP 508 requirement.
    Ask = Callable[[str, bool], Version | None]


def pinned(entry: Requirement) -> Version | None:
    """The one version that the requirement allows; None where it allows more."""
    clauses = list(SpecifierSet(entry.specifier))
    if len(clauses) != 1 or clauses[0].operator not in {"==", "==="}:
        return None
    try:
        return Version(clauses[0].version)
    except InvalidVersion:  # `1.2.*`
        return None


def repinned(entry: Requirement, version: Version) -> str:
    """The requirement with this version instead, as PEP 508 text."""
    requirement = Pep508(entry.pep508)
    requirement.specifier = SpecifierSet(f"=={version}")
    return str(requirement)


def nearest(name: str, version: Version, ask: Ask) -> Iterator[Version]:
    """Versions with a wheel, nearest first: of the same minor by patch, then of the same major by minor, then by major.

    Of two that are as near, the later. `ask` is called only as far as the caller goes on.
    """
    for stage in (2, 1, 0):
        yield from _stage(name, version, stage, ask)


def _stage(name: str, version: Version, stage: int, ask: Ask) -> Iterator[Version]:
    """Those that share `stage` leading numbers with the version and were not given at a longer share."""
    floor, ceiling = _bounds(version, stage)
    inner_floor, inner_ceiling = (f"<{version}", f">{version}")
    if stage < 2:  # noqa: PLR2004
        low, high = _bounds(version, stage + 1)
        inner_floor, inner_ceiling = (low.replace(">=", "<"), high.replace("<", ">="))
    below = ask(f"{name}{_join(floor, inner_floor)}", True)
    above = ask(f"{name}{_join(inner_ceiling, ceiling)}", False)
    while below is not None or above is not None:
        if below is None or (above is not None and _gap(above, version, stage) <= _gap(below, version, stage)):
            assert above is not None  # noqa: S101 - one of the two is there
            yield above
            above = ask(f"{name}{_join(f'>{above}', ceiling)}", False)
        else:
            yield below
            below = ask(f"{name}{_join(floor, f'<{below}')}", True)


def _bounds(version: Version, shared: int) -> tuple[str, str]:
    """The half-open range of the versions with the same leading numbers; "" where that is all."""
    if shared == 0:
        return "", ""
    numbers = list((*version.release, 0, 0)[:shared])
    epoch = f"{version.epoch}!" if version.epoch else ""
    following = [*numbers[:-1], numbers[-1] + 1]
    return tuple(f"{sign}{epoch}{'.'.join(map(str, part))}" for sign, part in ((">=", numbers), ("<", following)))  # type: ignore[return-value]


def _join(*clauses: str) -> str:
    return ",".join(clause for clause in clauses if clause)


def _gap(one: Version, other: Version, place: int) -> int:
    """How far apart they are in the first number that may differ."""
    return abs((*one.release, 0, 0, 0)[place] - (*other.release, 0, 0, 0)[place])
