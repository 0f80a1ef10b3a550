"""What the repository's code imports, compared with what the locked wheels contain.

A package's name proves nothing: a wheel's directory says which modules it has. `resources/modules.toml` names the package to
add for a module, where only one can be meant, and the package's wheel is read before it is used.
"""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from packaging.requirements import Requirement as Pep508
from packaging.utils import canonicalize_name

from flops.errors import Finding
from flops.wheels.provides import provided

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from flops.contract.structure import ImportedModule
    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.wheels.provides import Provides

MISSING = "IMPORT_MISSING"
#: Modules that the images bring, whatever is locked.
IN_IMAGES = frozenset({"flops_utils", "__future__", "__main__"})
#: A module that a package of the same name could provide.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class KnownModules:
    """The contents of `resources/modules.toml`."""

    packages: Mapping[str, str]
    """PEP 508 requirement by dotted module."""
    absent: Mapping[str, str]
    """What to do instead, by dotted module that no package provides."""
    removed: Mapping[str, tuple[int, ...]]
    """The first Python without a module that was in the standard library."""
    added: Mapping[str, tuple[int, ...]]
    """The first Python with a module in the standard library."""

    def requirement(self, module: str) -> str | None:
        """The requirement that provides a dotted module; None where it is not known for certain."""
        return _longest(self.packages, module)


@cache
def known() -> KnownModules:
    with (resources.files("flops") / "resources" / "modules.toml").open("rb") as file:
        data = tomllib.load(file)
    alike = {name.replace("-", "_"): name for name in data["same"]["names"]}
    return KnownModules(
        packages=alike | data["packages"],
        absent=data["absent"],
        removed={name: _version(text) for text, names in data["removed"].items() for name in names},
        added={name: _version(text) for text, names in data["added"].items() for name in names},
    )


@dataclass(frozen=True, kw_only=True)
class MissingModule:
    """A module that is imported and that no locked wheel of some platforms has."""

    item: ImportedModule
    """The first import of it."""
    platforms: tuple[Platform, ...]


def in_standard_library(name: str, python: str) -> bool:
    """Whether this version of Python (`3.11.2`), as images have it, contains a top-level module."""
    version, table = _version(python)[:2], known()
    if name in table.removed:
        return version < table.removed[name]
    if name in table.added:
        return version >= table.added[name]
    return name in sys.stdlib_module_names


def needed(imports: Iterable[ImportedModule], python: str, *, ignored: Collection[str] = ()) -> list[ImportedModule]:
    """The imports that packages must provide, one for each dotted module.

    They are reached from the contract's modules, not guarded, not part of Python, and not of an `ignored` top-level module.
    """
    first: dict[str, ImportedModule] = {}
    for item in sorted(imports):
        if item.reached and not item.guarded and item.name not in {*IN_IMAGES, *ignored}:
            first.setdefault(item.module, item)
    return [item for item in first.values() if not in_standard_library(item.name, python)]


def missing(
    imports: Sequence[ImportedModule], locks: Mapping[Platform, Lock], provides: Provides
) -> list[MissingModule]:
    """Which of these imports no wheel of a lock has. Errors as `Provides.modules`."""
    lacking: dict[str, tuple[Platform, ...]] = {}
    for platform, lock in locks.items():
        for module in _not_in(lock, {item.module for item in imports}, provides):
            lacking[module] = (*lacking.get(module, ()), platform)
    by_package: dict[str, MissingModule] = {}
    for item in imports:
        if item.module in lacking:
            key = item.name if _is_one_package(item, lacking, imports) else item.module
            by_package.setdefault(key, MissingModule(item=item, platforms=lacking[item.module]))
    return list(by_package.values())


def finding(one: MissingModule, *, all_platforms: Collection[Platform], hint: str) -> Finding:
    where = "" if set(one.platforms) == set(all_platforms) else f" on {' and '.join(map(str, one.platforms))}"
    message = f"{one.item.module} is imported, and no locked package provides it{where}"
    if one.item.name in known().removed:
        version = ".".join(map(str, known().removed[one.item.name]))
        message += f" (it is not part of Python {version} and later here)"
    return Finding(path=one.item.path, line=one.item.line, code=MISSING, message=message, hint=hint)


def near(module: str, roots: Iterable[str]) -> str | None:
    """A module with nearly this name, among those that the lock provides (`roots`) and the well-known ones."""
    name = module.partition(".")[0]
    names = {root.partition(".")[0] for root in (*roots, *known().packages)} - {name}
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.8)), None)


def advice(module: str, roots: Iterable[str]) -> str:
    """What to do about a module whose package is not known."""
    if instead := _longest(known().absent, module):
        return instead
    name, meant = module.partition(".")[0], near(module, roots)
    guess = f"did you mean {meant}? Else " if meant else ""
    return f"{guess}add the package that provides {name}, or guard the import with try/except ImportError"


def directory_of(module: str, paths: Iterable[str]) -> str | None:
    """The shallowest directory below the repository's root that contains a dotted module; None where none does.

    Modules are imported from the root only, so those of a `src/` layout are not found.
    """
    below = re.compile(rf"(?P<directory>.+?)/{re.escape(module.replace('.', '/'))}(\.py|/.*\.py)")
    found = {match["directory"] for path in paths if (match := below.fullmatch(path))}
    return min(found, key=lambda directory: (directory.count("/"), directory), default=None)


def not_in_directory(module: str, paths: Iterable[str]) -> str:
    """What to do where the repository has a directory of the top-level name without the module; else empty."""
    name, _, rest = module.partition(".")
    if not any(path.startswith(f"{name}/") for path in paths):
        return ""
    lack = f"lacks the module {rest}" if rest else "has no module"
    return (
        f"{name} is a directory of the repository that {lack}: commit what is missing (see .gitignore), "
        "or correct the name"
    )


def same_name(module: str) -> str | None:
    """The package that has the module's name; None where there can be none."""
    name = module.partition(".")[0]
    if not _NAME.fullmatch(name) or _longest(known().absent, module):
        return None
    return canonicalize_name(name.strip("_"))


def _not_in(lock: Lock, modules: set[str], provides: Provides) -> set[str]:
    """Wheels whose names suggest a module are read first; the others only while a module is not found."""
    names = {name for module in modules for name in _likely_packages(module)}
    likely = [wheel for wheel in lock.wheels if wheel.name in names]
    others = [wheel for wheel in lock.wheels if wheel.name not in names]
    left = set(modules)
    for wheels in (likely, others):
        if left and wheels:
            roots = frozenset[str]().union(*provides.modules(wheels).values())
            left = {module for module in left if not provided(module, roots)}
    return left


def _likely_packages(module: str) -> set[str]:
    """The known package of a module, the one of the same name, and builds of it (`tensorflow-cpu`)."""
    name = canonicalize_name(module.partition(".")[0])
    requirement = known().requirement(module)
    own = {canonicalize_name(Pep508(requirement).name)} if requirement else set()
    return own | {name, f"{name}-cpu", f"{name}-gpu", f"{name}-python", canonicalize_name(module.replace(".", "-"))}


def _is_one_package(item: ImportedModule, lacking: Mapping[str, object], imports: Sequence[ImportedModule]) -> bool:
    """Whether one package is missing for all imports below a top-level module, because none of them was found."""
    return all(other.module in lacking for other in imports if other.name == item.name) and not any(
        key.startswith(f"{item.name}.") for key in known().packages
    )


def _longest(table: Mapping[str, str], module: str) -> str | None:
    """The entry of a dotted module, else that of its nearest parent."""
    while module:
        if found := table.get(module):
            return found
        module = module.rpartition(".")[0]
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
