"""What an ML repository asks for: its dependency files' bytes in, values out. Nothing is resolved, fetched or executed.

The first of `FILES` at the repository's root that lists dependencies is used; a note names the others. FLOps' own form comes first,
then what is most exact: MLflow's environment, locks, requirements.txt, pyproject.toml. Codes of adjustments:

    REMOVED                mlflow and flops-utils
    CONDA_ONLY             a conda package that no wheel stands for
    RENAMED                a conda name that the package index spells otherwise
    ALTERNATIVE_CHOSEN     `a|b`, which PEP 440 does not have
    LOCAL_VERSION_DROPPED  `+cu118` and the like
    ADDED                  what `load_dataset` needs

and of notes: PIP_DROPPED, HASH_NOT_COMPARED, OPTION_IGNORED, KEY_IGNORED, TOOL_IGNORED, GROUP_NOT_TAKEN, CHANNEL_IGNORED,
BUILD_IGNORED, MORE_THAN_ONE_FILE, LOCK_STALE, LOCK_PLATFORM_MISSING, LOCK_INDEX_IGNORED, MLFLOW_IMPORTED.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from flops.errors import Adjustment, Finding, RequirementsMissing, UsageError
from flops.formats import bounds, conda, pylock_file, pyproject, python_env, requirement_lines, uv_lock
from flops.formats.requirement import DependencyFile, PythonRequest, Reading, Requirement
from flops.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.contract.structure import Structure

__all__ = [
    "FILES",
    "PythonRequest",
    "Requirement",
    "Requirements",
    "is_candidate",
    "numpy_is_one",
    "read",
    "with_data_packages",
    "with_pyarrow_bound",
]

#: In the order in which they count.
FORMATS = (
    conda.FORMAT,
    python_env.FORMAT,
    pylock_file.FORMAT,
    uv_lock.FORMAT,
    requirement_lines.FORMAT,
    pyproject.FORMAT,
)
FILES = tuple(name for one in FORMATS for name in one.names)
DATA_REASON = "the repository uses load_dataset, which needs it"


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Everything that a repository's dependency files say."""

    path: str
    """The file that counts."""
    python: PythonRequest | None
    """None where any will do."""
    entries: tuple[Requirement, ...]
    """In the order of the file; a package may stand there more than once."""
    adjustments: tuple[Adjustment, ...] = ()
    notes: tuple[Finding, ...] = ()
    complete: bool = False
    """Whether the entries are the whole, exactly: a lock of the repository's own, for every requested platform."""

    def finding(self, name: str, code: str, message: str, hint: str, *, version: str | None = None) -> Finding:
        """A finding at the line that requires a package (and allows this version); else about the whole file."""
        for entry in self.entries:
            if entry.name == name and (version is None or entry.allows(version)):
                return entry.finding(code, message, hint)
        return Finding(path=self.path, line=0, code=code, message=message, hint=hint)


def is_candidate(path: str) -> bool:
    """Whether `read` may need this file: a dependency file, or a text that one may include by `-r`."""
    return path in FILES or re.search(r"\.(txt|in|pip|reqs?)$", path) is not None


def read(
    files: Mapping[str, bytes], *, groups: Sequence[str] = (), platforms: Sequence[Platform] = tuple(Platform)
) -> Requirements:
    """Read the dependency file out of a repository's files (by path; those that `is_candidate` takes suffice).

    `groups`: those of pyproject.toml that are wanted too. `platforms`: what a lock has to cover. RequirementsMissing; UsageError;
    RequirementForbidden, NeedsBuild and RequirementSyntax with all findings, each with its file and line.
    """
    found = {
        name: (one, DependencyFile(path=name, files=files, groups=groups, platforms=platforms))
        for one in FORMATS
        for name in one.names
        if name in files
    }
    lists = {name: one.lists_dependencies(file) for name, (one, file) in found.items()}
    # an empty requirements.txt means that nothing is needed, unless pyproject.toml says otherwise
    empty = requirement_lines.FILE if not lists.get(pyproject.FILE) else ""
    present = [name for name, lists_some in lists.items() if lists_some or name == empty]
    if not present:
        raise RequirementsMissing(
            f"the repository has no dependency file ({', '.join(FILES)})",
            hint="write a requirements.txt with one NAME==VERSION a line, or a conda.yaml",
        )
    path, *others = present
    format_, file = found[path]
    if groups and not format_.has_groups:
        hint = f"leave --group out, or keep {path} out of the repository"
        raise UsageError(f"--group holds for {pyproject.FILE}, and {path} counts here", hint=hint)
    reading = Reading()
    complete = format_.read(file, reading)
    if isinstance(complete, str):
        path, (format_, file) = complete, found[complete]
        complete = format_.read(file, reading)
    reading.check(path)
    for name in others:
        if name not in reading.seen:
            reading.note(name, 0, "MORE_THAN_ONE_FILE", f"{name} is not read, since {path} counts", "keep one of them")
    return Requirements(
        path=path,
        python=reading.python,
        entries=tuple(reading.entries),
        adjustments=tuple(reading.adjustments),
        notes=tuple(reading.notes),
        complete=bool(complete),
    )


def with_data_packages(requirements: Requirements, structure: Structure) -> Requirements:
    """Add what `load_dataset` needs where the repository uses it and does not pin it; note mlflow that is still imported."""
    noted = _with_mlflow_notes(requirements, structure)
    if structure.load_dataset is None:
        return noted
    added = noted
    if not any(entry.name == "datasets" and entry.specifier for entry in noted.entries):
        added = _with(added, "datasets", bounds.of_load_dataset()["datasets"].specifier, DATA_REASON)
    if not any(entry.name == "pillow" for entry in noted.entries):
        added = _with(added, "pillow", "", DATA_REASON)
    return with_pyarrow_bound(added) if numpy_is_one(added) else added


def with_pyarrow_bound(requirements: Requirements) -> Requirements:
    """Add the bound on pyarrow that NumPy 1 needs, unless the repository pins pyarrow; adding it twice changes nothing."""
    if requirements.complete or any(entry.name == "pyarrow" and entry.specifier for entry in requirements.entries):
        return requirements
    bound = next(bound for bound in bounds.bounds() if bound.package == "pyarrow" and "numpy" in bound.beside)
    return _with(requirements, bound.package, bound.specifier, bound.reason)


def numpy_is_one(requirements: Requirements) -> bool:
    """Whether the entries themselves exclude NumPy 2; without a pin the lock decides."""
    specifiers = [SpecifierSet(entry.specifier) for entry in requirements.entries if entry.name == "numpy"]
    named = {Version(clause.version.removesuffix(".*")) for one in specifiers for clause in one}
    later = {Version(f"2.{minor}.{patch}") for minor in range(20) for patch in range(10)}
    candidates = later | {version for version in named if version.major >= 2}  # noqa: PLR2004
    return any(not any(one.contains(version, prereleases=True) for version in candidates) for one in specifiers)


def _with(requirements: Requirements, name: str, specifier: str, reason: str) -> Requirements:
    path = requirements.path
    entry = Requirement(name=name, specifier=specifier, path=path, line=0, text=name + specifier)
    adjustment = Adjustment(code="ADDED", package=name, before="", after=specifier, path=path, line=0, reason=reason)
    return replace(
        requirements,
        complete=False,
        entries=(*requirements.entries, entry),
        adjustments=(*requirements.adjustments, adjustment),
    )


def _with_mlflow_notes(requirements: Requirements, structure: Structure) -> Requirements:
    """MLflow is taken out of learners, so an import that nothing guards would end the training."""
    notes = tuple(
        Finding(
            path=module.path,
            line=module.line,
            code="MLFLOW_IMPORTED",
            message="mlflow is imported, and a learner has no mlflow",
            hint="remove the import, or guard it with try/except ImportError",
        )
        for module in structure.imports
        if module.name == "mlflow" and module.reached and not module.guarded
    )
    return replace(requirements, notes=(*requirements.notes, *notes))
