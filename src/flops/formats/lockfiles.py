"""A repository's own lock files: what holds for pylock.toml (PEP 751) and uv.lock alike.

Names, versions and hashes are taken from them; addresses never are: the same version is looked up on our own index, and what
is found there must have one of the hashes. Where a lock covers every requested platform it is the whole, and nothing is
resolved again; else its versions are pins, and the rest is found as for any other file: LOCK_PLATFORM_MISSING.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name, is_normalized_name
from packaging.version import InvalidVersion, Version

from flops.formats.requirement import DEPTH, FileHash, depth
from flops.locking.pylock import SHA256, LockTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from flops.formats.requirement import Reading
    from flops.formats.toml_document import TomlDocument
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
    target = LockTarget(platform=environment.platform, python=environment.python, glibc=GLIBC)
    return dict(target.marker_environment)


@lru_cache(maxsize=10_000)
def _marker(text: str) -> Marker:
    return Marker(text)


#: Bytes; a lock of a large project has one or two million.
LIMIT = 4 * 1024**2
#: Keys of what has no line of its own.
CLOSED = frozenset({"wheels", "sdist"})
#: Packages; a lock of a large project has some hundreds.
PACKAGES = 2000
#: In a wheel's name, without and with a build number.
DASHES = (4, 5)
#: Characters of a name, a version, or what one package asks of Python.
NAME_LIMIT = 200
#: Characters of one marker, and of all markers and specifiers that differ; dependencies, their extras, and places of markers.
#: Each is judged for every platform and stretch of versions.
MARKER_LIMIT = 4000
MARKERS_LIMIT = 128 * 1024
USES = 20_000
HINT_LESS = "lock what training needs alone"
HINT_FOREIGN = "lock it from the package index, by name and version"


@dataclass(frozen=True, kw_only=True)
class LockedPackage:
    """One version of a package in a lock file."""

    name: str
    """In PEP 503's normal form."""
    version: str
    line: int
    files: tuple[FileHash, ...]
    """Its wheels."""
    foreign: str = ""
    """What it comes from, where that is no index: "git", "a path"."""


class LockReader:
    """Gathers what the two formats have in common while one of them is read."""

    def __init__(self, document: TomlDocument, reading: Reading) -> None:
        self.document, self.reading, self.path = document, reading, document.path
        self.markers: set[str] = set()
        self.judged: set[str] = set()
        self.characters = self.uses = 0
        self.indexes: dict[str, int] = {}
        """Where packages were locked from, with the first line of each."""

    def marker(self, text: object, line: int) -> str:
        """A marker as it is; empty, and a problem, where it is none."""
        if text is None:
            return ""
        self.use(line)
        if not isinstance(text, str) or len(text) > MARKER_LIMIT or depth(text) > DEPTH:
            self.reading.wrong(self.path, line, "this is no marker, or none of a usual length", "lock anew")
        elif self.takes(text, line):
            if _is_marker(text):
                self.markers.add(text)
                return text
            self.reading.wrong(self.path, line, "this is no marker", "lock anew")
        return ""

    def use(self, line: int, times: int = 1) -> None:
        """Count what is followed or judged for every environment."""
        self.uses += times
        if self.uses - times <= USES < self.uses:
            self.reading.wrong(self.path, line, f"the lock has more than {USES} dependencies and markers", HINT_LESS)

    def takes(self, text: str, line: int) -> bool:
        """Whether this marker or specifier, too, may be judged."""
        if text not in self.judged:
            self.judged.add(text)
            self.characters += len(text)
            if self.characters - len(text) <= MARKERS_LIMIT < self.characters:
                message = f"the lock's markers and specifiers have more than {MARKERS_LIMIT} characters"
                self.reading.wrong(self.path, line, message, HINT_LESS)
        return self.characters <= MARKERS_LIMIT

    def wheels(self, entries: object, line: int) -> tuple[FileHash, ...]:
        """The wheels of a package, as both formats list them; other addresses than http and https are refused."""
        found = []
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict):
                self.reading.wrong(self.path, line, "a wheel is not a table", "lock anew")
                continue
            scheme, last = _address(entry.get("url"))
            name = entry.get("name") or entry.get("filename") or last
            sha256 = _sha256(entry)
            if "path" in entry or scheme not in {"", "http", "https"}:
                self.reading.forbid(self.path, line, "a wheel comes from a path", HINT_FOREIGN)
            elif not isinstance(name, str) or not name.endswith(".whl"):
                self.reading.wrong(self.path, line, "a wheel has no name", "lock anew")
            else:
                found.append(FileHash(sha256=sha256, filename=name))
        return tuple(found)

    def from_index(self, name: object, line: int) -> None:
        self.indexes.setdefault(str(name), line)

    def take(
        self,
        select: Callable[[Environment], Iterable[LockedPackage]],
        platforms: Sequence[Platform],
        *,
        requires_python: str,
        environments: Sequence[str],
    ) -> bool:
        """Add what the lock holds to the reading; whether it is the whole for every platform.

        `environments`: markers of what it was made for; none for everything.
        """
        if self.reading.problems:
            return False
        reached: defaultdict[LockedPackage, set[Environment]] = defaultdict(set)
        covered: set[Platform] = set()
        try:
            grid = Grid.over(platforms, self.markers, requires_python)
            for environment in grid.environments:
                for package in select(environment):
                    reached[package].add(environment)
                if not environments or any(holds(marker, environment) for marker in environments):
                    covered.add(environment.platform)
        except (ValueError, InvalidSpecifier, UndefinedComparison, UndefinedEnvironmentName):
            self.reading.wrong(self.path, 0, "the lock's markers can't be judged", "lock anew")
            return False
        packages = sorted(reached, key=lambda package: package.line)
        for package in packages:
            self._add(package, grid.marker(reached[package]))
        if len(self.indexes) > 1:
            message = f"it was locked from {len(self.indexes)} indexes; all packages are looked up on this builder's"
            self.reading.note(self.path, sorted(self.indexes.values())[1], "LOCK_INDEX_IGNORED", message)
        missing = [platform for platform in grid.platforms if not self._covers(platform, platform in covered, reached)]
        return not missing

    def _add(self, package: LockedPackage, marker: str) -> None:
        if package.foreign:
            message = f"{package.name} comes from {package.foreign}"
            self.reading.forbid(self.path, package.line, message, HINT_FOREIGN)
            return
        text = f"{package.name}=={package.version}"
        pep508 = f"{text} ; {marker}" if marker else text
        hashes = tuple(file for file in package.files if file.sha256)
        self.reading.add(text, path=self.path, line=package.line, pep508=pep508, hashes=hashes)

    def _covers(
        self, platform: Platform, named: bool, reached: Mapping[LockedPackage, Collection[Environment]]
    ) -> bool:
        """Whether every package that the platform gets has a wheel for it in the lock; a note where that is not so."""
        hint = f"lock for {platform} too"
        if not named:
            message = f"this lock was not made for {platform}: its versions are kept, the rest is resolved"
            self.reading.note(self.path, self.document.line("environments"), "LOCK_PLATFORM_MISSING", message, hint)
            return False
        lacking = [
            package
            for package, environments in sorted(reached.items(), key=lambda pair: pair[0].line)
            if any(one.platform is platform for one in environments)
            and not any(fits(file.filename, platform) for file in package.files)
        ]
        if not lacking:
            return True
        first, others = lacking[0], len(lacking) - 1
        more = f" and {others} more have" if others else " has"
        message = f"{first.name} {first.version}{more} no wheel for {platform} in this lock: its versions are kept, the rest is resolved"
        self.reading.note(self.path, first.line, "LOCK_PLATFORM_MISSING", message, hint)
        return False


def fits(filename: str, platform: Platform) -> bool:
    """Whether a wheel is for this platform, with whatever Python."""
    machine = f"_{platform.machine}"
    tags = filename.lower().removesuffix(".whl").rpartition("-")[2].split(".")
    return filename.count("-") in DASHES and any(
        tag == "any" or (tag.endswith(machine) and tag.startswith(("manylinux", "linux"))) for tag in tags
    )


def package_name(value: Any) -> str:
    """In PEP 503's normal form; empty where it is none."""
    name = canonicalize_name(value) if isinstance(value, str) and len(value) <= NAME_LIMIT else ""
    return name if is_normalized_name(name) else ""


def package_version(value: Any) -> str:
    """As it is; empty where PEP 440 has no such version."""
    try:
        return value if len(value) <= NAME_LIMIT and Version(value) else ""
    except (InvalidVersion, TypeError):
        return ""


@lru_cache(maxsize=10_000)
def _is_marker(text: str) -> bool:
    try:
        Marker(text)
    except (InvalidMarker, RecursionError):
        return False
    return True


def _address(url: object) -> tuple[str, str]:
    """Scheme and last part of the path; empty where it is no URL."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
    except ValueError:
        return "", ""
    return parts.scheme, unquote(parts.path.rpartition("/")[2])


def _sha256(entry: Mapping[str, Any]) -> str:
    """`hash = "sha256:..."` of uv.lock, `hashes = {sha256 = "..."}` of PEP 751; empty where there is none."""
    hashes = entry.get("hashes")
    value = hashes.get("sha256") if isinstance(hashes, dict) else str(entry.get("hash", "")).removeprefix("sha256:")
    return value.lower() if isinstance(value, str) and SHA256.fullmatch(value.lower()) else ""
