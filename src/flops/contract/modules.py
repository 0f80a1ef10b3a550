"""The Python modules of an ML repository as their syntax trees tell: parsed in bounded child processes, nothing executed.

What a file defines comes back as values; names are followed through the repository's own imports.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
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
#: Bytes of source for one child; what it answers stays well below what `process.run` keeps.
BATCH = 512 * 1024
#: Bytes of source in all; more is not a repository's own code.
TOTAL = 32 * 1024**2
#: Children that may end before they are done: each such end costs time.
FAILURES = 5


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
class Method:
    name: str
    line: int
    coroutine: bool
    decorators: tuple[str, ...]
    """Dotted names; empty where one is an expression."""
    positional: int
    """With `self`."""
    optional: int
    star: bool
    keywords: int
    """Keyword-only arguments without a default."""
    calls: tuple[tuple[str, int], ...]
    """(method, line) of calls on `self`."""


@dataclass(frozen=True, kw_only=True)
class Class:
    name: str
    line: int
    bases: tuple[str, ...]
    methods: tuple[Method, ...]
    bound: tuple[tuple[str, int], ...]
    """(name, line) of assignments in its body."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """One parsed file, or why it could not be parsed."""

    path: str
    error: tuple[str, int, str] | None = None
    """(SYNTAX or TOO_COMPLEX, line, message)."""
    imports: tuple[Import, ...] = ()
    classes: tuple[Class, ...] = ()
    names: tuple[tuple[str, int, str], ...] = ()
    """(name, line, dotted name that it is bound to, or empty) of assignments and functions."""
    load_dataset: tuple[tuple[str, int], ...] = ()
    """(dotted name, line) of what ends in `.load_dataset`."""

    @classmethod
    def from_json(cls, path: str, data: Mapping[str, Any]) -> Module:
        if "error" in data:
            code, line, message = data["error"]
            return cls(path=path, error=(code, line, message))
        return cls(
            path=path,
            imports=tuple(
                Import(module=module, names=tuple((n, a) for n, a in names), level=level, line=line, guarded=guarded)
                for module, names, level, line, guarded in data["imports"]
            ),
            classes=tuple(_class(item) for item in data["classes"]),
            names=tuple((name, line, what) for name, line, what in data["names"]),
            load_dataset=tuple((name, line) for name, line in data["attributes"]),
        )


def _class(data: Mapping[str, Any]) -> Class:
    return Class(
        name=data["name"],
        line=data["line"],
        bases=tuple(data["bases"]),
        methods=tuple(
            Method(
                name=item["name"],
                line=item["line"],
                coroutine=item["async"],
                decorators=tuple(item["decorators"]),
                positional=item["positional"],
                optional=item["optional"],
                star=item["star"],
                keywords=item["keywords"],
                calls=tuple((name, line) for name, line in item["calls"]),
            )
            for item in data["methods"]
        ),
        bound=tuple((name, line) for name, line in data["bound"]),
    )


@dataclass(frozen=True, kw_only=True)
class Definition:
    """Where a name leads: a class of the repository, or outside of it (`cls` is None)."""

    path: str
    line: int
    dotted: str
    cls: Class | None = None


@dataclass(frozen=True, kw_only=True)
class Modules:
    """All modules of a repository, and the way from one to another."""

    files: Mapping[str, Module]
    """By path."""
    skipped: tuple[str, ...] = field(default=())
    """Paths that were not parsed because there is too much."""

    @cached_property
    def by_name(self) -> dict[str, str]:
        """Dotted name to path, as importable from the repository's root."""
        return {_dotted(path): path for path in sorted(self.files, reverse=True)}

    @cached_property
    def tops(self) -> frozenset[str]:
        """First parts of the names: what the repository itself provides."""
        return frozenset(name.partition(".")[0] for name in self.by_name)

    def absolute(self, path: str, item: Import) -> str:
        """The module that an import names, also a relative one."""
        if item.level == 0:
            return item.module
        package = path.removesuffix(".py").split("/")[: -item.level]
        return ".".join(filter(None, [*package, item.module]))

    def neighbours(self, path: str) -> Iterator[str]:
        """The repository's modules that this one imports, packages on the way included."""
        for item in self.files[path].imports:
            target = self.absolute(path, item)
            dotted = [target, *(f"{target}.{name}" for name, _ in item.names if name)]
            for name in dotted:
                parts = name.split(".")
                for length in range(1, len(parts) + 1):
                    if found := self.by_name.get(".".join(parts[:length])):
                        yield found

    def reached(self, roots: Iterable[str]) -> frozenset[str]:
        """The paths that importing `roots` may import in turn."""
        pending = [path for path in roots if path in self.files]
        seen = set(pending)
        while pending:
            for path in self.neighbours(pending.pop()):
                if path not in seen:
                    seen.add(path)
                    pending.append(path)
        return frozenset(seen)

    def find(self, path: str, name: str, *, depth: int = 8) -> Definition | None:
        """Follow a dotted name from a module to a class of the repository or out of it; None where nothing binds it."""
        module = self.files.get(path)
        if module is None or depth == 0:
            return None
        first, _, rest = name.partition(".")
        if not rest and (found := [item for item in module.classes if item.name == name]):
            return Definition(path=path, line=found[-1].line, dotted=name, cls=found[-1])
        for item in reversed(module.imports):
            target = self.absolute(path, item)
            for imported, alias in item.names:
                if imported == "*":
                    continue
                if (alias or imported or item.module.partition(".")[0]) != first:
                    continue
                whole = target if (alias or imported) else item.module.partition(".")[0]
                dotted = ".".join(filter(None, [whole, imported, rest]))
                return self._out_of(dotted, item.line, path, depth)
        for bound, line, what in reversed(module.names):
            if bound == first:
                dotted = ".".join(filter(None, [what, rest]))
                if what and what != first:
                    return self.find(path, dotted, depth=depth - 1)
                return Definition(path=path, line=line, dotted=dotted)
        return self._through_stars(path, module, name, depth)

    def _out_of(self, dotted: str, line: int, path: str, depth: int) -> Definition | None:
        """The longest part of a dotted name that is a module of the repository, and the rest looked up in it."""
        parts = dotted.split(".")
        for length in range(len(parts) - 1, 0, -1):
            if target := self.by_name.get(".".join(parts[:length])):
                if self.files[target].error is not None:
                    break
                return self.find(target, ".".join(parts[length:]), depth=depth - 1)
        return Definition(path=path, line=line, dotted=dotted)

    def _through_stars(self, path: str, module: Module, name: str, depth: int) -> Definition | None:
        outside: Definition | None = None
        for item in reversed(module.imports):
            if any(imported == "*" for imported, _ in item.names):
                target = self.absolute(path, item)
                if (ours := self.by_name.get(target)) is None:
                    outside = outside or Definition(path=path, line=item.line, dotted=f"{target}.{name}")
                elif found := self.find(ours, name, depth=depth - 1):
                    return found
        return outside


def parse(root: Path, files: Sequence[RepositoryFile], *, first: Sequence[str] = ()) -> Modules:
    """Parse the Python files among `files`, those in `first` before all others."""
    chosen = sorted(
        (file for file in files if file.path.endswith(".py") and file.link is None),
        key=lambda file: (file.path not in first, file.path.count("/"), file.path),
    )
    known: dict[str, Module] = {}
    skipped: list[str] = []
    total, failures = 0, 0
    batch: list[RepositoryFile] = []
    for file in [*chosen, None]:
        if file is not None and (total := total + file.size) > TOTAL:
            skipped.append(file.path)
            continue
        if batch and (file is None or sum(item.size for item in batch) + file.size > BATCH):
            failures = _parse_batch(root, [item.path for item in batch], known, failures)
            batch = []
        if file is not None:
            batch.append(file)
    skipped += [file.path for file in chosen if file.path not in known and file.path not in skipped]
    return Modules(files=known, skipped=tuple(skipped))


def _parse_batch(root: Path, paths: list[str], known: dict[str, Module], failures: int) -> int:
    """Parse some files; one that ends the child is named, and the next child goes on behind it."""
    while paths and failures < FAILURES:
        answers = _ask(root, paths)
        known.update({path: Module.from_json(path, data) for path, data in zip(paths, answers, strict=False)})
        paths = paths[len(answers) :]
        if paths:
            message = "parsing takes more memory or time than any module needs"
            known[paths[0]] = Module(path=paths[0], error=("TOO_COMPLEX", 0, message))
            paths = paths[1:]
            failures += 1
    return failures


def _ask(root: Path, paths: list[str]) -> list[Mapping[str, Any]]:
    command: list[str | Path] = [sys.executable, "-I", "-S", syntax_child.__file__, root]
    lines = "".join(json.dumps(path) + "\n" for path in paths)
    done = programs.run(
        limited(command, memory=MEMORY, processor_seconds=PROCESSOR_SECONDS),
        seconds=PROCESSOR_SECONDS * 10,
        stdin=lines,
        check=False,
    )
    if done.code > 0 and "MemoryError" not in done.stderr:
        raise InternalError(f"the parser of Python files ended with {done.code}: {done.stderr.strip()[-300:]}")
    answers: list[Mapping[str, Any]] = []
    for line in done.stdout.splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        answers.append(json.loads(line))
    return answers


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
