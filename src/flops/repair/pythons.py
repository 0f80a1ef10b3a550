"""Which Python a repository gets: the offered ones, ordered by distance from the requested one (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from flops.errors import Adjustment, Finding, PythonUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from flops.formats.requirement import PythonRequest

FLAG = "--python"
MOVED = "PYTHON_MOVED"
#: The provider of Pythons that are installed beside the base's own, for the ML environment only.
STANDALONE = "uv"
#: Operators whose clauses say something about how near a version is.
OPERATORS = frozenset({"==", "===", "~=", "<", "<=", ">", ">="})


@dataclass(frozen=True, kw_only=True)
class PythonChoice:
    """A Python that a base file system can be made with."""

    version: str
    """Full version, `3.11.2`."""
    minor: str
    """`3.11`."""
    glibc: tuple[int, int]
    provider: str
    """`debian`, `base-image`, or `uv` for a standalone build."""
    suite: str
    """Debian's suite, `bookworm`; empty for a base image."""
    base: str = ""
    """Full version of the base's own Python, where this one is installed beside it; else empty."""

    @property
    def runtime(self) -> str:
        """Full version of the FL runtime's Python, which is always the base's."""
        return self.base or self.version

    @property
    def runtime_minor(self) -> str:
        return ".".join(self.runtime.split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class PythonConstraint:
    """The Python that is requested: by the repository, or by `--python`, which wins."""

    text: str
    """As it was written."""
    specifier: SpecifierSet
    path: str
    """The repository's file, or `--python`."""
    line: int

    @classmethod
    def read(cls, request: PythonRequest | None, flag: str | None) -> PythonConstraint | None:
        """UsageError where the flag is not a version."""
        if flag is not None:
            try:
                patch = Version(flag).release[2:]
                specifier = SpecifierSet(f"=={flag}" if patch else f"=={flag}.*")
            except ValueError as error:
                raise UsageError(f"{FLAG} {flag!r:.50} is not a version", hint=f"for example {FLAG} 3.11") from error
            return cls(text=flag, specifier=specifier, path=FLAG, line=0)
        if request is None:
            return None
        specifier = SpecifierSet(request.specifier)
        return cls(text=request.text, specifier=specifier, path=request.path, line=request.line)

    @property
    def is_flag(self) -> bool:
        return self.path == FLAG

    def allows(self, choice: PythonChoice) -> bool:
        return self.specifier.contains(choice.version, prereleases=True)

    def allows_minor_of(self, choice: PythonChoice) -> bool:
        """Whether the choice is allowed, or would be with another patch release."""
        return self.allows(choice) or self._distance(choice, operators={"==", "===", "~="}) == 0

    def rank(self, choice: PythonChoice) -> tuple[bool, int, tuple[int, ...]]:
        """Lower is nearer: allowed ones, then by the number of minor versions in between, then the newer."""
        if self.allows(choice):
            return (False, 0, ())
        return (True, self._distance(choice), tuple(-part for part in _minor(choice.version)))

    def _distance(self, choice: PythonChoice, operators: Container[str] = OPERATORS) -> int:
        """Minor versions from the choice to the nearest one in a clause with one of these operators."""
        major, minor = _minor(choice.version)
        named = [_minor(clause.version.removesuffix(".*")) for clause in self.specifier if clause.operator in operators]
        return min((1000 * abs(a - major) + abs(b - minor) for a, b in named), default=1000)


def by_nearness(constraint: PythonConstraint | None, offered: Sequence[PythonChoice]) -> list[PythonChoice]:
    """The offered Pythons, nearest first; in their own order where none is requested.

    PythonUnavailable where none is offered, or none of the minor version that `--python` requests.
    """
    allowed = [
        choice for choice in offered if not (constraint and constraint.is_flag) or constraint.allows_minor_of(choice)
    ]
    if not allowed:
        known = ", ".join(dict.fromkeys(choice.minor for choice in offered))
        raise PythonUnavailable(
            f"no base provides Python {constraint.text}" if constraint else "no base provides a Python",
            hint=f"use {FLAG} with one of {known}" if known else "",
        )
    return sorted(allowed, key=constraint.rank) if constraint else allowed


def adjustments(
    request: PythonRequest | None,
    constraint: PythonConstraint | None,
    choice: PythonChoice,
    offered: Sequence[PythonChoice],
) -> tuple[Adjustment, ...]:
    """The adjustment for this choice; none where it is the requested Python."""
    if constraint is None:
        return ()
    if constraint.is_flag and request is not None:
        own = PythonConstraint.read(request, None)
        if own is None or own.allows(choice):
            return ()
        return (_moved(own, choice, f"{FLAG} {constraint.text} was given"),)
    if constraint.allows(choice):
        return ()
    if constraint.allows_minor_of(choice):
        origin = " ".join(filter(None, (choice.provider, choice.suite)))
        reason = f"{origin} provides {choice.version}; all releases of {choice.minor} take the same wheels"
    elif any(constraint.allows_minor_of(other) for other in offered):
        reason = (
            f"not every requirement has a wheel for Python {constraint.text}; "
            f"{choice.minor} is the nearest with which all requirements lock"
        )
    else:
        reason = f"no base provides Python {constraint.text}; {choice.minor} is the nearest that can be used"
    return (_moved(constraint, choice, reason),)


def standalone(constraint: PythonConstraint, choice: PythonChoice) -> Finding:
    """The note that the requested Python is not a base's own, and where it comes from."""
    base = " ".join(filter(None, (choice.suite.capitalize(), choice.runtime)))
    message = (
        f"no base provides Python {constraint.text}: {choice.version} comes from {choice.provider}'s standalone builds, "
        f"for the ML environment; the FL runtime keeps the base's Python ({base})"
    )
    return Finding(path=constraint.path, line=constraint.line, code="PYTHON_STANDALONE", message=message)


def not_standalone(constraint: PythonConstraint, reason: str) -> Finding:
    """The note that neither a base nor a standalone build provides the requested Python."""
    message = f"no base provides Python {constraint.text}, and no standalone build is available: {reason}"
    hint = "UV_PYTHON_INSTALL_MIRROR names a mirror of the builds; --upgrade asks again before a day is over"
    code = "PYTHON_NOT_STANDALONE"
    return Finding(path=constraint.path, line=constraint.line, code=code, message=message, hint=hint)


def _moved(constraint: PythonConstraint, choice: PythonChoice, reason: str) -> Adjustment:
    return Adjustment(
        code=MOVED,
        package="python",
        before=constraint.text,
        after=choice.version,
        path=constraint.path,
        line=constraint.line,
        reason=reason,
    )


def _minor(version: str) -> tuple[int, int]:
    release = (*Version(version).release, 0)
    return release[0], release[1]
