"""Which environments a lock file tells apart, and markers that say it again (pure).

A lock file decides by markers on every edge of its graph what an environment gets. Python alone has versions without end there, but
markers only change at the versions that they name. So a lock file is asked once for each platform and each stretch of Python
versions between those, and what it answers is written as one marker per package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

from flops.builder.locking.pylock import Target

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from flops.platforms import Platform

#: Minor versions of Python 3 that anybody asks for.
MINORS = range(8, 17)
#: Stretches of Python versions; a lock that a tool wrote has some ten.
MOST = 64
#: Does not change what a marker says.
GLIBC = (2, 36)
NAMED = re.compile(r"(?:python_(?:full_)?version\s*[<>=!~]+\s*|)['\"]3\.(\d{1,2})(?:\.(\d{1,3}))?[^'\"]*['\"]")


@dataclass(frozen=True, order=True)
class Environment:
    """One platform with all Python versions from this one to the next that the grid has."""

    platform: Platform
    python: str
    """Full version, "3.11.0"."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All environments that a lock file is asked for."""

    platforms: tuple[Platform, ...]
    pythons: tuple[str, ...]
    """Ascending; each stands for the versions up to the next."""

    @classmethod
    def over(cls, platforms: Sequence[Platform], markers: Iterable[str], requires_python: str) -> Grid:
        """The grid for these markers within `requires-python`; ValueError where they name too many versions."""
        starts = {(minor, 0) for minor in MINORS}
        for text in (
            *markers,
            f"'{requires_python}'",
            *(f"'{one}'" for one in re.findall(r"3\.[\d.]+", requires_python)),
        ):
            for minor, patch in NAMED.findall(text):
                starts |= {(int(minor), int(patch or 0)), (int(minor), int(patch or 0) + 1)}
        allowed = SpecifierSet(requires_python)
        known = [f"3.{minor}.{patch}" for minor, patch in sorted(starts) if minor in MINORS]
        pythons = tuple(allowed.filter(known, prereleases=True)) or tuple(known)
        if len(pythons) > MOST:
            raise ValueError(requires_python)
        return cls(platforms=tuple(sorted(platforms)), pythons=pythons)

    @property
    def environments(self) -> tuple[Environment, ...]:
        return tuple(Environment(platform, python) for platform in self.platforms for python in self.pythons)

    def marker(self, chosen: Collection[Environment]) -> str:
        """What is true in the chosen environments and false in the others of the grid; empty for all of them."""
        by_platform = {
            platform: tuple(python for python in self.pythons if Environment(platform, python) in chosen)
            for platform in self.platforms
        }
        if len(set(by_platform.values())) == 1:
            return self._stretches(by_platform[self.platforms[0]])
        parts = []
        for platform, pythons in by_platform.items():
            if pythons:
                machine, stretches = f'platform_machine == "{platform.machine}"', self._stretches(pythons)
                alone = stretches if " or " not in stretches else f"({stretches})"
                parts.append(f"{machine} and {alone}" if stretches else machine)
        return " or ".join(parts)

    def _stretches(self, chosen: Sequence[str]) -> str:
        parts: list[str] = []
        run: list[str] = []
        for python in (*self.pythons, None):
            if python in chosen and python is not None:
                run.append(python)
                continue
            if run:
                lower = [] if run[0] == self.pythons[0] else [f'python_full_version >= "{run[0]}"']
                upper = [] if python is None else [f'python_full_version < "{python}"']
                parts.append(" and ".join([*lower, *upper]))
            run = []
        return " or ".join(parts)


def holds(marker: str, environment: Environment, *, extra: str = "", names: frozenset[str] | None = None) -> bool:
    """Whether a marker is true there. `extra`: its value; `names`: extras and groups that a PEP 751 lock was asked for."""
    return not marker or _holds(marker, environment, extra, names)


@lru_cache(maxsize=100_000)
def _holds(marker: str, environment: Environment, extra: str, names: frozenset[str] | None) -> bool:
    fields = _fields(environment) | {"extra": extra}
    if names is None:
        return _marker(marker).evaluate(fields)
    return _marker(marker).evaluate(fields | {"extras": names, "dependency_groups": names}, context="lock_file")


@lru_cache(maxsize=1000)
def _fields(environment: Environment) -> dict[str, str]:
    target = Target(platform=environment.platform, python=environment.python, glibc=GLIBC)
    return dict(target.marker_environment)


@lru_cache(maxsize=10_000)
def _marker(text: str) -> Marker:
    return Marker(text)
