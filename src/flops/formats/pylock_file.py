"""pylock.toml (PEP 751) of a repository: every package that its markers give to an environment."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from flops.formats import pyproject, toml_document
from flops.formats.lockfiles import (
    CLOSED,
    LIMIT,
    NAME_LIMIT,
    PACKAGES,
    Environment,
    LockedPackage,
    LockReader,
    holds,
    package_name,
    package_version,
)
from flops.formats.requirement import DependencyFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flops.formats.requirement import Reading
    from flops.formats.toml_document import TomlDocument
    from flops.platforms import Platform

FILE = "pylock.toml"
#: Where a package comes from that no index has.
FOREIGN = {"vcs": "a version control system", "directory": "a path", "archive": "a URL"}


def read_pylock(path: str, data: bytes, groups: Sequence[str], platforms: Sequence[Platform], reading: Reading) -> bool:
    """Read the lock into `reading`; whether it is the whole for every platform. UsageError for an unknown group."""
    document = toml_document.read(path, data, reading, limit=LIMIT, closed=CLOSED)
    if document is None:
        return False
    if document.text("lock-version").split(".")[0] != "1":
        reading.wrong(path, document.line("lock-version"), "not a lock of version 1 (PEP 751)", "lock anew")
        return False
    names = frozenset(filter(package_name, (*document.items("default-groups"), *_asked(document, groups))))
    python = document.text("requires-python")
    reading.ask_python(python, path=path, line=document.line("requires-python"))
    reader = LockReader(document, reading)
    packages = [_package(reader, number) for number in range(len(document.items("packages")[:PACKAGES]))]
    if len(packages) >= PACKAGES:
        reading.wrong(path, 0, f"the lock has {PACKAGES} packages or more", "lock what training needs alone")
    environments = [
        reader.marker(text, document.line("environments", number))
        for number, text in enumerate(document.items("environments"))
    ]

    def select(environment: Environment) -> Iterator[LockedPackage]:
        for package, marker, pythons in packages:
            if _allows(pythons, environment.python) and holds(marker, environment, names=names):
                yield package

    return reader.take(select, platforms, requires_python=python, environments=environments)


def _asked(document: TomlDocument, groups: Sequence[str]) -> Iterator[str]:
    known = {package_name(name): name for name in (*document.items("extras"), *document.items("dependency-groups"))}
    for group in groups:
        if package_name(group) not in known:
            raise pyproject.unknown_group(document.path, group, known)
        yield known[package_name(group)]


@lru_cache(maxsize=100_000)
def _allows(specifier: str, python: str) -> bool:
    return SpecifierSet(specifier).contains(python, prereleases=True)


def _is_specifier(text: str) -> bool:
    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        return False
    return True


def _package(reader: LockReader, number: int) -> tuple[LockedPackage, str, str]:
    """One package, its marker, and the Pythons that it is for."""
    document = reader.document
    line = document.line("packages", number)
    table = document.table("packages", number)
    foreign = next((what for kind, what in FOREIGN.items() if kind in table), "")
    if not foreign and "index" in table:
        reader.from_index(table["index"], document.line("packages", number, "index"))
    version = package_version(table.get("version"))
    name = package_name(table.get("name"))
    if not name or not (version or foreign):
        reader.reading.wrong(document.path, line, "a package has no name or no version", "lock anew")
    pythons = document.text("packages", number, "requires-python")
    if len(pythons) > NAME_LIMIT or not reader.takes(pythons, line) or not _is_specifier(pythons):
        reader.reading.wrong(document.path, line, "this is no specifier of Python versions", "lock anew")
        pythons = ""
    package = LockedPackage(
        name=name,
        version=version,
        line=line,
        files=() if foreign else reader.wheels(table.get("wheels"), line),
        foreign=foreign,
    )
    return package, reader.marker(table.get("marker"), document.line("packages", number, "marker")), pythons


FORMAT = DependencyFormat(
    names=(FILE,),
    read=lambda file, reading: read_pylock(file.path, file.data, file.groups, file.platforms, reading),
    has_groups=True,
)
