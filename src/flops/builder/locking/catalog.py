"""A package's page in a simple index (PEP 503 HTML, PEP 691 JSON): bytes in, files out, and what they say about a target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
)

from flops.builder.locking.pylock import FILENAME_LIMIT, parse_wheel_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from packaging.tags import Tag
    from packaging.version import Version

    from flops.builder.locking.pylock import Target


#: Files of one page, of which the largest known has some ten thousand, and characters of a Requires-Python.
FILES_LIMIT = 100_000
REQUIRES_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class File:
    """One published file."""

    version: Version
    tags: frozenset[Tag]
    """Empty for sources."""
    requires_python: str = ""
    yanked: bool = False

    @property
    def is_wheel(self) -> bool:
        return bool(self.tags)

    def takes(self, python: str) -> bool:
        """Whether the package's own Requires-Python allows this full version; what can't be read allows all."""
        try:
            return SpecifierSet(self.requires_python).contains(python, prereleases=True)
        except InvalidSpecifier:
            return True

    def runs_on(self, target: Target) -> bool:
        return not self.yanked and self.takes(target.python) and any(tag in target.tags for tag in self.tags)


@dataclass(frozen=True, kw_only=True)
class Project:
    """Everything that was published under one name."""

    name: str
    files: tuple[File, ...]

    @cached_property
    def versions(self) -> tuple[Version, ...]:
        """Published versions, ascending."""
        return tuple(sorted({file.version for file in self.files}))

    def usable(self, targets: Sequence[Target]) -> tuple[Version, ...]:
        """Versions that have a wheel for each of the targets, ascending."""
        found = [{file.version for file in self.files if file.runs_on(target)} for target in targets]
        return tuple(sorted(set.intersection(*found))) if found else self.versions

    def allowed(self, specifier: str) -> tuple[File, ...]:
        """The files of the versions that a specifier allows; pre-releases where it names one or there is nothing else."""
        chosen = frozenset(SpecifierSet(specifier).filter(self.versions))
        return tuple(file for file in self.files if file.version in chosen)


def parse(name: str, content_type: str, data: bytes) -> Project:
    """Read one page; files whose names are neither a wheel's nor an sdist's are left out.

    ValueError where it is no page, or one of more than FILES_LIMIT files.
    """
    if "json" in content_type:
        entries = list(_from_json(data))
    else:
        reader = _Anchors()
        reader.feed(data.decode("utf-8", "replace"))
        entries = reader.entries
    found = (_file(canonicalize_name(name), *entry) for entry in entries)
    return Project(name=name, files=tuple(file for file in found if file is not None))


def _from_json(data: bytes) -> Iterator[tuple[str, str, bool]]:
    try:
        document: Any = json.loads(data)
    except RecursionError as error:
        raise ValueError("lists in lists") from error
    if not isinstance(document, dict) or not isinstance(document.get("files"), list):
        raise ValueError("no list of files")  # noqa: TRY004 - one kind for all that is no page
    if len(document["files"]) > FILES_LIMIT:
        raise ValueError("too many files")
    for entry in document["files"]:
        if isinstance(entry, dict) and isinstance(entry.get("filename"), str):
            requires = entry.get("requires-python")
            yield entry["filename"], requires if isinstance(requires, str) else "", bool(entry.get("yanked"))


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields: Mapping[str, str | None] = dict(attrs)
        if tag == "a" and fields.get("href"):
            filename = unquote(urlsplit(fields["href"] or "").path.rpartition("/")[2])
            self.entries.append((filename, fields.get("data-requires-python") or "", "data-yanked" in fields))
            if len(self.entries) > FILES_LIMIT:
                raise ValueError("too many files")


def _file(project: str, filename: str, requires_python: str, yanked: bool) -> File | None:
    if len(filename) > FILENAME_LIMIT or len(requires_python) > REQUIRES_LIMIT:
        return None
    try:
        if filename.endswith(".whl"):
            name, version, _, tags = parse_wheel_name(filename)
        else:
            (name, version), tags = parse_sdist_filename(filename), frozenset()
    except (InvalidWheelFilename, InvalidSdistFilename, ValueError):
        return None
    if name != project:
        return None
    return File(version=version, tags=frozenset(tags), requires_python=requires_python, yanked=yanked)
