"""One class of the contract against what the repository defines, its bases included as far as they are the repository's own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flops.errors import Finding

if TYPE_CHECKING:
    from flops.contract.modules import Class, Definition, Method, Modules


@dataclass(frozen=True, kw_only=True)
class ContractMethod:
    name: str
    definition: str
    """The line to write."""
    arguments: int | None = 0
    """How many it is called with, beside `self`; None where only the repository itself calls it."""


@dataclass(frozen=True, kw_only=True)
class ContractClass:
    name: str
    file: str
    template: str
    missing: str
    """The finding's code where the file is missing."""
    methods: tuple[ContractMethod, ...]

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py")

    @property
    def package(self) -> str:
        """The other file that the module may be."""
        return f"{self.module}/__init__.py"


TEMPLATES = "flops_utils.ml_repo_templates"
BUILDING_BLOCKS = "flops_utils.ml_repo_building_blocks"

MODEL_MANAGER = ContractClass(
    name="ModelManager",
    file="model_manager.py",
    template="ModelManagerTemplate",
    missing="MODEL_MANAGER_MISSING",
    methods=(
        ContractMethod(name="set_model_data", definition="def set_model_data(self) -> None:"),
        ContractMethod(name="get_model", definition="def get_model(self):"),
        ContractMethod(name="get_model_parameters", definition="def get_model_parameters(self):"),
        ContractMethod(
            name="set_model_parameters", definition="def set_model_parameters(self, parameters) -> None:", arguments=1
        ),
        ContractMethod(name="fit_model", definition="def fit_model(self) -> int:"),
        ContractMethod(name="evaluate_model", definition="def evaluate_model(self):"),
    ),
)
DATA_MANAGER = ContractClass(
    name="DataManager",
    file="data_manager.py",
    template="DataManagerTemplate",
    missing="DATA_MANAGER_MISSING",
    methods=(
        ContractMethod(name="_prepare_data", definition="def _prepare_data(self):", arguments=None),
        ContractMethod(name="get_data", definition="def get_data(self):"),
    ),
)
CONTRACT = (MODEL_MANAGER, DATA_MANAGER)


#: Packages whose classes have none of the contract's methods, so that inheriting from them hides none.
WITHOUT_CONTRACT = frozenset(
    {"abc", "typing", "typing_extensions", "object", "torch", "sklearn", "keras", "tensorflow", "lightning"}
    | {"pytorch_lightning", "collections", "Generic", "Protocol", "Exception"}
)
BASES = 100
CALLED = frozenset(method.name for contract in CONTRACT for method in contract.methods)


@dataclass(frozen=True, kw_only=True)
class _Place:
    path: str
    line: int
    method: Method | None
    """None for an assignment, of which nothing more is known."""


@dataclass(kw_only=True)
class _Lineage:
    """A class and its bases, nearest first."""

    classes: list[tuple[str, Class]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Bases out of packages, by dotted name, that may define anything."""
    template: bool = False

    def method(self, name: str) -> _Place | None:
        """The nearest definition that is not abstract."""
        for path, cls in self.classes:
            for method in reversed(cls.methods):
                if method.name == name and not any("abstract" in item for item in method.decorators):
                    return _Place(path=path, line=method.line, method=method)
            for bound, line in cls.bound:
                if bound == name:
                    return _Place(path=path, line=line, method=None)
        return None

    @property
    def names(self) -> list[str]:
        return sorted({method.name for _, cls in self.classes for method in cls.methods})


def check_class(known: Modules, path: str, contract: ContractClass) -> tuple[list[Finding], list[Finding]]:
    """Errors and notes about one class that the contract expects in the module at `path`."""
    found = known.find(path, contract.name)
    if found is None:
        return [_class_missing(known, path, contract)], []
    if found.cls is None:
        message = (
            f"{contract.name} comes from {found.dotted or 'an expression'} and can't be checked without running it"
        )
        return [], [Finding(path=path, line=found.line, code="CLASS_NOT_CHECKED", message=message)]
    lineage = _lineage(known, found)
    findings: list[Finding] = []
    notes: list[Finding] = []
    for method in contract.methods:
        findings += _check_method(method, found, lineage)
    absent = [method.name for method in contract.methods if lineage.unknown and lineage.method(method.name) is None]
    if absent:
        message = f"{', '.join(absent)} may come from {lineage.unknown[0]}, which can't be told without running it"
        notes.append(Finding(path=found.path, line=found.line, code="METHOD_NOT_CHECKED", message=message))
    if contract is MODEL_MANAGER:
        findings += [*_check_init(found, lineage)]
    if not lineage.template and not lineage.unknown:
        message = f"{contract.name} does not inherit from {contract.template}; its methods are what counts"
        hint = f"from {TEMPLATES} import {contract.template}, and class {contract.name}({contract.template}):"
        code = "TEMPLATE_NOT_INHERITED"
        notes.append(Finding(path=found.path, line=found.line, code=code, message=message, hint=hint))
    return findings, notes


def _class_missing(known: Modules, path: str, contract: ContractClass) -> Finding:
    classes = {cls.name: cls for cls in known.files[path].classes}
    bound = [
        item.line
        for item in known.files[path].imports
        for name, alias in item.names
        if (alias or name) == contract.name
    ]
    bound += [line for name, line, _ in known.files[path].names if name == contract.name]
    near = difflib.get_close_matches(contract.name, classes, n=1) or [
        name for name in classes if name.lower().replace("_", "") == contract.name.lower()
    ]
    line, hint = max(bound, default=0), f"write class {contract.name}({contract.template}):"
    if near and not bound:
        line, hint = classes[near[0]].line, f"rename class {near[0]} to {contract.name}"
    message = f"{path} defines no class {contract.name}" + (", nor does the module that it names" if bound else "")
    return Finding(path=path, line=line, code="CLASS_MISSING", message=message, hint=hint)


def _lineage(known: Modules, found: Definition) -> _Lineage:
    """Depth first, which differs from Python's order in no case that the contract can tell apart."""
    lineage = _Lineage()
    pending = [found]
    seen: set[tuple[str, Class]] = set()
    while pending and len(seen) < BASES:
        definition = pending.pop(0)
        if definition.cls is None:
            _add_outside(definition.dotted, lineage)
            continue
        if (definition.path, definition.cls) in seen:
            continue
        seen.add((definition.path, definition.cls))
        lineage.classes.append((definition.path, definition.cls))
        bases: list[Definition] = []
        for base in definition.cls.bases:
            place = known.find(definition.path, base) if base else None
            if place is not None and place.cls is definition.cls:
                continue
            if place is None:
                _add_outside(base, lineage)
            else:
                bases.append(place)
        pending = bases + pending
    return lineage


def _add_outside(dotted: str, lineage: _Lineage) -> None:
    top, last = dotted.partition(".")[0], dotted.rpartition(".")[2]
    if top == "flops_utils" and last.endswith("ManagerTemplate"):
        lineage.template = True
    elif top not in WITHOUT_CONTRACT:
        lineage.unknown.append(dotted or "an expression")


def _check_method(method: ContractMethod, found: Definition, lineage: _Lineage) -> list[Finding]:
    owner = found.cls.name if found.cls else ""
    name = f"{owner}.{method.name}"
    there = lineage.method(method.name)
    hint = f"write {method.definition}"
    if there is None and not lineage.unknown:
        near = difflib.get_close_matches(method.name, lineage.names, n=1, cutoff=0.8)
        if near and near[0] not in CALLED:
            hint += f" (or rename {near[0]})"
        message = f"{name} is missing"
        return [Finding(path=found.path, line=found.line, code="METHOD_MISSING", message=message, hint=hint)]
    if there is not None and there.method is not None and (problem := _problem(there.method, method)):
        code, message = problem
        return [Finding(path=there.path, line=there.line, code=code, message=f"{name} {message}", hint=hint)]
    return []


def _problem(definition: Method, method: ContractMethod) -> tuple[str, str] | None:
    if definition.coroutine:
        return "METHOD_KIND", "is a coroutine (async def), and is called without await"
    kinds = [item.rpartition(".")[2] for item in definition.decorators]
    if {"property", "cached_property"} & set(kinds):
        return "METHOD_KIND", "is a property, and is called as a method"
    if method.arguments is None or not set(kinds) <= {"staticmethod", "classmethod", "override", "final"}:
        return None
    own = 0 if "staticmethod" in kinds else 1
    return _arguments(definition, own, method.arguments)


def _arguments(definition: Method, own: int, given: int) -> tuple[str, str] | None:
    """Whether a method can be called with `given` positional arguments beside the `own` (self)."""
    if definition.keywords:
        return "METHOD_ARGUMENTS", "has keyword-only arguments without a default, which nothing gives it"
    if definition.positional < own and not definition.star:
        return "METHOD_ARGUMENTS", "takes no self"
    least = max(definition.positional - definition.optional - own, 0)
    most = definition.positional - own
    if least <= given and (given <= most or definition.star):
        return None
    takes = f"{least}" if least == most else f"{least} to {most}"
    noun = "argument" if takes == "1" else "arguments"
    return "METHOD_ARGUMENTS", f"takes {takes} {noun} beside self, and is called with {given}"


def _check_init(found: Definition, lineage: _Lineage) -> list[Finding]:
    """`__init__` is called without arguments, in the aggregator too, which has no data."""
    there = lineage.method("__init__")
    if there is None or there.method is None or found.cls is None:
        return []
    path, line, init = there.path, there.line, there.method
    findings = []
    name = f"{found.cls.name}.__init__"
    if problem := _arguments(init, 1, 0):
        code, message = problem
        hint = "write def __init__(self): and give every other argument a default"
        findings.append(Finding(path=path, line=line, code=code, message=f"{name} {message}", hint=hint))
    if (call := _call_of(lineage, init, "set_model_data")) is not None:
        message = f"{name} calls set_model_data, and the aggregator has no data"
        hint = "remove the call: set_model_data is called in learners, before the first training"
        code = "SET_MODEL_DATA_IN_INIT"
        findings.append(Finding(path=path, line=call, code=code, message=message, hint=hint))
    return findings


def _call_of(lineage: _Lineage, init: Method, wanted: str) -> int | None:
    """The line in `__init__` from which `wanted` is called, through whatever methods of the class."""
    for name, line in init.calls:
        pending, seen = [name], set()
        while pending:
            current = pending.pop()
            if current == wanted:
                return line
            if current in seen:
                continue
            seen.add(current)
            there = lineage.method(current)
            if there is not None and there.method is not None:
                pending += [called for called, _ in there.method.calls]
    return None
