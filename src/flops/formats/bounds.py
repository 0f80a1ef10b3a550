"""Bounds between packages that their metadata does not state: `resources/bounds.toml`, with the reason beside each."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A condition that no lock can tell: the repository's code uses FLOps' load_dataset.
LOAD_DATASET = "load_dataset"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Where a lock holds what `beside` says, only these versions of the package work."""

    package: str
    """In PEP 503's normal form, as all names here."""
    specifier: str
    beside: Mapping[str, str]
    """Specifier by package; `load_dataset` stands for code that uses it."""
    reason: str
    proof: str
    """Python that ends with 0 only within the bound, where `beside` holds."""
    proof_packages: tuple[str, ...]
    """What the proof needs, without the package itself."""
    proof_version: str
    """A version outside the bound, for the proof."""
    large: bool
    """The proof's wheels have hundreds of megabytes."""

    def broken_by(self, versions: Mapping[str, str]) -> bool:
        """Whether locked versions meet the condition and break the bound."""
        return (
            self.package in versions
            and all(name in versions and _within(versions[name], spec) for name, spec in self.beside.items())
            and not _within(versions[self.package], self.specifier)
        )


@cache
def bounds() -> tuple[Bound, ...]:
    """Read the data file."""
    text = (resources.files("flops") / "resources" / "bounds.toml").read_text(encoding="utf-8")
    return tuple(
        Bound(
            package=entry["package"],
            specifier=entry["specifier"],
            beside=entry["beside"],
            reason=entry["reason"],
            proof=entry["proof"]["code"],
            proof_packages=tuple(entry["proof"]["packages"]),
            proof_version=entry["proof"]["outside"],
            large=entry["proof"].get("large", False),
        )
        for entry in tomllib.loads(text)["bound"]
    )


def of_load_dataset() -> dict[str, Bound]:
    """The bounds that hold where the code uses load_dataset, by package."""
    return {bound.package: bound for bound in bounds() if LOAD_DATASET in bound.beside}


def broken(versions: Mapping[str, str]) -> list[Bound]:
    """The bounds that locked versions break."""
    return [bound for bound in bounds() if bound.broken_by(versions)]


def _within(version: str, specifier: str) -> bool:
    return SpecifierSet(specifier).contains(version, prereleases=True)
