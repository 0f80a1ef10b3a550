"""Parses Python files and writes what they define; a program of its own, so that no file can end the builder.

Run as `python -I syntax_child.py ROOT` with one path (JSON) a line on its input; writes one JSON object a line, in order, each
as soon as it is known; its keys are fields in `modules`. A file that ends this process (memory, recursion, time) is the one
after the last line written. Standard library only; nothing of the files is executed.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from pathlib import Path
from typing import Any

#: Imports, classes and names that are kept of one file, methods of one class, calls of one method.
ITEMS = 5000
GUARDS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


def summary(data: bytes) -> dict[str, Any]:
    """What one module imports and defines, or its `error`: [code, line, message]."""
    try:
        tree = ast.parse(data)
    except SyntaxError as error:
        return {"error": ["SYNTAX", error.lineno or 0, (error.msg or "invalid syntax")[:200]]}
    except ValueError as error:
        return {"error": ["SYNTAX", 0, str(error)[:200]]}
    except (MemoryError, RecursionError):
        return {"error": ["TOO_COMPLEX", 0, "nested too deeply to be parsed"]}
    return {
        "imports": _imports(tree)[:ITEMS],
        "classes": [_class(node) for node in _statements(tree.body) if isinstance(node, ast.ClassDef)][:ITEMS],
        "names": _names(tree)[:ITEMS],
        "load_dataset": _load_dataset_attributes(tree)[:ITEMS],
    }


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a body, also those under `if`, `try` and `with`."""
    found: list[ast.stmt] = []
    pending = list(reversed(body))
    while pending:
        node = pending.pop()
        found.append(node)
        for name in ("finalbody", "orelse", "handlers", "body"):
            if isinstance(node, ast.If | ast.Try | ast.TryStar | ast.With | ast.ExceptHandler):
                pending.extend(reversed(getattr(node, name, [])))
    return found


def _imports(tree: ast.Module) -> list[list[Any]]:
    """[module, names as [name, alias], level, line, guarded], anywhere in the file."""
    found: list[list[Any]] = []
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, guarded = pending.pop()
        if isinstance(node, ast.Import):
            found += [[item.name, [["", item.asname]], 0, node.lineno, guarded] for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [[item.name, item.asname] for item in node.names]
            found.append([node.module or "", names, node.level, node.lineno, guarded])
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            pending += [(child, True) for child in node.body] + [(child, guarded) for child in node.orelse]
        elif isinstance(node, ast.Try) and any(map(_catches_import_error, node.handlers)):
            pending += [(child, True) for child in node.body]
            pending += [(child, guarded) for part in (node.handlers, node.orelse, node.finalbody) for child in part]
        else:
            pending += [(child, guarded) for child in ast.iter_child_nodes(node)]
    return sorted(found, key=lambda item: item[3])


def _is_type_checking(test: ast.expr) -> bool:
    return _dotted(test).rpartition(".")[2] == "TYPE_CHECKING"


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or _dotted(kind).rpartition(".")[2] in GUARDS for kind in kinds)


def _names(tree: ast.Module) -> list[list[Any]]:
    """[name, line, value] of names that a module's own statements bind; the value is a dotted name, or "" for anything else."""
    found: list[list[Any]] = []
    for node in _statements(tree.body):
        if isinstance(node, ast.Assign):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            found += [[name, node.lineno, _dotted(node.value)] for name in targets]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found.append([node.target.id, node.lineno, _dotted(node.value)])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append([node.name, node.lineno, ""])
    return found


def _class(node: ast.ClassDef) -> dict[str, Any]:
    methods = [item for item in _statements(node.body) if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
    assigned = [
        [target.id, item.lineno]
        for item in _statements(node.body)
        if isinstance(item, ast.Assign)
        for target in item.targets
        if isinstance(target, ast.Name)
    ]
    return {
        "name": node.name,
        "line": node.lineno,
        "bases": [_dotted(base) for base in node.bases],
        "methods": [_method(item) for item in methods][:ITEMS],
        "assigned": assigned[:ITEMS],
    }


def _method(node: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, Any]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    return {
        "name": node.name,
        "line": node.lineno,
        "coroutine": isinstance(node, ast.AsyncFunctionDef),
        "decorators": [_dotted(item) for item in node.decorator_list],
        "positional": len(positional),
        "optional": len(arguments.defaults),
        "star": arguments.vararg is not None,
        "keywords": sum(default is None for default in arguments.kw_defaults),
        "calls": _own_calls(node, positional[0].arg if positional else ""),
    }


def _own_calls(node: ast.AST, first_argument: str) -> list[list[Any]]:
    """[method, line] of the calls `self.method(...)` in a method, in the order of its lines."""
    calls: list[list[Any]] = [
        [child.func.attr, child.lineno]
        for child in ast.walk(node)
        if isinstance(child, ast.Call)
        and isinstance(child.func, ast.Attribute)
        and isinstance(child.func.value, ast.Name)
        and child.func.value.id == first_argument
    ]
    return sorted(calls, key=lambda call: call[1])[:ITEMS]


def _load_dataset_attributes(tree: ast.Module) -> list[list[Any]]:
    """[dotted name, line] of attributes called `load_dataset`."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "load_dataset"]
    return [[_dotted(node), node.lineno] for node in found]


def _dotted(node: ast.AST | None) -> str:
    """`a.b.c`, also of `a.b.c[...]`; empty for any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def main() -> None:
    """Write an object for every line of the input."""
    warnings.simplefilter("ignore")
    root = Path(sys.argv[1])
    for line in sys.stdin:
        answer = summary((root / json.loads(line)).read_bytes())
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
