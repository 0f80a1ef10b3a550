"""Names that a wrong name may stand for, and the packages that provide what the repository's code imports.

The index can't list its names within seconds, so candidates are conda's names, the packages of well-known modules, what the
repository imports, and a list of popular packages (`resources/popular-names.txt`).
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from packaging.requirements import Requirement as Pep508
from packaging.utils import canonicalize_name

from flops.formats import conda
from flops.repair.imports import known

if TYPE_CHECKING:
    from collections.abc import Collection

#: How alike names must be (difflib's ratio): to packages that the code imports, and to any others.
IMPORTED_ALIKE = 0.7
ALIKE = 0.8
#: Names that are offered.
SHOWN = 3


@cache
def popular() -> tuple[str, ...]:
    """Popular packages, in PEP 503's normal form."""
    text = (resources.files("flops") / "resources" / "popular-names.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def distributions(modules: Collection[str]) -> frozenset[str]:
    """The packages that provide these dotted modules: as the data file says, else of the same name."""
    return frozenset(
        _package(requirement)
        if (requirement := known().requirement(module))
        else canonicalize_name(module.partition(".")[0])
        for module in modules
    )


def similar_names(name: str, modules: Collection[str]) -> list[str]:
    """Other names that may be meant by this one, the likeliest first; never the name itself."""
    wanted = canonicalize_name(name)
    by_conda = [canonicalize_name(index) for conda_name, index in conda.names().index.items() if conda_name == wanted]
    by_module = [_package(text) for module, text in known().packages.items() if canonicalize_name(module) == wanted]
    of_code = difflib.get_close_matches(wanted, sorted(distributions(modules)), n=SHOWN, cutoff=IMPORTED_ALIKE)
    others = difflib.get_close_matches(wanted, popular(), n=SHOWN, cutoff=ALIKE)
    return [one for one in dict.fromkeys([*by_conda, *by_module, *of_code, *others]) if one != wanted][:SHOWN]


def lookalikes(names: Collection[str], modules: Collection[str]) -> dict[str, str]:
    """Required names that are probably misspelt, each with the name that may be meant.

    They are not popular, no import needs them, and they are nearly the name of a package that an import needs. The package
    may exist nevertheless: misspelt names are registered by people who wait for such mistakes.
    """
    imported = distributions(modules)
    absent = sorted(imported - set(names))
    found: dict[str, str] = {}
    for name in sorted(set(names) - imported - set(popular())):
        if near := difflib.get_close_matches(name, absent, n=1, cutoff=ALIKE):
            found[name] = near[0]
    return found


def _package(requirement: str) -> str:
    return canonicalize_name(Pep508(requirement).name)
