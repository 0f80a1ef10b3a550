"""The Python modules of an ML repository, from their syntax trees: parsed in bounded child processes, nothing is executed.

What a file defines becomes values; names are followed through the repository's own imports.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flops import programs
from flops.contract import syntax_child
from flops.errors import InternalError
from flops.sandbox import limited

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from flops.repository.tree_writer import RepositoryFile

MEMORY = 1024**3
PROCESSOR_SECONDS = 20
#: Bytes of source for one child; its output stays well below what `programs.run` keeps.
BATCH = 512 * 1024
#: Bytes of source in all; more is not a repository's own code.
TOTAL = 32 * 1024**2
#: Children that may end before they are done: each such end costs time.
FAILURES = 5
#: Imports that are followed from one name.
DEPTH = 8


@dataclass(frozen=True, kw_only=True)
class Import:
    module: str
    """Dotted; with `level` 0 absolute."""
    names: tuple[tuple[str, str | None], ...]
    """(name, alias) of `from module import ...`; one with an empty name for `import module`."""
    level: int
    line: int
    guarded: bool
    """Under `try` with `except ImportError`, or under `if TYPE_CHECKING`."""


@dataclass(frozen=True, kw_only=True)
class MethodDefinition:
    name: str
    line: int
    coroutine: bool
    decorators: tuple[str, ...]
    """Dotted names; empty where one is an expression."""
    positional: int
    """Positional arguments, `self` among them."""
    optional: int
    star: bool
    keywords: int
    """Keyword-only arguments without a default."""
    calls: tuple[tuple[str, int], ...]
    """(method, line) of calls on `self`."""


@dataclass(frozen=True, kw_only=True)
class ClassDefinition:
    name: str
    line: int
    bases: tuple[str, ...]
    """Dotted names; empty where one is an expression."""
    methods: tuple[MethodDefinition, ...]
    assigned: tuple[tuple[str, int], ...]
    """(name, line) of assignments in its body."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """One parsed file, or why it could not be parsed."""

    path: str
    error: tuple[str, int, str] | None = None
    """(SYNTAX or TOO_COMPLEX, line, message)."""
    imports: tuple[Import, ...] = ()
    classes: tuple[ClassDefinition, ...] = ()
    names: tuple[tuple[str, int, str], ...] = ()
    """(name, line, dotted name that it is bound to, or empty) of assignments and functions."""
    load_dataset: tuple[tuple[str, int], ...] = ()
    """(dotted name, line) of attributes called `load_dataset`."""

    @classmethod
    def from_json(cls, path: str, data: Mapping[str, Any]) -> Module:
        """One answer of the child process."""
        found = _frozen(data)
        if "error" in found:
            return cls(path=path, error=found["error"])
        return cls(
            path=path,
            imports=tuple(
                Import(module=module, names=names, level=level, line=line, guarded=guarded)
                for module, names, level, line, guarded in found["imports"]
            ),
            classes=tuple(
                ClassDefinition(**{**item, "methods": tuple(MethodDefinition(**method) for method in item["methods"])})
                for item in found["classes"]
            ),
            names=found["names"],
            load_dataset=found["load_dataset"],
        )


def _frozen(value: Any) -> Any:
    """JSON with tuples for lists."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a name stands for: a class of the repository, or something else (`cls` is None)."""

    path: str
    line: int
    dotted: str
    cls: ClassDefinition | None = None


@dataclass(frozen=True, kw_only=True)
class Modules:
    """All modules of a repository, and their imports of each other."""

    files: Mapping[str, Module]
    """By path."""
    skipped: tuple[str, ...] = ()
    """Paths that were not parsed because there is too much code."""

    @cached_property
    def by_name(self) -> dict[str, str]:
        """Dotted name to path, as importable from the repository's root."""
        return {_dotted(path): path for path in sorted(self.files, reverse=True)}

    def absolute(self, path: str, item: Import) -> str:
        """The dotted name of an imported module, also for a relative import."""
        if item.level == 0:
            return item.module
        package = path.removesuffix(".py").split("/")[: -item.level]
        return ".".join(filter(None, [*package, item.module]))

    def reached(self, roots: Iterable[str]) -> frozenset[str]:
        """The paths of all modules that importing `roots` may import in turn."""
        pending = [path for path in roots if path in self.files]
        reached = set(pending)
        while pending:
            new = set(self._imported_by(pending.pop())) - reached
            reached |= new
            pending += new
        return frozenset(reached)

    def _imported_by(self, path: str) -> Iterator[str]:
        """The paths of the repository's modules that this one imports, with the packages that contain them."""
        for item in self.files[path].imports:
            target = self.absolute(path, item)
            for dotted in (target, *(f"{target}.{name}" for name, _ in item.names if name)):
                yield from (found for parent in parents(dotted) if (found := self.by_name.get(parent)))

    def find(self, path: str, name: str, *, depth: int = DEPTH) -> Definition | None:
        """Follow a dotted name from a module to what it stands for; None where nothing binds it."""
        module = self.files.get(path)
        if module is None or depth == 0:
            return None
        first, _, rest = name.partition(".")
        if not rest and (classes := [item for item in module.classes if item.name == name]):
            return Definition(path=path, line=classes[-1].line, dotted=name, cls=classes[-1])
        for item in reversed(module.imports):
            target, top = self.absolute(path, item), item.module.partition(".")[0]
            for imported, alias in item.names:
                if imported != "*" and (alias or imported or top) == first:
                    dotted = ".".join(filter(None, [target if alias or imported else top, imported, rest]))
                    return self._find_imported(dotted, item.line, path, depth)
        for bound, line, value in reversed(module.names):
            if bound == first:
                dotted = ".".join(filter(None, [value, rest]))
                if value and value != first:
                    return self.find(path, dotted, depth=depth - 1)
                return Definition(path=path, line=line, dotted=dotted)
        return self._find_in_star_imports(path, module, name, depth)

    def _find_imported(self, dotted: str, line: int, path: str, depth: int) -> Definition | None:
        """Look in the repository's module with the longest matching name; the name is foreign where there is none."""
        for parent in list(parents(dotted))[-2::-1]:
            if target := self.by_name.get(parent):
                if self.files[target].error is not None:
                    break
                return self.find(target, dotted.removeprefix(f"{parent}."), depth=depth - 1)
        return Definition(path=path, line=line, dotted=dotted)

    def _find_in_star_imports(self, path: str, module: Module, name: str, depth: int) -> Definition | None:
        outside: Definition | None = None
        for item in reversed(module.imports):
            if any(imported == "*" for imported, _ in item.names):
                target = self.absolute(path, item)
                if (own := self.by_name.get(target)) is None:
                    outside = outside or Definition(path=path, line=item.line, dotted=f"{target}.{name}")
                elif found := self.find(own, name, depth=depth - 1):
                    return found
        return outside


def parents(dotted: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = dotted.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def parse(root: Path, files: Sequence[RepositoryFile], *, first: Sequence[str] = ()) -> Modules:
    """Parse the Python files among `files`, those in `first` before all others."""
    chosen = sorted(
        (file for file in files if file.path.endswith(".py") and file.link is None),
        key=lambda file: (file.path not in first, file.path.count("/"), file.path),
    )
    batches: list[list[str]] = [[]]
    total = size = 0
    for file in chosen:
        if (total := total + file.size) > TOTAL:
            continue
        if batches[-1] and size + file.size > BATCH:
            batches.append([])
            size = 0
        batches[-1].append(file.path)
        size += file.size
    known: dict[str, Module] = {}
    failures = 0
    for batch in batches:
        failures = _parse_batch(root, batch, known, failures)
    return Modules(files=known, skipped=tuple(file.path for file in chosen if file.path not in known))


def _parse_batch(root: Path, paths: list[str], known: dict[str, Module], failures: int) -> int:
    """Parse some files; one that ends the child is named, and the next child continues after it."""
    while paths and failures < FAILURES:
        answers = _run_child(root, paths)
        known.update({path: Module.from_json(path, data) for path, data in zip(paths, answers, strict=False)})
        paths = paths[len(answers) :]
        if paths:
            message = "parsing takes more memory or time than any module needs"
            known[paths[0]] = Module(path=paths[0], error=("TOO_COMPLEX", 0, message))
            paths = paths[1:]
            failures += 1
    return failures


def _run_child(root: Path, paths: list[str]) -> list[Mapping[str, Any]]:
    """The answers of one child, as many as it wrote as whole lines."""
    command: list[str | Path] = [sys.executable, "-I", "-S", syntax_child.__file__, root]
    done = programs.run(
        limited(command, memory=MEMORY, processor_seconds=PROCESSOR_SECONDS),
        seconds=PROCESSOR_SECONDS * 10,
        stdin="".join(json.dumps(path) + "\n" for path in paths),
        check=False,
    )
    if done.code > 0 and "MemoryError" not in done.stderr:
        raise InternalError(f"the parser of Python files ended with {done.code}: {done.stderr.strip()[-300:]}")
    return [json.loads(line) for line in done.stdout.splitlines(keepends=True) if line.endswith("\n")]


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
