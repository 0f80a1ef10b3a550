"""Does an ML repository keep the contract? Told by its syntax trees; every finding at once, with file, line and what to write.

Findings (errors):

    MODEL_MANAGER_MISSING, DATA_MANAGER_MISSING   the file is not at the repository's root
    CLASS_MISSING            the file defines and imports no such class
    METHOD_MISSING           neither the class nor its bases define the method
    METHOD_ARGUMENTS         it can't be called with the arguments that it is called with
    METHOD_KIND              it is a coroutine or a property
    SET_MODEL_DATA_IN_INIT   `__init__` calls set_model_data; the aggregator has no data
    SYNTAX, TOO_COMPLEX      a module that the contract's modules need can't be parsed

Notes: MODULE_MISSING (the repository's own package has no such module), TEMPLATE_NOT_INHERITED, CLASS_NOT_CHECKED and METHOD_NOT_CHECKED (they come from an installed package), SHADOWS (a
module named as one of Python's), SYNTAX_UNUSED (a broken file that nothing imports), FILES_NOT_CHECKED.
"""

from __future__ import annotations

import posixpath
import shlex
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flops.contract import modules
from flops.contract.classes import BUILDING_BLOCKS, CONTRACT, ContractClass, check_class
from flops.errors import Finding, StructureError
from flops.recipe import Flavor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from flops.contract.modules import Module, Modules
    from flops.repository.tree_writer import RepositoryFile

#: Told by imports; the first that is found counts, since metrics of scikit-learn stand beside every framework.
FLAVORS = (
    ("keras", Flavor.KERAS),
    ("tensorflow", Flavor.TENSORFLOW),
    ("torch", Flavor.PYTORCH),
    ("sklearn", Flavor.SKLEARN),
)
PYTHON_2 = (
    "Missing parentheses in call to",
    "multiple exception types must be parenthesized",
    "leading zeros in decimal",
)


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
    uses_load_dataset: bool = False
    load_dataset_where: str = ""
    """`data_manager.py:3`, or empty."""
    flavor: Flavor | None = None
    """The framework that the reached files import; None where none is known."""


def require(structure: Structure) -> None:
    """StructureError with all findings, if there are any."""
    if not structure.findings:
        return
    first = structure.findings[0]
    count = len(structure.findings)
    more = f" (and {count - 1} more)" if count > 1 else ""
    raise StructureError(f"{first.where}: {first.message}{more}", hint=first.hint, findings=structure.findings)


def check(root: Path, files: Sequence[RepositoryFile]) -> Structure:
    """Check an ML repository's files below `root`; reads the Python files among them in bounded child processes."""
    starts = [name for contract in CONTRACT for name in (contract.file, contract.package)]
    known = modules.parse(root, files, first=starts)
    reached = known.reached(starts)
    findings: list[Finding] = []
    notes: list[Finding] = [*_shadows(known)]
    for module in known.files.values():
        if module.error is not None:
            _add_syntax_error(module, module.path in reached, findings, notes)
    for contract in CONTRACT:
        path = next((name for name in (contract.file, contract.package) if name in known.files), None)
        if path is None:
            findings.append(_missing_file(contract, files))
        elif known.files[path].error is None:
            wrong, noted = check_class(known, path, contract)
            findings += wrong
            notes += noted
    if known.skipped:
        message = f"{len(known.skipped)} Python files were not parsed, there is too much code"
        notes.append(Finding(path=known.skipped[0], line=0, code="FILES_NOT_CHECKED", message=message))
    own = _names(files)
    notes += _missing_modules(known, reached, own)
    imports = tuple(sorted(_imports(known, reached, own)))
    where = min(_load_dataset(known, reached), default=None)
    return Structure(
        findings=tuple(sorted(set(findings))),
        notes=tuple(sorted(set(notes))),
        imports=imports,
        uses_load_dataset=where is not None,
        load_dataset_where=f"{where[1]}:{where[2]}" if where else "",
        flavor=_flavor(imports),
    )


def _missing_file(contract: ContractClass, files: Sequence[RepositoryFile]) -> Finding:
    elsewhere = [file.path for file in files if posixpath.basename(file.path) == contract.file]
    hint = f"write {contract.file} with class {contract.name}({contract.template}):"
    if elsewhere:
        place = posixpath.dirname(min(elsewhere, key=lambda path: (path.count("/"), path)))
        hint = f"it lies in {place}: move it to the root, or use --subdir {shlex.quote(place)}"
    message = f"{contract.file} is missing at the repository's root"
    return Finding(path=contract.file, line=0, code=contract.missing, message=message, hint=hint)


def _add_syntax_error(module: Module, needed: bool, findings: list[Finding], notes: list[Finding]) -> None:
    code, line, message = module.error or ("SYNTAX", 0, "")
    hint = "simplify or split it; large data belong into a file of their own"
    if code == "SYNTAX":
        hint = f"correct it; Python {sys.version_info.major}.{sys.version_info.minor} of the builder reads it"
        if message.startswith(PYTHON_2):
            hint = "this is Python 2: port the file to Python 3"
        if "null bytes" in message or "unknown encoding" in message or "can't decode" in message:
            message, hint = "the file is not text in UTF-8", "save it as UTF-8, without NUL bytes"
    finding = Finding(path=module.path, line=line, code=code, message=message, hint=hint)
    if needed:
        findings.append(finding)
    else:
        notes.append(
            replace(finding, code="SYNTAX_UNUSED", message=f"not imported by the contract's modules: {message}")
        )


def _shadows(known: Modules) -> Iterator[Finding]:
    for name in sorted(known.tops & (sys.stdlib_module_names | {"flops_utils", "flwr"})):
        path = known.by_name.get(name, name)
        message = f"the repository's own {name} hides the module of that name from all packages"
        yield Finding(path=path, line=0, code="SHADOWS", message=message, hint="rename it")


def _names(files: Sequence[RepositoryFile]) -> dict[str, bool]:
    """Dotted names of all that an import may find from the root: modules, directories that hold some; True for links."""
    names: dict[str, bool] = {}
    for file in files:
        if file.link is not None or file.path.endswith((".py", ".so")):
            *places, name = file.path.split("/")
            parts = [*places, name.partition(".")[0]]
            names.update((".".join(parts[:length]), False) for length in range(1, len(parts)))
            names[".".join(parts)] = file.link is not None
    return names


def _is_own(module: str, own: Mapping[str, bool]) -> bool:
    """Whether the repository has a module, or a link on the way to it: what lies behind that is not looked at."""
    parts = module.split(".")
    return module in own or any(own.get(".".join(parts[:length])) for length in range(1, len(parts)))


def _missing_modules(known: Modules, reached: frozenset[str], own: Mapping[str, bool]) -> Iterator[Finding]:
    """Imports from the repository's own packages and modules of what they surely don't have."""
    for path in sorted(reached):
        for item in known.files[path].imports:
            parts = known.absolute(path, item).split(".")
            names = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
            lacking = next((place for place, name in enumerate(names) if name not in own), 0)
            # in a directory without `__init__`, or behind a link, nothing is sure
            if item.guarded or not lacking or names[lacking - 1] not in known.by_name:
                continue
            parent = known.by_name[names[lacking - 1]]
            message = f"{names[-1]} is imported, and {parent} has no module {parts[lacking]} beside it"
            if not parent.endswith("/__init__.py"):
                message = f"{names[-1]} is imported, and {parent} is no package"
            hint = (
                "commit the module (see .gitignore), correct the name, or guard the import with try/except ImportError"
            )
            yield Finding(path=path, line=item.line, code="MODULE_MISSING", message=message, hint=hint)


def _imports(known: Modules, reached: frozenset[str], own: Mapping[str, bool]) -> Iterator[ImportedModule]:
    """Imports of what the repository does not have; a package may lend modules to its directories without `__init__`."""
    for path, module in known.files.items():
        for item in module.imports:
            name = item.module.partition(".")[0]
            if item.level == 0 and not _is_own(item.module, own) and name not in known.by_name:
                yield ImportedModule(
                    path=path,
                    line=item.line,
                    name=name,
                    module=item.module,
                    guarded=item.guarded,
                    reached=path in reached,
                )


def _load_dataset(known: Modules, reached: frozenset[str]) -> Iterator[tuple[bool, str, int]]:
    """(not reached, path, line) of every use of FLOps' load_dataset, under whatever name it was imported."""
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


def _flavor(imports: Sequence[ImportedModule]) -> Flavor | None:
    found = {item.name for item in imports if item.reached}
    return next((flavor for name, flavor in FLAVORS if name in found), None)
