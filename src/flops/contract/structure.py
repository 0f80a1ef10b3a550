"""Whether an ML repository keeps the contract, judged by its syntax trees; all findings at once, with file, line and what to write.

Findings (errors):

    MODEL_MANAGER_MISSING, DATA_MANAGER_MISSING   the file is not at the repository's root
    CLASS_MISSING            the file neither defines nor imports the class
    METHOD_MISSING           neither the class nor its bases define the method
    METHOD_ARGUMENTS         the method can't be called with the arguments that FLOps gives
    METHOD_KIND              the method is a coroutine or a property
    SET_MODEL_DATA_IN_INIT   `__init__` calls set_model_data; the aggregator has no data
    SYNTAX, TOO_COMPLEX      a module that the contract's modules need can't be parsed

Notes: MODULE_MISSING (a package of the repository has no such module), TEMPLATE_NOT_INHERITED, CLASS_NOT_CHECKED and
METHOD_NOT_CHECKED (they come from an installed package), SHADOWS (a module named as one of Python's), SYNTAX_UNUSED (a
broken file that nothing imports), FILES_NOT_CHECKED.
"""

from __future__ import annotations

import posixpath
import shlex
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flops.contract.classes import BUILDING_BLOCKS, CONTRACT, ContractClass, check_class
from flops.contract.modules import parents, parse
from flops.errors import Finding, StructureError
from flops.recipe import Flavor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from flops.contract.modules import Module, Modules
    from flops.repository.tree_writer import RepositoryFile

#: (module, package, flavor); the first that is imported decides, since code for any framework imports scikit-learn's metrics.
FLAVORS = (
    ("keras", "keras", Flavor.KERAS),
    ("tensorflow", "tensorflow", Flavor.TENSORFLOW),
    ("torch", "torch", Flavor.PYTORCH),
    ("sklearn", "scikit-learn", Flavor.SKLEARN),
)
PYTHON_2 = (
    "Missing parentheses in call to",
    "multiple exception types must be parenthesized",
    "leading zeros in decimal",
)
NOT_TEXT = ("null bytes", "unknown encoding", "can't decode")


@dataclass(frozen=True, kw_only=True, order=True)
class ImportedModule:
    """One import of something that is not the repository's own."""

    path: str
    line: int
    name: str
    """The top-level module."""
    module: str
    """As it is written, dotted."""
    guarded: bool = False
    """Its absence is handled (`except ImportError`) or it is for type checkers only."""
    reached: bool = True
    """The contract's modules import this file, directly or not; others may be tests and scripts."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What the check found."""

    findings: tuple[Finding, ...] = ()
    """Errors, by path and line."""
    notes: tuple[Finding, ...] = ()
    imports: tuple[ImportedModule, ...] = ()
    """By path and line."""
    load_dataset: tuple[str, int] | None = None
    """The path and line of the first use of FLOps' load_dataset; None where it is not used."""
    flavor: Flavor | None = None
    """The framework that the reached files import; None where none is known."""


def require(structure: Structure) -> None:
    """StructureError with all findings, if there are any."""
    if structure.findings:
        first, *others = structure.findings
        more = f" (and {len(others)} more)" if others else ""
        raise StructureError(f"{first.where}: {first.message}{more}", hint=first.hint, findings=structure.findings)


def check(root: Path, files: Sequence[RepositoryFile]) -> Structure:
    """Check an ML repository's files below `root`; reads the Python files among them in bounded child processes."""
    starts = [path for contract in CONTRACT for path in contract.files]
    known = parse(root, files, first=starts)
    reached = known.reached(starts)
    findings: list[Finding] = []
    notes: list[Finding] = [*_shadows(known)]
    for module in known.files.values():
        if module.error is not None:
            finding = _syntax_error(module)
            if module.path in reached:
                findings.append(finding)
            else:
                message = f"not imported by the contract's modules: {finding.message}"
                notes.append(replace(finding, code="SYNTAX_UNUSED", message=message))
    for contract in CONTRACT:
        path = next((path for path in contract.files if path in known.files), None)
        if path is None:
            findings.append(_missing_file(contract, files))
        elif known.files[path].error is None:
            class_findings, class_notes = check_class(known, path, contract)
            findings += class_findings
            notes += class_notes
    if known.skipped:
        message = f"{len(known.skipped)} Python files were not parsed because there is too much code"
        notes.append(Finding(path=known.skipped[0], line=0, code="FILES_NOT_CHECKED", message=message))
    own = _own_names(files)
    notes += _missing_modules(known, reached, own)
    imports = tuple(sorted(_foreign_imports(known, reached, own)))
    uses = min(_uses_of_load_dataset(known, reached), default=None)
    names = {item.name for item in imports if item.reached}
    return Structure(
        findings=tuple(sorted(set(findings))),
        notes=tuple(sorted(set(notes))),
        imports=imports,
        load_dataset=uses[1:] if uses else None,
        flavor=next((flavor for module, _, flavor in FLAVORS if module in names), None),
    )


def _missing_file(contract: ContractClass, files: Sequence[RepositoryFile]) -> Finding:
    elsewhere = [file.path for file in files if posixpath.basename(file.path) == contract.file]
    hint = f"write {contract.file} with class {contract.name}({contract.template}):"
    if elsewhere:
        directory = posixpath.dirname(min(elsewhere, key=lambda path: (path.count("/"), path)))
        hint = f"it is in {directory}: move it to the root, or use --subdir {shlex.quote(directory)}"
    code = f"{contract.file.removesuffix('.py').upper()}_MISSING"
    message = f"{contract.file} is missing at the repository's root"
    return Finding(path=contract.file, line=0, code=code, message=message, hint=hint)


def _syntax_error(module: Module) -> Finding:
    code, line, message = module.error or ("SYNTAX", 0, "")
    hint = "simplify or split it; large data belongs into a file of its own"
    if code == "SYNTAX":
        hint = f"correct it; Python {sys.version_info.major}.{sys.version_info.minor} of the builder reads it"
        if message.startswith(PYTHON_2):
            hint = "this is Python 2: port the file to Python 3"
        if any(text in message for text in NOT_TEXT):
            message, hint = "the file is not text in UTF-8", "save it as UTF-8, without NUL bytes"
    return Finding(path=module.path, line=line, code=code, message=message, hint=hint)


def _shadows(known: Modules) -> Iterator[Finding]:
    tops = {name.partition(".")[0] for name in known.by_name}
    for name in sorted(tops & (sys.stdlib_module_names | {"flops_utils", "flwr"})):
        path = known.by_name.get(name, name)
        message = f"the repository's own {name} hides the module of that name from all packages"
        yield Finding(path=path, line=0, code="SHADOWS", message=message, hint="rename it")


def _own_names(files: Sequence[RepositoryFile]) -> dict[str, bool]:
    """Dotted names that can be imported from the root: modules and the directories that contain them; True for links."""
    names: dict[str, bool] = {}
    for file in files:
        if file.link is not None or file.path.endswith((".py", ".so")):
            *directories, name = file.path.split("/")
            parts = [*directories, name.partition(".")[0]]  # a directory's own name may have a dot
            names.update((".".join(parts[:length]), False) for length in range(1, len(parts)))
            names[".".join(parts)] = file.link is not None
    return names


def _missing_modules(known: Modules, reached: frozenset[str], own: Mapping[str, bool]) -> Iterator[Finding]:
    """Imports from the repository's own packages of modules that these certainly do not have."""
    for path in sorted(reached):
        for item in known.files[path].imports:
            names = list(parents(known.absolute(path, item)))
            lacking = next((index for index, name in enumerate(names) if name not in own), 0)
            # a directory without `__init__`, or one behind a link, may have more modules
            if item.guarded or not lacking or names[lacking - 1] not in known.by_name:
                continue
            parent = known.by_name[names[lacking - 1]]
            if parent.endswith("/__init__.py"):
                name = names[lacking].rpartition(".")[2]
                message = f"{names[-1]} is imported, and {parent} has no module {name} beside it"
            else:
                message = f"{names[-1]} is imported, and {parent} is no package"
            hint = (
                "commit the module (see .gitignore), correct the name, or guard the import with try/except ImportError"
            )
            yield Finding(path=path, line=item.line, code="MODULE_MISSING", message=message, hint=hint)


def _foreign_imports(known: Modules, reached: frozenset[str], own: Mapping[str, bool]) -> Iterator[ImportedModule]:
    """Imports of modules that the repository does not have; what lies behind a link of it is not looked at."""
    for path, module in known.files.items():
        for item in module.imports:
            name = item.module.partition(".")[0]
            is_own = item.module in own or any(own.get(parent) for parent in parents(item.module))
            if item.level == 0 and not is_own and name not in known.by_name:
                yield ImportedModule(
                    path=path,
                    line=item.line,
                    name=name,
                    module=item.module,
                    guarded=item.guarded,
                    reached=path in reached,
                )


def _uses_of_load_dataset(known: Modules, reached: frozenset[str]) -> Iterator[tuple[bool, str, int]]:
    """(not reached, path, line) of every use of FLOps' load_dataset, under any name that it was imported as."""
    parent, _, child = BUILDING_BLOCKS.rpartition(".")
    for path, module in known.files.items():
        aliases = {BUILDING_BLOCKS}
        for item in module.imports:
            for name, alias in item.names:
                if item.module == BUILDING_BLOCKS and name in ("load_dataset", "*"):
                    yield path not in reached, path, item.line
                if item.module == BUILDING_BLOCKS and not name and alias:
                    aliases.add(alias)
                if item.module == parent and name == child:
                    aliases.add(alias or name)
                if item.module == parent and not name:
                    aliases.add(f"{alias or parent}.{child}")
        for dotted, line in module.load_dataset:
            if dotted.removesuffix(".load_dataset") in aliases:
                yield path not in reached, path, line
