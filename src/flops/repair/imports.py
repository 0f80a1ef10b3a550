"""What the repository's code imports, compared with what the locked wheels contain (DESIGN: "The way of the data").

Nothing is guessed by name alone: a wheel's directory says which modules it has. `resources/modules.toml` holds which
package to add for a module, where that is sure, and the package is looked into before it counts.
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
    from flops.locking.lock import Lock, LockedWheel
    from flops.platforms import Platform
    from flops.wheels.provides import Provides

MISSING = "IMPORT_MISSING"
#: Modules that the images bring, whatever is locked.
OURS = frozenset({"flops_utils", "__future__", "__main__"})
#: A module that a package of the same name could provide.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Known:
    """`resources/modules.toml`, read."""

    packages: Mapping[str, str]
    """PEP 508 requirement by dotted module."""
    absent: Mapping[str, str]
    """What to do instead, by dotted module that no package provides."""
    removed: Mapping[str, tuple[int, ...]]
    """The first Python without a module that was in the standard library."""
    added: Mapping[str, tuple[int, ...]]
    """The first Python with one."""

    def requirement(self, module: str) -> str | None:
        """The requirement that surely provides a dotted module."""
        return _longest(self.packages, module)


@cache
def known() -> Known:
    with (resources.files("flops") / "resources" / "modules.toml").open("rb") as file:
        data = tomllib.load(file)
    alike = {name.replace("-", "_"): name for name in data["same"]["names"]}
    return Known(
        packages=alike | data["packages"],
        absent=data["absent"],
        removed={name: _version(text) for text, names in data["removed"].items() for name in names},
        added={name: _version(text) for text, names in data["added"].items() for name in names},
    )


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A module that is imported and that no locked wheel of a platform has."""

    item: ImportedModule
    """Where it is imported first."""
    platforms: tuple[Platform, ...]


def in_standard_library(name: str, python: str) -> bool:
    """Whether the Python of an image has this top-level module. `python` is its version, `3.11.2`."""
    version, table = _version(python)[:2], known()
    if name in table.removed:
        return version < table.removed[name]
    if name in table.added:
        return version >= table.added[name]
    return name in sys.stdlib_module_names


def wanted(imports: Iterable[ImportedModule], python: str, *, but: Collection[str] = ()) -> list[ImportedModule]:
    """The imports that must be there: reached, not guarded, no part of Python; one per dotted module, the first.

    `but`: top-level modules that are dealt with elsewhere.
    """
    first: dict[str, ImportedModule] = {}
    for item in sorted(imports):
        if item.reached and not item.guarded and item.name not in OURS and item.name not in but:
            first.setdefault(item.module, item)
    return [item for item in first.values() if not in_standard_library(item.name, python)]


def missing(imports: Sequence[ImportedModule], locks: Mapping[Platform, Lock], provides: Provides) -> list[Missing]:
    """Which of these imports no wheel of a lock has. Errors as `Provides.modules`.

    Wheels whose names suggest a module are looked into first; the others only while something is not found.
    """
    lacking: dict[str, tuple[Platform, ...]] = {}
    for platform, lock in locks.items():
        for module in _not_in(lock, {item.module for item in imports}, provides):
            lacking[module] = (*lacking.get(module, ()), platform)
    by_top: dict[str, Missing] = {}
    for item in imports:
        if item.module in lacking:
            key = item.name if _is_whole(item, lacking, imports) else item.module
            by_top.setdefault(key, Missing(item=item, platforms=lacking[item.module]))
    return list(by_top.values())


def finding(one: Missing, *, all_platforms: Collection[Platform], hint: str) -> Finding:
    where = "" if set(one.platforms) == set(all_platforms) else f" on {' and '.join(map(str, one.platforms))}"
    module = one.item.module
    message = f"{module} is imported, and no locked package provides it{where}"
    if one.item.name in known().removed:
        version = ".".join(map(str, known().removed[one.item.name]))
        message += f" (it is not part of Python {version} and later here)"
    return Finding(path=one.item.path, line=one.item.line, code=MISSING, message=message, hint=hint)


def near(module: str, roots: Iterable[str]) -> str | None:
    """A module that is spelt nearly so: among those that the lock provides (`roots`) and those that are well known."""
    name = module.partition(".")[0]
    spelt = {root.partition(".")[0] for root in (*roots, *known().packages)} - {name}
    return next(iter(difflib.get_close_matches(name, sorted(spelt), n=1, cutoff=0.8)), None)


def advice(module: str, roots: Iterable[str]) -> str:
    """What to do about a module that nothing sure is known of."""
    told = _longest(known().absent, module)
    if told:
        return told
    name = module.partition(".")[0]
    meant = near(module, roots)
    guess = f"did you mean {meant}? Else " if meant else ""
    return f"{guess}add the package that provides {name}, or guard the import with try/except ImportError"


def lies_in(module: str, paths: Iterable[str]) -> str | None:
    """The directory of the repository, below its root, that a dotted module lies in; the shallowest. None where there is none.

    Only the root is imported from, so a `src/` layout is not found.
    """
    inner = module.replace(".", "/")
    below = re.compile(rf"(?P<place>.+?)/{re.escape(inner)}(\.py|/.*\.py)")
    found = {match["place"] for path in paths if (match := below.fullmatch(path))}
    return min(found, key=lambda place: (place.count("/"), place), default=None)


def not_in_directory(module: str, paths: Iterable[str]) -> str:
    """What to do where the repository has a directory of a module's top-level name, without it; empty where it has none."""
    name, _, rest = module.partition(".")
    if not any(path.startswith(f"{name}/") for path in paths):
        return ""
    lacking = f"the module {rest}" if rest else "no module"
    verb = "lacks" if rest else "has"
    return (
        f"{name} is a directory of the repository that {verb} {lacking}: commit what is missing (see .gitignore), "
        "or correct the name"
    )


def same_name(module: str) -> str | None:
    """The name of the package that might provide a module; None where there can be none."""
    name = module.partition(".")[0]
    if not _NAME.fullmatch(name) or _longest(known().absent, module):
        return None
    return canonicalize_name(name.strip("_"))


def _not_in(lock: Lock, modules: set[str], provides: Provides) -> set[str]:
    likely: list[LockedWheel] = []
    others: list[LockedWheel] = []
    names = {name for module in modules for name in _guesses(module)}
    for wheel in lock.wheels:
        (likely if wheel.name in names else others).append(wheel)
    left = set(modules)
    for some in (likely, others):
        if left and some:
            roots = _roots(some, provides)
            left = {module for module in left if not provided(module, roots)}
    return left


def _roots(wheels: Sequence[LockedWheel], provides: Provides) -> frozenset[str]:
    return frozenset[str]().union(*provides.modules(wheels).values())


def _guesses(module: str) -> set[str]:
    """Packages that are likely to provide a module: the sure one, the same name, and builds of it (`tensorflow-cpu`)."""
    name = canonicalize_name(module.partition(".")[0])
    requirement = known().requirement(module)
    sure = {canonicalize_name(Pep508(requirement).name)} if requirement else set()
    return sure | {name, f"{name}-cpu", f"{name}-gpu", f"{name}-python", canonicalize_name(module.replace(".", "-"))}


def _is_whole(item: ImportedModule, lacking: Mapping[str, object], imports: Sequence[ImportedModule]) -> bool:
    """Whether nothing below an import's top-level module was found, so that one package is missing."""
    return all(other.module in lacking for other in imports if other.name == item.name) and not any(
        key.startswith(f"{item.name}.") for key in known().packages
    )


def _longest(table: Mapping[str, str], module: str) -> str | None:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if found := table.get(".".join(parts[:length])):
            return found
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
