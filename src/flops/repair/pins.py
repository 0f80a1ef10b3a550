"""Exact pins, and the versions nearest to one (pure; what exists is asked through a function)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flops.formats.requirement import Requirement

    #: The newest (True) or oldest (False) version that fits these clauses (PEP 440) and can be used.
    Ask = Callable[[str, bool], Version | None]

#: How many leading numbers a version shares with the pin, in the order in which versions are tried.
SAME_MAJOR = (2, 1)
ALL = (2, 1, 0)
#: Runs of uv at a time.
WORKERS = 2


def pinned(entry: Requirement) -> Version | None:
    """The one version that the requirement allows; None where it allows more."""
    clauses = list(SpecifierSet(entry.specifier))
    if len(clauses) != 1 or clauses[0].operator not in {"==", "==="}:
        return None
    try:
        return Version(clauses[0].version)
    except InvalidVersion:  # `1.2.*`
        return None


def exclude(one: Requirement, other: Requirement) -> bool:
    """Whether two requirements of one package can't both hold, as far as pins tell."""
    if one.name != other.name or one.marker != other.marker:
        return False
    pin, second = pinned(one), pinned(other)
    return (pin is not None and not SpecifierSet(other.specifier).contains(pin, prereleases=True)) or (
        second is not None and not SpecifierSet(one.specifier).contains(second, prereleases=True)
    )


def contradicts_itself(entry: Requirement) -> bool:
    """Whether no version at all can be within its bounds: what was meant can't be told from it."""
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


def named(entry: Requirement) -> Version | None:
    """The version that a pin or a range speaks of: the first of its clauses that is a version; None for "any"."""
    for clause in sorted(SpecifierSet(entry.specifier), key=str):
        try:
            return Version(clause.version.removesuffix(".*"))
        except InvalidVersion:
            continue
    return None


def respecified(entry: Requirement, specifier: str) -> str:
    """The requirement with this specifier instead, as PEP 508 text."""
    return replace(entry, specifier=specifier).pep508


def distance(version: Version, pin: Version) -> tuple[int, int, bool]:
    """The lower, the nearer: which leading number differs, by how much; of two that are as near, the later."""
    stage = next((place for place in ALL if _prefix(version, place) == _prefix(pin, place)), 0)
    return ALL.index(stage), _gap(version, pin, stage), version < pin


def by_distance(versions: Iterable[Version], pin: Version, *, stages: Sequence[int] = ALL) -> list[Version]:
    """Versions other than the pin, nearest first; pre-releases only near a pre-release."""
    near = sorted(version for version in versions if pin.is_prerelease or not version.is_prerelease)
    above = [version for version in near if version > pin]
    below = [version for version in reversed(near) if version < pin]
    chosen = [version for version in (*above, *below) if ALL[distance(version, pin)[0]] in stages]
    return sorted(chosen, key=lambda version: distance(version, pin))


def near(entry: Requirement, versions: Sequence[Version], *, stages: Sequence[int] = ALL) -> list[Version]:
    """Of these versions (ascending) the nearest to what a requirement asks for, first; the newest where it asks for none."""
    pin = named(entry)
    if pin is None:
        return list(reversed(versions))
    ends = [
        version for version in versions if version == pin and pinned(entry) is None
    ]  # of `<2`, 2 itself is the nearest
    return [*ends, *by_distance(versions, pin, stages=stages)]


def nearest(pin: Version, ask: Ask, *, stages: Sequence[int] = ALL) -> Iterator[Version]:
    """Versions that can be used, nearest first: of the same minor by patch, then of the same major by minor, then by major.

    Of two that are as near, the later. `ask` is called only as far as the caller goes on.
    """
    for stage in stages:
        yield from _stage(pin, stage, ask)


def _stage(version: Version, stage: int, ask: Ask) -> Iterator[Version]:
    """Those that share `stage` leading numbers with the version and were not given at a longer share."""
    floor, ceiling = _bounds(version, stage)
    inner_floor, inner_ceiling = (f"<{version}", f">{version}")
    if stage < 2:  # noqa: PLR2004
        low, high = _bounds(version, stage + 1)
        inner_floor, inner_ceiling = (low.replace(">=", "<"), high.replace("<", ">="))
    below = ask(_join(floor, inner_floor), True)
    above = ask(_join(inner_ceiling, ceiling), False)
    while below is not None or above is not None:
        if below is None or (above is not None and _gap(above, version, stage) <= _gap(below, version, stage)):
            assert above is not None  # noqa: S101 - one of the two is there
            yield above
            above = ask(_join(f">{above}", ceiling), False)
        else:
            yield below
            below = ask(_join(floor, f"<{below}"), True)


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


def _prefix(version: Version, shared: int) -> tuple[int, ...]:
    return (version.epoch, *(*version.release, 0, 0)[:shared]) if shared else ()


def _gap(one: Version, other: Version, place: int) -> int:
    """How far apart they are in the first number that may differ."""
    return abs((*one.release, 0, 0, 0)[place] - (*other.release, 0, 0, 0)[place])
