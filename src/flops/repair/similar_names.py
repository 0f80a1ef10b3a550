"""Names that may be meant by one that can't be used, and which packages the repository's code imports.

The index's names can't be listed in seconds, so they come from conda's names, from the modules that packages provide, from
what the repository imports, and from a list of names that many use (`resources/popular-names.txt`).
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

#: How alike names must be (difflib's ratio): those of the code's own imports, and any others.
IMPORTED_ALIKE = 0.7
ALIKE = 0.8
#: Names that are offered.
SHOWN = 3


@cache
def popular() -> tuple[str, ...]:
    """Names that many use, in PEP 503's normal form."""
    text = (resources.files("flops") / "resources" / "popular-names.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def distributions(modules: Collection[str]) -> frozenset[str]:
    """The packages that provide these dotted modules, by the data file where it has one, else of the same name."""
    names = set()
    for module in modules:
        requirement = known().requirement(module)
        names.add(canonicalize_name(Pep508(requirement).name if requirement else module.partition(".")[0]))
    return frozenset(names)


def names(name: str, modules: Collection[str]) -> list[str]:
    """Other names that may be meant by this one, the likeliest first; never the name itself."""
    wanted = canonicalize_name(name)
    by_conda = [canonicalize_name(index) for conda_name, index in conda.names().index.items() if conda_name == wanted]
    by_module = [
        canonicalize_name(Pep508(requirement).name)
        for module, requirement in known().packages.items()
        if canonicalize_name(module) == wanted
    ]
    of_code = difflib.get_close_matches(wanted, sorted(distributions(modules)), n=SHOWN, cutoff=IMPORTED_ALIKE)
    others = difflib.get_close_matches(wanted, popular(), n=SHOWN, cutoff=ALIKE)
    ordered = dict.fromkeys([*by_conda, *by_module, *of_code, *others])
    return [one for one in ordered if one != wanted][:SHOWN]


def lookalikes(names: Collection[str], modules: Collection[str]) -> dict[str, str]:
    """Required names that few use, that no import needs, and that are nearly the name of a package that one does need.

    A misspelt name may exist: others wait for it. By the required name, what may be meant.
    """
    needed = distributions(modules)
    absent = sorted(needed - set(names))
    found: dict[str, str] = {}
    for name in sorted(set(names) - needed - set(popular())):
        if near := difflib.get_close_matches(name, absent, n=1, cutoff=ALIKE):
            found[name] = near[0]
    return found
