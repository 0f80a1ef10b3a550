"""One requirement of an ML repository, and what is gathered while its dependency files are read."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Pep508
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from flops.errors import Adjustment, Finding, NeedsBuild, RequirementForbidden, RequirementSyntax
from flops.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


#: Taken out of every learner, and why.
REMOVED = {
    "mlflow": "tracking from learners would tell about their private data; the aggregator tracks the training",
    "mlflow-skinny": "tracking from learners would tell about their private data; the aggregator tracks the training",
    "mlflow-tracing": "tracking from learners would tell about their private data; the aggregator tracks the training",
    "flops-utils": "the images bring their own flops_utils, with the same names to import",
}
#: Labels of builds that only other indexes have; the accelerator decides which build is taken.
BUILD_LABEL = re.compile(r"\+(cpu|cu\d+|cuda[\d.]*|rocm[\d.]+|xpu)$")


#: Bytes of one dependency file; YAML of this size is read in seconds.
FILE_LIMIT = 256 * 1024
#: Characters of a requirement or a specifier; a longer one is nobody's, and numbers of thousands of digits can't be compared.
TEXT_LIMIT = 1000
#: Parentheses in one another; a marker that a tool wrote has three.
DEPTH = 20
#: The longest line is this part of what its file may have: 16 kB, which holds the hashes of every package.
LINE_PART = 16
#: A run of blanks within a line: a search for what follows blanks takes the square of their number.
BLANKS = re.compile(r"(?<!\s)[^\S\r\n]{201}")
LINE_END = re.compile(r"\r\n|\r|\n")
#: Of one repository; the files that people write have some hundred.
ENTRIES = 5000
#: Findings and notes that are kept of one repository.
TOLD = 1000
#: Lower bounds stand before upper ones, as people write them.
OPERATORS = ("===", "==", "~=", ">", ">=", "!=", "<", "<=")


def specifier_text(specifiers: SpecifierSet) -> str:
    """PEP 440 in one spelling, whatever the order it was written in: `>=1.2,<2`."""
    clauses = sorted((OPERATORS.index(clause.operator), clause.version, str(clause)) for clause in specifiers)
    return ",".join(text for _, _, text in clauses)


def depth(text: str) -> int:
    """How many parentheses lie in one another; each costs a parser of markers some calls of its own."""
    most = now = 0
    for sign in re.findall(r"[()]", text):
        now += 1 if sign == "(" else -1
        most = max(most, now)
    return most


@dataclass(frozen=True, kw_only=True)
class FileHash:
    """What a file of the package must be, as the repository says."""

    sha256: str
    """64 hexadecimal digits."""
    filename: str = ""
    """Empty where the format names none."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A package that the repository asks for."""

    name: str
    """In PEP 503's normal form."""
    specifier: str = ""
    """PEP 440, as `>=1.2,<2`; may be empty."""
    extras: tuple[str, ...] = ()
    marker: str = ""
    """PEP 508, as `python_version < "3.12"`; may be empty."""
    path: str
    line: int
    """1-based; 0 where the builder added it."""
    text: str
    """As it was written."""
    hashes: tuple[FileHash, ...] = ()
    """One of them must fit what is locked; empty where the repository names none."""

    @property
    def pep508(self) -> str:
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        marker = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}{extras}{self.specifier}{marker}"

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path

    def allows(self, version: str) -> bool:
        return SpecifierSet(self.specifier).contains(version, prereleases=True)

    def finding(self, code: str, message: str, hint: str) -> Finding:
        """A finding about this requirement, at its line."""
        return Finding(path=self.path, line=self.line, code=code, message=message, hint=hint)

    def adjustment(self, code: str, *, before: str, after: str, reason: str, platform: str | None = None) -> Adjustment:
        """A change of this requirement, at its line."""
        return Adjustment(
            code=code,
            package=self.name,
            before=before,
            after=after,
            path=self.path,
            line=self.line,
            reason=reason,
            platform=platform,
        )


@dataclass(frozen=True, kw_only=True)
class PythonRequest:
    """The Python that a repository asks for."""

    text: str
    """As it was written, without the name and a single `=`: `3.10.14`, `>=3.9,<3.12`."""
    specifier: str
    """PEP 440, as `==3.10.14`."""
    path: str
    line: int


@dataclass(kw_only=True)
class Reading:
    """Gathers everything before anything is raised."""

    entries: list[Requirement] = field(default_factory=list)
    python: PythonRequest | None = None
    adjustments: list[Adjustment] = field(default_factory=list)
    notes: dict[Finding, None] = field(default_factory=dict)
    """In order, without repeats."""
    problems: list[Finding] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """Paths of the files that were read; each is read once."""

    def text(self, path: str, data: bytes, *, limit: int | None = None) -> str | None:
        """A file's text by its byte order mark, UTF-8 without one; None, and a problem, where it is none."""
        self.seen.add(path)
        limit = limit or FILE_LIMIT
        if len(data) > limit:
            self.wrong(path, 0, f"the file has more than {limit} bytes", "keep only requirements in it")
            return None
        marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
        encoding = next((name for mark, name in marks if data.startswith(mark)), "utf-8")
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            self.wrong(path, 0, "the file is not text in UTF-8", "save it as UTF-8")
            return None
        longest = limit // LINE_PART
        for found, what in (
            (re.search(rf"(?<![^\r\n])[^\r\n]{{{longest + 1}}}", text), f"a line has more than {longest} characters"),
            (BLANKS.search(text), "a line has more than 200 blanks in a row"),
        ):
            if found is not None:
                self.wrong(path, len(LINE_END.findall(text, 0, found.start())) + 1, what, "shorten it")
                return None
        return text

    def forbid(self, path: str, line: int, message: str, hint: str) -> None:
        """Something that would reach outside the repository and the package index."""
        self._found(Finding(path=path, line=line, code=RequirementForbidden.code, message=message, hint=hint))

    def wrong(self, path: str, line: int, message: str, hint: str) -> None:
        """Something that can't be read."""
        self._found(Finding(path=path, line=line, code=RequirementSyntax.code, message=message, hint=hint))

    def _found(self, problem: Finding) -> None:
        if len(self.problems) < TOLD:
            self.problems.append(problem)

    def note(self, path: str, line: int, code: str, message: str, hint: str = "") -> None:
        """Something that was left out and changes no package."""
        if len(self.notes) < TOLD:
            self.notes[Finding(path=path, line=line, code=code, message=message, hint=hint)] = None

    def adjust(self, code: str, package: str, before: str, after: str, *, path: str, line: int, reason: str) -> None:
        self.adjustments.append(
            Adjustment(code=code, package=package, before=before, after=after, path=path, line=line, reason=reason)
        )

    def add(
        self, text: str, *, path: str, line: int, pep508: str | None = None, hashes: tuple[FileHash, ...] = ()
    ) -> None:
        """Take one requirement in PEP 508's form (`pep508`, or `text` itself), with the rules that hold for all."""
        text = text.strip()
        if "${" in text:
            self.forbid(path, line, "variables are not filled in", "write the value itself")
            return
        if not self._fits(text, path, line):
            return
        try:
            parsed = Pep508(pep508 or text)
        except (InvalidRequirement, RecursionError):
            hint = "write NAME==VERSION (PEP 508), one on a line"
            if not text.isascii():
                hint += "; it holds a letter or a dash that is none of ASCII's"
            self.wrong(path, line, "this is not a requirement", hint)
            return
        if parsed.url:
            self.forbid(path, line, f"{parsed.name} comes from a URL", f"write {parsed.name}==VERSION from the index")
            return
        if any(clause.operator == "===" for clause in parsed.specifier):
            self.wrong(path, line, "`===` compares text and fits no lock", "write == and a version")
            return
        entry = Requirement(
            name=canonicalize_name(parsed.name),
            specifier=specifier_text(parsed.specifier),
            extras=tuple(sorted(parsed.extras)),
            marker=str(parsed.marker) if parsed.marker else "",
            path=path,
            line=line,
            text=text,
            hashes=hashes,
        )
        if entry.name == "pip":
            self.note(path, line, "PIP_DROPPED", "pip is left out: the builder installs without it")
        elif entry.name in REMOVED:
            reason = REMOVED[entry.name]
            self.adjustments.append(entry.adjustment("REMOVED", before=entry.specifier, after="", reason=reason))
        else:
            self.entries.append(self._without_build_label(entry))

    def _fits(self, text: str, path: str, line: int) -> bool:
        """Whether a requirement is of a size that people write, and so is their number."""
        what = ""
        if len(text) > TEXT_LIMIT:
            what = f"a requirement has more than {TEXT_LIMIT} characters"
        elif depth(text) > DEPTH:
            what = f"a requirement has more than {DEPTH} parentheses in one another"
        elif len(self.entries) == ENTRIES:
            what = f"there are more than {ENTRIES} requirements"
        if what:
            self.wrong(path, line, what, "shorten it")
        return not what

    def _without_build_label(self, entry: Requirement) -> Requirement:
        clauses = [str(clause) for clause in SpecifierSet(entry.specifier)]
        if not any(BUILD_LABEL.search(clause) for clause in clauses):
            return entry
        specifier = specifier_text(SpecifierSet(",".join(BUILD_LABEL.sub("", clause) for clause in clauses)))
        reason = "the package index has no builds with such a label; --accelerator chooses between cpu and cuda"
        change = entry.adjustment("LOCAL_VERSION_DROPPED", before=entry.specifier, after=specifier, reason=reason)
        self.adjustments.append(change)
        return replace(entry, specifier=specifier, hashes=())

    def unbuilt(self, path: str, line: int, message: str) -> None:
        """Something that only running the repository's own build would tell."""
        hint = "nothing of a repository is executed: write the dependencies themselves into [project] dependencies"
        self._found(Finding(path=path, line=line, code=NeedsBuild.code, message=message, hint=hint))

    def ask_python(self, specifiers: str, *, path: str, line: int, text: str | None = None) -> None:
        """Take a PEP 440 specifier for Python, as `requires-python` holds one; empty asks for nothing.

        `text`: as it was written, where that differs.
        """
        if len(specifiers) > TEXT_LIMIT:
            self.wrong(path, line, f"a specifier has more than {TEXT_LIMIT} characters", "for example >=3.10,<3.13")
            return
        try:
            specifier = specifier_text(SpecifierSet(specifiers))
        except InvalidSpecifier:
            self.wrong(path, line, "this is no specifier of Python versions", "for example >=3.10,<3.13")
            return
        if specifier:
            self.python = PythonRequest(text=text or specifiers, specifier=specifier, path=path, line=line)

    def check(self, path: str) -> None:
        """Raise all problems at once, by the gravest: RequirementForbidden, then NeedsBuild, then RequirementSyntax."""
        if not self.problems:
            return
        findings = sorted(set(self.problems))
        codes = {finding.code for finding in findings}
        first = findings[0]
        told = f"{first.where}: {first.message}"
        if len(findings) > 1:
            told = f"{path} holds {len(findings)} lines that can't be used; the first is {told}"
        raise next(kind for kind in (RequirementForbidden, NeedsBuild, RequirementSyntax) if kind.code in codes)(
            told,
            hint=first.hint,
            findings=findings,
        )


@dataclass(frozen=True, kw_only=True)
class DependencyFile:
    """One dependency file, and what its format may need beside its bytes."""

    path: str
    files: Mapping[str, bytes]
    """The repository's dependency files and texts by path, this one among them."""
    groups: Sequence[str] = ()
    """Groups of pyproject.toml that are asked for."""
    platforms: Sequence[Platform] = tuple(Platform)
    """What a lock has to cover."""

    @property
    def data(self) -> bytes:
        return self.files[self.path]


@dataclass(frozen=True, kw_only=True)
class DependencyFormat:
    """How files of some names are read (docs/how-to/dependency-format.md)."""

    names: tuple[str, ...]
    """At the repository's root, in the order in which they count."""
    read: Callable[[DependencyFile, Reading], bool | str | None]
    """Adds requirements and findings to the Reading. Returns True for a lock that holds everything, or the name of the file
    that is read instead of a lock that is out of date."""
    lists_dependencies: Callable[[DependencyFile], bool] = lambda _file: True
    """Whether a file of this name is one that counts."""
    has_groups: bool = False
