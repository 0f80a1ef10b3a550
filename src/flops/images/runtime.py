"""The FL runtime's wheels: pinned by a committed list of versions and hashes, found on the index by uv."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from flops.errors import BaseUnsuitable, WheelHash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.locking.lock import Lock, Locker
    from flops.platforms import Platform

#: Python minor versions that have a list.
MINORS = ("3.11", "3.13")
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Pins:
    """A list of versions and hashes."""

    versions: Mapping[str, str]
    """By normalised name."""
    hashes: frozenset[str]
    """sha256 of every wheel that may be used, hexadecimal."""

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(f"{name}=={version}" for name, version in self.versions.items())


@cache
def pins(minor: str) -> Pins:
    """The list for a Python minor version; BaseUnsuitable where there is none."""
    if minor not in MINORS:
        raise BaseUnsuitable(
            f"the FL runtime is not available for Python {minor}", hint=f"use a base with Python {' or '.join(MINORS)}"
        )
    return read_pins(f"runtime-{minor}")


def read_pins(name: str) -> Pins:
    """`resources/NAME.txt`."""
    text = (resources.files("flops") / "resources" / f"{name}.txt").read_text()
    return Pins(
        versions={canonicalize_name(match["name"]): match["version"] for match in _PIN.finditer(text)},
        hashes=frozenset(_HASH.findall(text)),
    )


def lock(locker: Locker, *, platform: Platform, python: str, glibc: tuple[int, int]) -> Lock:
    """The FL runtime's lock for one platform and full Python version; errors as `lock_pins`."""
    return lock_pins(locker, pins(".".join(python.split(".")[:2])), platform=platform, python=python, glibc=glibc)


def lock_pins(locker: Locker, wanted: Pins, *, platform: Platform, python: str, glibc: tuple[int, int]) -> Lock:
    """The lock of pinned wheels; WheelHash where the index offers other files."""
    found = locker.lock(wanted.lines, platform=platform, python=python, glibc=glibc, dependencies=False)
    for wheel in found.wheels:
        if wheel.sha256 not in wanted.hashes:
            raise WheelHash(
                f"the index offers a {wheel.filename} that is not the one this version was made with",
                hint="see which index FLOPS_INDEX_URL names, and whether it alters packages",
            )
    return found


def known_lock(locker: Locker, *, platform: Platform, python: str, glibc: tuple[int, int]) -> Lock | None:
    """The FL runtime's lock if it is stored, without asking the index."""
    lines = pins(".".join(python.split(".")[:2])).lines
    return locker.stored(lines, platform=platform, python=python, glibc=glibc, dependencies=False)
