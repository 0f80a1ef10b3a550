"""Which Python a repository gets: the offered ones, ordered by how near they are to what was asked for (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from flops.errors import Adjustment, Finding, PythonUnavailable, RequirementSyntax, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flops.formats.requirement import PythonRequest

FLAG = "--python"
MOVED = "PYTHON_MOVED"
#: The provider of Pythons that stand beside the base's own, for the ML environment alone.
STANDALONE = "uv"


@dataclass(frozen=True, kw_only=True)
class PythonChoice:
    """A Python that a base file system can be made with."""

    version: str
    """Full version, "3.11.2"."""
    minor: str
    """"3.11"."""
    glibc: tuple[int, int]
    provider: str
    """"debian", "base-image", or "uv" for a standalone build."""
    suite: str
    """Debian's suite, "bookworm"; "" for a base image."""
    base: str = ""
    """Full version of the base's own Python, where this is another one, beside it."""

    @property
    def runtime(self) -> str:
        """Full version of the Python that the FL runtime gets: always the base's."""
        return self.base or self.version

    @property
    def runtime_minor(self) -> str:
        return ".".join(self.runtime.split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for: by the repository, or by `--python`, which wins."""

    text: str
    specifier: SpecifierSet
    where: str

    @classmethod
    def read(cls, request: PythonRequest | None, flag: str | None) -> Wish | None:
        """UsageError where the flag is no version."""
        if flag is not None:
            try:
                full = Version(flag).release[2:]
                return cls(text=flag, specifier=SpecifierSet(f"=={flag}" if full else f"=={flag}.*"), where=FLAG)
            except ValueError as error:
                raise UsageError(f"{FLAG} {flag!r:.50} is no version", hint=f"for example {FLAG} 3.11") from error
        if request is None:
            return None
        where = f"{request.path}:{request.line}" if request.line else request.path
        try:
            return cls(text=request.text, specifier=SpecifierSet(request.specifier), where=where)
        except InvalidSpecifier as error:
            raise RequirementSyntax(f"{where}: {request.text!r:.50} is no version of Python") from error

    def fits(self, choice: PythonChoice) -> bool:
        return self.specifier.contains(choice.version, prereleases=True)

    def names_minor_of(self, choice: PythonChoice) -> bool:
        """Whether the wish fits but for the patch release."""
        return self.fits(choice) or self._distance(choice, exact=True) == 0

    def rank(self, choice: PythonChoice) -> tuple[bool, int, tuple[int, ...]]:
        """The lowest is the nearest: what fits, then by minor versions in between, then the newer."""
        if self.fits(choice):
            return (False, 0, ())
        return (True, self._distance(choice), tuple(-part for part in _minor(choice.version)))

    def _distance(self, choice: PythonChoice, *, exact: bool = False) -> int:
        """Minor versions from the choice to the nearest that the wish names, in `==` only where `exact`."""
        wanted = {"==", "===", "~="} if exact else {"==", "===", "~=", "<", "<=", ">", ">="}
        major, minor = _minor(choice.version)
        named = [_minor(clause.version.removesuffix(".*")) for clause in self.specifier if clause.operator in wanted]
        return min((1000 * abs(a - major) + abs(b - minor) for a, b in named), default=1000)


def order(wish: Wish | None, pythons: Sequence[PythonChoice]) -> list[PythonChoice]:
    """The offered Pythons, nearest first; as they stand where nothing was asked for.

    PythonUnavailable where none is offered, or none of the minor version that `--python` names.
    """
    offered = list(pythons)
    if wish is not None and wish.where == FLAG:
        offered = [choice for choice in pythons if wish.names_minor_of(choice)]
    if not offered:
        known = ", ".join(dict.fromkeys(choice.minor for choice in pythons))
        raise PythonUnavailable(
            f"no base provides Python {wish.text}" if wish else "no base provides a Python",
            hint=f"use {FLAG} with one of {known}" if known else "",
        )
    return sorted(offered, key=wish.rank) if wish else offered


def adjustments(
    request: PythonRequest | None, wish: Wish | None, choice: PythonChoice, offered: Sequence[PythonChoice]
) -> tuple[Adjustment, ...]:
    """What there is to tell about this choice; nothing where it is what was asked for."""
    if wish is None:
        return ()
    if wish.where == FLAG and request is not None:
        asked = Wish.read(request, None)
        if asked is None or asked.fits(choice):
            return ()
        return (_moved(asked, choice, f"{FLAG} {wish.text} was given"),)
    if wish.fits(choice):
        return ()
    if wish.names_minor_of(choice):
        origin = " ".join(part for part in (choice.provider, choice.suite) if part)
        reason = f"{origin} provides {choice.version}; all releases of {choice.minor} take the same wheels"
    elif any(wish.names_minor_of(other) for other in offered):
        reason = f"not every requirement has a wheel for Python {wish.text}; {choice.minor} is the nearest for which all lock"
    else:
        reason = f"no base provides Python {wish.text}; {choice.minor} is the nearest that can be used"
    return (_moved(wish, choice, reason),)


def standalone(wish: Wish, choice: PythonChoice) -> Finding:
    """That the Python which was asked for is no base's, and where it comes from."""
    base = " ".join(part for part in (choice.suite.capitalize(), choice.runtime) if part)
    message = (
        f"no base provides Python {wish.text}: {choice.version} comes from {choice.provider}'s standalone builds, for the ML "
        f"environment; the FL runtime keeps the base's Python ({base})"
    )
    return _note(wish, "PYTHON_STANDALONE", message)


def not_standalone(wish: Wish, reason: str) -> Finding:
    """That nobody provides the Python which was asked for."""
    message = f"no base provides Python {wish.text}, and no standalone build can be had: {reason}"
    hint = "UV_PYTHON_INSTALL_MIRROR names a mirror of the builds; --upgrade asks again before a day is over"
    return _note(wish, "PYTHON_NOT_STANDALONE", message, hint)


def _note(wish: Wish, code: str, message: str, hint: str = "") -> Finding:
    path, _, line = wish.where.rpartition(":")
    place, number = (path, int(line)) if path and line.isdecimal() else (wish.where, 0)
    return Finding(path=place, line=number, code=code, message=message, hint=hint)


def _moved(wish: Wish, choice: PythonChoice, reason: str) -> Adjustment:
    return Adjustment(
        code=MOVED, package="python", before=wish.text, after=choice.version, where=wish.where, reason=reason
    )


def _minor(version: str) -> tuple[int, int]:
    release = (*Version(version).release, 0)
    return release[0], release[1]
