"""The classes of the ML repository contract, and the check of one of them against what the repository defines."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flops.errors import Finding

if TYPE_CHECKING:
    from flops.contract.modules import ClassDefinition, Definition, MethodDefinition, Modules


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
    methods: tuple[ContractMethod, ...]

    @property
    def template(self) -> str:
        """The class of flops_utils that it may inherit from."""
        return f"{self.name}Template"

    @property
    def files(self) -> tuple[str, str]:
        """The paths that its module may have."""
        return self.file, f"{self.file.removesuffix('.py')}/__init__.py"


TEMPLATES = "flops_utils.ml_repo_templates"
BUILDING_BLOCKS = "flops_utils.ml_repo_building_blocks"

MODEL_MANAGER = ContractClass(
    name="ModelManager",
    file="model_manager.py",
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
    methods=(
        ContractMethod(name="_prepare_data", definition="def _prepare_data(self):", arguments=None),
        ContractMethod(name="get_data", definition="def get_data(self):"),
    ),
)
CONTRACT = (MODEL_MANAGER, DATA_MANAGER)


#: Packages whose classes have none of the contract's methods, so that a class does not inherit any from them.
WITHOUT_CONTRACT = frozenset(
    {"abc", "typing", "typing_extensions", "object", "torch", "sklearn", "keras", "tensorflow", "lightning"}
    | {"pytorch_lightning", "collections", "Generic", "Protocol", "Exception"}
)
#: Base classes that are followed.
BASES = 100
CALLED = frozenset(method.name for contract in CONTRACT for method in contract.methods)


@dataclass(frozen=True, kw_only=True)
class _Member:
    """The definition of a method, or an assignment to its name."""

    path: str
    line: int
    method: MethodDefinition | None
    """None for an assignment, whose value is not known."""


@dataclass(kw_only=True)
class _Lineage:
    """A class and its bases, nearest first."""

    path: str
    line: int
    """Of the class itself."""
    classes: list[tuple[str, ClassDefinition]] = field(default_factory=list)
    """With their paths."""
    unknown: list[str] = field(default_factory=list)
    """Bases from packages, by dotted name, that may define anything."""
    template: bool = False
    """Whether FLOps' template is a base."""

    def member(self, name: str) -> _Member | None:
        """The nearest definition that is not abstract."""
        for path, cls in self.classes:
            for method in reversed(cls.methods):
                if method.name == name and not any("abstract" in item for item in method.decorators):
                    return _Member(path=path, line=method.line, method=method)
            for assigned, line in cls.assigned:
                if assigned == name:
                    return _Member(path=path, line=line, method=None)
        return None

    @property
    def owner(self) -> str:
        return self.classes[0][1].name

    @property
    def method_names(self) -> list[str]:
        return sorted({method.name for _, cls in self.classes for method in cls.methods})

    def add_foreign(self, dotted: str) -> None:
        top, last = dotted.partition(".")[0], dotted.rpartition(".")[2]
        if top == "flops_utils" and last.endswith("ManagerTemplate"):
            self.template = True
        elif top not in WITHOUT_CONTRACT:
            self.unknown.append(dotted or "an expression")

    def finding(self, code: str, message: str, hint: str = "") -> Finding:
        return Finding(path=self.path, line=self.line, code=code, message=message, hint=hint)


def check_class(known: Modules, path: str, contract: ContractClass) -> tuple[list[Finding], list[Finding]]:
    """Errors and notes about one class that the contract expects in the module at `path`."""
    found = known.find(path, contract.name)
    if found is None:
        return [_class_missing(known, path, contract)], []
    if found.cls is None:
        origin = found.dotted or "an expression"
        message = f"{contract.name} comes from {origin} and can't be checked without running it"
        return [], [Finding(path=path, line=found.line, code="CLASS_NOT_CHECKED", message=message)]
    lineage = _lineage(known, found)
    findings = [finding for method in contract.methods for finding in _check_method(method, lineage)]
    if contract is MODEL_MANAGER:
        findings += _check_init(lineage)
    notes: list[Finding] = []
    absent = [method.name for method in contract.methods if lineage.unknown and lineage.member(method.name) is None]
    if absent:
        message = f"{', '.join(absent)} may come from {lineage.unknown[0]}, which can't be checked without running it"
        notes.append(lineage.finding("METHOD_NOT_CHECKED", message))
    if not lineage.template and not lineage.unknown:
        message = f"{contract.name} does not inherit from {contract.template}; only its methods are checked"
        hint = f"from {TEMPLATES} import {contract.template}, and class {contract.name}({contract.template}):"
        notes.append(lineage.finding("TEMPLATE_NOT_INHERITED", message, hint))
    return findings, notes


def _class_missing(known: Modules, path: str, contract: ContractClass) -> Finding:
    module = known.files[path]
    classes = {cls.name: cls for cls in module.classes}
    bound = [item.line for item in module.imports if any((alias or n) == contract.name for n, alias in item.names)]
    bound += [line for name, line, _ in module.names if name == contract.name]
    near = difflib.get_close_matches(contract.name, classes, n=1) or [
        name for name in classes if name.lower().replace("_", "") == contract.name.lower()
    ]
    line, hint = max(bound, default=0), f"write class {contract.name}({contract.template}):"
    if near and not bound:
        line, hint = classes[near[0]].line, f"rename class {near[0]} to {contract.name}"
    message = f"{path} defines no class {contract.name}" + (", nor does the module that it names" if bound else "")
    return Finding(path=path, line=line, code="CLASS_MISSING", message=message, hint=hint)


def _lineage(known: Modules, found: Definition) -> _Lineage:
    """Depth first; where Python's order differs, the contract's methods are the same."""
    lineage = _Lineage(path=found.path, line=found.line)
    pending = [found]
    while pending and len(lineage.classes) < BASES:
        definition = pending.pop(0)
        if definition.cls is None:
            lineage.add_foreign(definition.dotted)
        elif (definition.path, definition.cls) not in lineage.classes:
            lineage.classes.append((definition.path, definition.cls))
            bases: list[Definition] = []
            for name in definition.cls.bases:
                base = known.find(definition.path, name) if name else None
                if base is None:
                    lineage.add_foreign(name)
                elif base.cls is not definition.cls:
                    bases.append(base)
            pending = bases + pending
    return lineage


def _check_method(method: ContractMethod, lineage: _Lineage) -> list[Finding]:
    name = f"{lineage.owner}.{method.name}"
    hint = f"write {method.definition}"
    member = lineage.member(method.name)
    if member is None and not lineage.unknown:
        near = difflib.get_close_matches(method.name, lineage.method_names, n=1, cutoff=0.8)
        if near and near[0] not in CALLED:
            hint += f" (or rename {near[0]})"
        return [lineage.finding("METHOD_MISSING", f"{name} is missing", hint)]
    if member is not None and member.method is not None and (problem := _problem(member.method, method)):
        code, message = problem
        return [Finding(path=member.path, line=member.line, code=code, message=f"{name} {message}", hint=hint)]
    return []


def _problem(definition: MethodDefinition, method: ContractMethod) -> tuple[str, str] | None:
    if definition.coroutine:
        return "METHOD_KIND", "is a coroutine (async def), and is called without await"
    kinds = {item.rpartition(".")[2] for item in definition.decorators}
    if {"property", "cached_property"} & kinds:
        return "METHOD_KIND", "is a property, and is called as a method"
    if method.arguments is None or not kinds <= {"staticmethod", "classmethod", "override", "final"}:
        return None
    return _argument_problem(definition, 0 if "staticmethod" in kinds else 1, method.arguments)


def _argument_problem(definition: MethodDefinition, own: int, given: int) -> tuple[str, str] | None:
    """Why a method can't be called with `given` positional arguments beside its `own` (self), if it can't."""
    if definition.keywords:
        return "METHOD_ARGUMENTS", "has keyword-only arguments without a default, and is called without them"
    if definition.positional < own and not definition.star:
        return "METHOD_ARGUMENTS", "takes no self"
    least = max(definition.positional - definition.optional - own, 0)
    most = definition.positional - own
    if least <= given and (given <= most or definition.star):
        return None
    takes = f"{least}" if least == most else f"{least} to {most}"
    noun = "argument" if takes == "1" else "arguments"
    return "METHOD_ARGUMENTS", f"takes {takes} {noun} beside self, and is called with {given}"


def _check_init(lineage: _Lineage) -> list[Finding]:
    """`__init__` is called without arguments, in the aggregator too, which has no data."""
    init = lineage.member("__init__")
    if init is None or init.method is None:
        return []
    findings: list[Finding] = []
    name = f"{lineage.owner}.__init__"
    if problem := _argument_problem(init.method, 1, 0):
        code, message = problem
        hint = "write def __init__(self): and give every other argument a default"
        findings.append(Finding(path=init.path, line=init.line, code=code, message=f"{name} {message}", hint=hint))
    line = _line_that_calls(lineage, init.method, "set_model_data")
    if line is not None:
        message = f"{name} calls set_model_data, and the aggregator has no data"
        hint = "remove the call: set_model_data is called in learners, before the first training"
        findings.append(Finding(path=init.path, line=line, code="SET_MODEL_DATA_IN_INIT", message=message, hint=hint))
    return findings


def _line_that_calls(lineage: _Lineage, init: MethodDefinition, method: str) -> int | None:
    """The line in `__init__` that calls a method, directly or through other methods of the class."""
    for name, line in init.calls:
        pending, visited = [name], set[str]()
        while pending:
            current = pending.pop()
            if current == method:
                return line
            if current not in visited:
                visited.add(current)
                member = lineage.member(current)
                pending += [called for called, _ in member.method.calls] if member and member.method else []
    return None
