"""What an ML repository asks for: its dependency files' bytes in, values out. Nothing is resolved, fetched or executed.

The first of `FILES` that lies at the repository's root and speaks of dependencies counts; others are noted. FLOps' own form comes first,
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
from flops.formats import bounds, pylock_file, pyproject, python_env, requirement_lines, uv_lock
from flops.formats.conda import read_environment
from flops.formats.requirement import PythonRequest, Reading, Requirement
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
FILES = (
    "conda.yaml",
    "conda.yml",
    "environment.yaml",
    "environment.yml",
    python_env.FILE,
    pylock_file.FILE,
    uv_lock.FILE,
    requirement_lines.FILE,
    pyproject.FILE,
)
#: Those that have groups to ask for.
WITH_GROUPS = (pylock_file.FILE, uv_lock.FILE, pyproject.FILE)
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
    present = [
        name for name in FILES if name in files and (name != pyproject.FILE or pyproject.speaks(files[name], groups))
    ]
    if requirement_lines.FILE in present[:-1] and not requirement_lines.speaks(files[requirement_lines.FILE]):
        present.remove(requirement_lines.FILE)
    if not present:
        raise RequirementsMissing(
            f"the repository has no dependency file ({', '.join(FILES)})",
            hint="write a requirements.txt with one NAME==VERSION a line, or a conda.yaml",
        )
    path, *others = present
    if groups and path not in WITH_GROUPS:
        hint = f"leave --group out, or keep {path} out of the repository"
        raise UsageError(f"--group holds for {pyproject.FILE}, and {path} counts here", hint=hint)
    reading = Reading()
    complete = _read(path, files, groups, platforms, reading)
    if complete is None:  # a stale lock
        path, complete = pyproject.FILE, False
        pyproject.read_pyproject(path, files[path], groups, reading)
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
        complete=complete,
    )


def _read(
    path: str, files: Mapping[str, bytes], groups: Sequence[str], platforms: Sequence[Platform], reading: Reading
) -> bool | None:
    """Read one file by its own format; whether it is a lock that holds everything, None where it is out of date."""
    match path:
        case pyproject.FILE:
            pyproject.read_pyproject(path, files[path], groups, reading)
        case pylock_file.FILE:
            return pylock_file.read_pylock(path, files[path], groups, platforms, reading)
        case uv_lock.FILE:
            return uv_lock.read_uv_lock(path, files, groups, platforms, reading)
        case python_env.FILE:
            python_env.read_python_env(path, files[path], files, reading)
        case requirement_lines.FILE:
            requirement_lines.RequirementLines(reading=reading, files=files).read_file(path, files[path])
        case _:
            read_environment(path, files[path], files, reading)
    return False


def with_data_packages(requirements: Requirements, structure: Structure) -> Requirements:
    """Add what `load_dataset` needs where the repository uses it and does not pin it; note mlflow that is still imported."""
    noted = _with_mlflow_notes(requirements, structure)
    if not structure.uses_load_dataset:
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
    adjustment = Adjustment(code="ADDED", package=name, before="", after=specifier, where=path, reason=reason)
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
