"""pyproject.toml: PEP 621's dependencies, and the groups of it (PEP 621's optional ones, PEP 735's) that are asked for.

Nothing of the project is built, so dependencies that only its build backend knows are NEEDS_BUILD. Tables of tools that
change what is installed are left out, each with a note: TOOL_IGNORED; groups that are not asked for: GROUP_NOT_TAKEN.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Pep508
from packaging.utils import canonicalize_name

from flops.errors import UsageError
from flops.formats import toml_document
from flops.formats.requirement import DEPTH, FILE_LIMIT, TEXT_LIMIT, DependencyFormat, depth

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from packaging.utils import NormalizedName

    from flops.formats.requirement import Reading
    from flops.formats.toml_document import Path, TomlDocument

FILE = "pyproject.toml"
HINT_GROUP = "--group NAME takes one"
#: Where tools keep what would change what is installed, and what is to be done about it.
TOOLS: Mapping[Path, str] = {
    ("tool", "uv", "index"): "the operator of the builder chooses its index: FLOPS_INDEX_URL, FLOPS_TORCH_INDEX",
    ("tool", "uv", "index-url"): "the operator of the builder chooses its index: FLOPS_INDEX_URL",
    ("tool", "uv", "extra-index-url"): "the operator of the builder chooses its index: FLOPS_INDEX_URL",
    ("tool", "uv", "find-links"): "packages come from the package index alone",
    ("tool", "uv", "sources"): "packages come from the package index alone",
    ("tool", "uv", "pip"): "write what must hold into [project] dependencies",
    ("tool", "uv", "constraint-dependencies"): "write the bounds into [project] dependencies",
    ("tool", "uv", "override-dependencies"): "write the versions into [project] dependencies, or keep a uv.lock",
    ("tool", "uv", "exclude-dependencies"): "keep a uv.lock",
    ("tool", "poetry", "dependencies"): "write them into [project] dependencies (PEP 621)",
    ("tool", "poetry", "source"): "the operator of the builder chooses its index: FLOPS_INDEX_URL",
    ("tool", "pdm", "source"): "the operator of the builder chooses its index: FLOPS_INDEX_URL",
    ("tool", "pdm", "resolution"): "write the versions into [project] dependencies",
    ("tool", "pixi", "dependencies"): "write them into [project] dependencies (PEP 621)",
    ("tool", "pixi", "pypi-dependencies"): "write them into [project] dependencies (PEP 621)",
}
#: Lists of one file that are taken together.
GROUPS = 100
SHOWN = re.compile(r"[\w.-]{1,40}")
POETRY = ("tool", "poetry", "dependencies")


def speaks(data: bytes, groups: Sequence[str] = ()) -> bool:
    """Whether this file says anything about dependencies; one that holds settings of tools alone does not."""
    try:
        root = toml_document.loads(data[: FILE_LIMIT + 1].decode("utf-8-sig"))
    except ValueError:
        return True  # then it is told what is wrong with it
    poetry = root.get("tool", {})
    for key in POETRY[1:]:
        poetry = poetry.get(key, {}) if isinstance(poetry, dict) else {}
    return "project" in root or bool(poetry) or (bool(groups) and "dependency-groups" in root)


def read_pyproject(path: str, data: bytes, groups: Sequence[str], reading: Reading) -> None:
    """Read the project's dependencies and these groups into `reading`. UsageError for a group that it does not have."""
    document = toml_document.read(path, data, reading)
    if document is None:
        return
    table = document.table("project")
    if not table and document.table(*POETRY):
        message = "dependencies in Poetry's own form are not read"
        hint = "write them into [project] dependencies (PEP 621), or export them to a requirements.txt"
        reading.wrong(path, document.line(*POETRY), message, hint)
        return
    project = _Project(document, reading)
    python = document.text("project", "requires-python")
    if python:
        reading.ask_python(python, path=path, line=document.line("project", "requires-python"))
    if "dependencies" in document.items("project", "dynamic"):
        reading.unbuilt(
            path, document.line("project", "dynamic"), "the dependencies are known to the build backend alone"
        )
    project.take(("project", "dependencies"))
    for name in groups:
        project.take_group(name)
    project.note_the_rest(groups)
    note_tools(document, reading)


def note_tools(document: TomlDocument, reading: Reading) -> None:
    """One note for each table of a tool that has no effect here."""
    for keys, hint in TOOLS.items():
        if document.lines.get(keys) is None:
            continue
        name = ".".join(map(str, keys))
        reading.note(document.path, document.lines[keys], "TOOL_IGNORED", f"{name} has no effect here", hint)


def unknown_group(path: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a `--group` that a file does not have."""
    names = ", ".join(one for one in sorted(known) if SHOWN.fullmatch(one)) or "none: leave --group out"
    return UsageError(f"{path} has no group {name!r:.60}", hint=f"it has {names}")


class _Project:
    """A document's lists of requirements; each group is taken once."""

    def __init__(self, document: TomlDocument, reading: Reading) -> None:
        self.document, self.reading = document, reading
        self.name = canonicalize_name(document.text("project", "name"))
        self.extras = {canonicalize_name(name): name for name in document.table("project", "optional-dependencies")}
        self.groups = {canonicalize_name(name): name for name in document.table("dependency-groups")}
        self.taken: set[Path] = set()

    def take_group(self, name: str) -> None:
        """Of PEP 735 by this name, else of PEP 621's optional dependencies."""
        normal = canonicalize_name(name)
        if normal in self.groups:
            self.take(("dependency-groups", self.groups[normal]))
        elif normal in self.extras:
            self.take(("project", "optional-dependencies", self.extras[normal]))
        else:
            raise unknown_group(self.document.path, name, {*self.groups, *self.extras})

    def take(self, keys: Path) -> None:
        """One list: requirements, and `include-group` in PEP 735's."""
        if keys in self.taken:
            return
        self.taken.add(keys)
        if len(self.taken) > GROUPS:  # they may each include the next
            message = f"more than {GROUPS} groups are taken"
            self.reading.wrong(self.document.path, self.document.line(*keys), message, "write them as one")
            return
        for number, item in enumerate(self.document.items(*keys)):
            line = self.document.line(*keys, number)
            if isinstance(item, str):
                self._requirement(item, line)
            elif isinstance(item, dict) and keys[0] == "dependency-groups":
                self._include(item, line)
            else:
                self.reading.wrong(self.document.path, line, "this is not a requirement", 'write "NAME==VERSION"')

    def note_the_rest(self, asked: Sequence[str]) -> None:
        """One note with the groups that stand there and are not asked for."""
        tables: tuple[tuple[Path, Mapping[NormalizedName, str]], ...] = (
            (("project", "optional-dependencies"), self.extras),
            (("dependency-groups",), self.groups),
        )
        wanted = {canonicalize_name(name) for name in asked}
        for table, names in tables:
            left = [name for normal, name in names.items() if normal not in wanted and (*table, name) not in self.taken]
            if left:
                shown = ", ".join(name for name in left if SHOWN.fullmatch(name))
                message = f"not asked for, so not taken: {shown}"
                self.reading.note(
                    self.document.path, self.document.line(*table), "GROUP_NOT_TAKEN", message, HINT_GROUP
                )

    def _requirement(self, text: str, line: int) -> None:
        """One line of PEP 508; the project's own extras stand for what they list."""
        try:
            parsed = Pep508(text) if len(text) <= TEXT_LIMIT and depth(text) <= DEPTH else None
        except (InvalidRequirement, RecursionError):
            parsed = None
        if parsed is None or not self.name or canonicalize_name(parsed.name) != self.name:
            self.reading.add(text, path=self.document.path, line=line)
            return
        for extra in sorted(parsed.extras):
            name = self.extras.get(canonicalize_name(extra))
            if name is None:
                message = "the project has no such extra"
                self.reading.wrong(self.document.path, line, message, "see [project.optional-dependencies]")
            else:
                self.take(("project", "optional-dependencies", name))

    def _include(self, item: Mapping[str, object], line: int) -> None:
        name = item.get("include-group")
        if list(item) != ["include-group"] or not isinstance(name, str):
            message = "only requirements and {include-group = NAME} stand in a group"
            self.reading.wrong(self.document.path, line, message, 'write {include-group = "NAME"} (PEP 735)')
            return
        known = self.groups.get(canonicalize_name(name))
        if known is None:
            message = "the group that is included does not exist"
            self.reading.wrong(self.document.path, line, message, "see [dependency-groups]")
        else:
            self.take(("dependency-groups", known))


FORMAT = DependencyFormat(
    names=(FILE,),
    read=lambda file, reading: read_pyproject(file.path, file.data, file.groups, reading),
    lists_dependencies=lambda file: speaks(file.data, file.groups),
    has_groups=True,
)
