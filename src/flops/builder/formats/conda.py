"""Conda's names and versions, translated to the package index's.

Versions follow conda's match specifications (`conda.models.match_spec`, `conda.models.version`) and become PEP 440:

    numpy=1.26, numpy=1.26.*, numpy 1.26.*   ==1.26.*     a single `=` means "begins with"
    numpy=1.26.4                             ==1.26.4     with three numbers it names a release, as the tools that write it mean
    numpy==1.26.4, numpy 1.26.4              ==1.26.4
    numpy=1.26.4=py311_0                     ==1.26.4     builds are conda's own and are left out
    numpy>=1.20,<2   numpy~=1.26             the same
    numpy=1.25|1.26                          ==1.26.*     the highest alternative, reported: PEP 440 has no "or"

Names and packages that only conda has are in `resources/conda-names.toml`.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from flops.builder.formats.requirement import specifier_text

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
CLAUSE = re.compile(r"(==|!=|<=|>=|~=|=|<|>)?\s*([A-Za-z0-9.!+_-]*)(\*?)")
FIELD = re.compile(r"(?<!\w)(\w+)\s*=\s*(['\"]?)([^'\"]*)\2\s*(?:,(?=\s*\w+\s*=)|$)")
NUMBERS_OF_A_RELEASE = 3


@dataclass(frozen=True, kw_only=True)
class MatchSpec:
    """One entry under `dependencies`."""

    name: str
    version: str
    """Conda's version syntax; empty for any."""
    build: str
    channel: str


@dataclass(frozen=True, kw_only=True)
class Names:
    """The data file."""

    index: Mapping[str, str]
    """Conda's name to the index's."""
    longer: frozenset[str]
    """Index names whose versions have one number more than conda's."""
    conda_only: Mapping[str, str]
    """Pattern to what happens instead."""

    def reason(self, name: str) -> str | None:
        """What happens instead of a package that only conda has; None for all others."""
        return next((text for pattern, text in self.conda_only.items() if fnmatch.fnmatchcase(name, pattern)), None)


@cache
def names() -> Names:
    """Read `resources/conda-names.toml`."""
    data = tomllib.loads((resources.files("flops") / "resources" / "conda-names.toml").read_text(encoding="utf-8"))
    only = {pattern: group["reason"] for group in data["conda_only"] for pattern in group["packages"]}
    return Names(index=data["index"], longer=frozenset(data["longer"]), conda_only=only)


def specifier(version: str) -> str:
    """Conda's version syntax without alternatives as PEP 440, `""` for any; ValueError where it has none."""
    clauses = [clause for part in version.split(",") if (clause := _clause(part.strip()))]
    try:
        return specifier_text(SpecifierSet(",".join(clauses)))
    except InvalidSpecifier as error:
        raise ValueError(version) from error


def _clause(text: str) -> str:
    found = CLAUSE.fullmatch(text)
    if found is None:
        raise ValueError(text)
    operator, number, star = found[1] or "==", found[2], bool(found[3])
    fuzzy = operator == "="
    if star:
        number = number.removesuffix(".")
    if not number:
        if star or not text:
            return ""
        raise ValueError(text)
    try:
        parsed = Version(number)
    except InvalidVersion as error:
        raise ValueError(text) from error
    release = parsed.is_prerelease or parsed.is_postrelease or parsed.local is not None
    if operator in ("<", "<=", ">", ">="):
        return f"{operator}{number}"
    if operator == "~=":
        return f"~={number}" if "." in number else f">={number}"
    begins = star or (fuzzy and len(parsed.release) < NUMBERS_OF_A_RELEASE)
    if operator == "!=":
        return f"!={number}.*" if begins and not release else f"!={number}"
    return f"=={number}.*" if begins and not release else f"=={number}"


def highest(version: str) -> tuple[str, bool]:
    """The highest of a version's alternatives (`a|b`) as PEP 440, and whether there were others. ValueError."""
    parts = version.split("|")
    if len(parts) > 1 and not all(parts):
        raise ValueError(version)
    found = {specifier(part) for part in parts}
    return max(found, key=_height), len(found) > 1


def _height(text: str) -> tuple[bool, Version]:
    numbers = [Version(clause.version.removesuffix(".*")) for clause in SpecifierSet(text)]
    return not numbers, max(numbers, default=Version("0"))


def match_spec(text: str) -> MatchSpec:
    """Read `[CHANNEL::]NAME[VERSION][=BUILD]` in conda's spellings; ValueError."""
    inner: dict[str, str] = {}
    if bracket := re.fullmatch(r"([^\[]*)\[([^\]]*)\]\s*", text):
        text = bracket[1]
        inner = {key: value for key, _, value in FIELD.findall(bracket[2])}
    channel, _, rest = " ".join(text.split()).rpartition("::")
    found = NAME.match(rest)
    if found is None:
        raise ValueError(text)
    tail = re.sub(r" ?(,|\||[=<>!~]+) ?", r"\1", rest[found.end() :].split(" #")[0]).strip()
    version, build = _version_and_build(tail)
    return MatchSpec(
        name=found[0].lower(),
        version=inner.get("version", version),
        build=inner.get("build", build),
        channel=inner.get("channel", channel),
    )


def _version_and_build(tail: str) -> tuple[str, str]:
    if exact := re.fullmatch(r"={1,2}([^=<>!~|,\s]+)=([^=<>!~|,\s]*)", tail):
        return f"=={exact[1]}", exact[2]
    match tail.split():
        case []:
            return "", ""
        case [version]:
            return version, ""
        case [version, build]:
            return version, build
    raise ValueError(tail)
