"""Exact pins, and the versions nearest to one (pure: the caller supplies the versions that exist)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flops.formats.requirement import Requirement

    #: The newest (True) or oldest (False) usable version that these clauses (PEP 440) allow.
    FindVersion = Callable[[str, bool], Version | None]

#: How many leading numbers a version shares with the pin, in the order in which versions are tried.
SAME_MAJOR = (2, 1)
ANY_MAJOR = (2, 1, 0)


def pinned(entry: Requirement) -> Version | None:
    """The one version that the requirement allows; None where it allows more."""
    clauses = list(SpecifierSet(entry.specifier))
    if len(clauses) != 1 or clauses[0].operator not in {"==", "==="}:
        return None
    try:
        return Version(clauses[0].version)
    except InvalidVersion:  # `1.2.*`
        return None


def mentioned(entry: Requirement) -> Version | None:
    """The first version in the requirement's specifier; None where it has no specifier."""
    for clause in sorted(SpecifierSet(entry.specifier), key=str):
        try:
            return Version(clause.version.removesuffix(".*"))
        except InvalidVersion:
            continue
    return None


def exclude_each_other(one: Requirement, other: Requirement) -> bool:
    """Whether two requirements of one package can't both hold, because one is a pin that the other forbids."""
    if one.name != other.name or one.marker != other.marker:
        return False
    return any(
        pin is not None and not rival.allows(str(pin)) for pin, rival in ((pinned(one), other), (pinned(other), one))
    )


def contradicts_itself(entry: Requirement) -> bool:
    """Whether the requirement's lower bound is above its upper bound, so that no version can fit."""
    lower, upper = list[Version](), list[Version]()
    for clause in SpecifierSet(entry.specifier):
        try:
            version = Version(clause.version.partition("+")[0])
        except InvalidVersion:  # `1.2.*`
            continue
        if clause.operator in {">=", ">", "~=", "=="}:
            lower.append(version)
        if clause.operator in {"<=", "<", "=="}:
            upper.append(version)
    return bool(lower and upper) and max(lower) > min(upper)


def same_release(*versions: str) -> bool:
    """Whether these are versions of one release: `2.1.1+cpu` is a build of `2.1.1`."""
    return len({Version(version).public for version in versions}) <= 1


def with_specifier(entry: Requirement, specifier: str) -> str:
    """The requirement with this specifier instead of its own, as PEP 508 text."""
    return replace(entry, specifier=specifier).pep508


def distance(version: Version, pin: Version) -> tuple[int, int, bool]:
    """Lower is nearer: which leading number differs, by how much; of two equally near versions the later one."""
    shared = next((length for length in ANY_MAJOR if _prefix(version, length) == _prefix(pin, length)), 0)
    return ANY_MAJOR.index(shared), _gap(version, pin, shared), version < pin


def by_distance(versions: Iterable[Version], pin: Version, *, stages: Sequence[int] = ANY_MAJOR) -> list[Version]:
    """Versions other than the pin, nearest first; pre-releases only near a pre-release."""
    near = sorted(version for version in versions if pin.is_prerelease or not version.is_prerelease)
    above = [version for version in near if version > pin]
    below = [version for version in reversed(near) if version < pin]
    chosen = [version for version in (*above, *below) if ANY_MAJOR[distance(version, pin)[0]] in stages]
    return sorted(chosen, key=lambda version: distance(version, pin))


def nearest_first(
    entry: Requirement, versions: Sequence[Version], *, stages: Sequence[int] = ANY_MAJOR
) -> list[Version]:
    """These versions (ascending) by distance from the requirement's; newest first where it mentions none."""
    pin = mentioned(entry)
    if pin is None:
        return list(reversed(versions))
    # of `<2`, 2 itself is the nearest
    itself = [version for version in versions if version == pin and pinned(entry) is None]
    return [*itself, *by_distance(versions, pin, stages=stages)]


def find_nearest(pin: Version, find: FindVersion, *, stages: Sequence[int] = ANY_MAJOR) -> Iterator[Version]:
    """Usable versions, nearest first: of the same minor by patch, then of the same major by minor, then by major.

    Of two equally near versions the later one. `find` is called only as far as the caller iterates.
    """
    for shared in stages:
        yield from _find_with_prefix(pin, shared, find)


def _find_with_prefix(version: Version, shared: int, find: FindVersion) -> Iterator[Version]:
    """Versions that share exactly `shared` leading numbers with this one."""
    floor, ceiling = _bounds(version, shared)
    inner_floor, inner_ceiling = (f"<{version}", f">{version}")
    if shared < 2:  # noqa: PLR2004
        low, high = _bounds(version, shared + 1)
        inner_floor, inner_ceiling = (low.replace(">=", "<"), high.replace("<", ">="))
    below = find(_join(floor, inner_floor), True)
    above = find(_join(inner_ceiling, ceiling), False)
    while below is not None or above is not None:
        if below is None or (above is not None and _gap(above, version, shared) <= _gap(below, version, shared)):
            assert above is not None  # noqa: S101 - one of the two exists
            yield above
            above = find(_join(f">{above}", ceiling), False)
        else:
            yield below
            below = find(_join(floor, f"<{below}"), True)


def _bounds(version: Version, shared: int) -> tuple[str, str]:
    """The half-open range of the versions with the same leading numbers; "" where all versions share them."""
    if shared == 0:
        return "", ""
    numbers = list((*version.release, 0, 0)[:shared])
    following = [*numbers[:-1], numbers[-1] + 1]
    epoch = f"{version.epoch}!" if version.epoch else ""
    return f">={epoch}{'.'.join(map(str, numbers))}", f"<{epoch}{'.'.join(map(str, following))}"


def _join(*clauses: str) -> str:
    return ",".join(filter(None, clauses))


def _prefix(version: Version, length: int) -> tuple[int, ...]:
    return (version.epoch, *(*version.release, 0, 0)[:length]) if length else ()


def _gap(one: Version, other: Version, index: int) -> int:
    """How far apart two versions are in the first number that may differ."""
    return abs((*one.release, 0, 0, 0)[index] - (*other.release, 0, 0, 0)[index])
