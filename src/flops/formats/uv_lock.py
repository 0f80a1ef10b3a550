"""uv.lock: what is reached from the repository's own package, by the edges whose markers hold in an environment."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops.errors import NeedsBuild
from flops.formats import pyproject, toml_document
from flops.formats.lockfiles import (
    CLOSED,
    LIMIT,
    PACKAGES,
    LockedPackage,
    LockReader,
    holds,
    package_name,
    package_version,
)
from flops.formats.requirement import REMOVED, DependencyFile, DependencyFormat, Reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.formats.lockfiles import Environment
    from flops.platforms import Platform

FILE = "uv.lock"
#: Versions of one package, one for each fork of the resolution.
FORKS = 20
#: Kinds of `source` that are no index.
FOREIGN = {
    "git": "git",
    "url": "a URL",
    "path": "a path",
    "directory": "a path",
    "editable": "a path",
    "virtual": "a path",
}


@dataclass(frozen=True, kw_only=True)
class _Edge:
    name: str
    version: str
    """Empty where there is only one."""
    extras: tuple[str, ...]
    marker: str


@dataclass(frozen=True, kw_only=True)
class _Node:
    package: LockedPackage
    markers: tuple[str, ...]
    """Of the forks of the resolution that it is for; none for all."""
    edges: tuple[_Edge, ...]
    extras: Mapping[str, tuple[_Edge, ...]]
    groups: Mapping[str, tuple[_Edge, ...]]


def read_uv_lock(
    path: str,
    files: Mapping[str, bytes],
    groups: Sequence[str],
    platforms: Sequence[Platform],
    reading: Reading,
) -> bool | None:
    """Read the lock into `reading`; whether it is the whole for every platform; None where pyproject.toml has changed since.

    UsageError for a group that it does not have.
    """
    document = toml_document.read(path, files[path], reading, limit=LIMIT, closed=CLOSED)
    if document is None:
        return False
    if document.get(int, "version") != 1:
        reading.wrong(path, document.line("version"), "not a uv.lock of version 1", "lock anew")
        return False
    graph = _Graph(LockReader(document, reading))
    if graph.root is None:
        hint = "name the project's directory with --subdir, or write a requirements.txt"
        reading.wrong(path, 0, "the lock does not hold the repository's own package", hint)
        return False
    python, stale = _compare(graph, files.get(pyproject.FILE), groups, reading)
    if stale:
        message = f"{pyproject.FILE} has changed since this was locked, so the lock is not taken"
        reading.note(path, graph.root.package.line, "LOCK_STALE", message, "run uv lock, and commit what it writes")
        return None
    graph.start(groups)
    requires = python or document.text("requires-python")
    if reading.python is None:
        reading.ask_python(requires, path=path, line=document.line("requires-python"))
    return graph.reader.take(graph.select, platforms, requires_python=requires, environments=graph.environments)


def _compare(graph: _Graph, project: bytes | None, groups: Sequence[str], reading: Reading) -> tuple[str, bool]:
    """What pyproject.toml asks of Python, and whether it asks for other packages than the lock was made from."""
    if project is None or not pyproject.speaks(project, groups):
        return "", False
    reading.seen.add(pyproject.FILE)
    now = Reading()
    pyproject.read_pyproject(pyproject.FILE, project, groups, now)
    unknown = any(problem.code == NeedsBuild.code for problem in now.problems)
    reading.problems += [problem for problem in now.problems if problem.code != NeedsBuild.code]
    reading.notes |= {note: None for note in now.notes if note.code != "TOOL_IGNORED"}
    reading.python = now.python
    python = now.python.specifier if now.python else ""
    then = graph.asked(groups)
    if unknown or then is None:
        return python, False
    return python, _shape(then) != _shape(now)


def _shape(reading: Reading) -> set[tuple[str, tuple[str, ...], str]]:
    names = {(entry.name, entry.extras, entry.specifier) for entry in reading.entries}
    return names | {(change.package, (), change.before) for change in reading.adjustments if change.code == "REMOVED"}


def _listed(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key)
    return value if isinstance(value, list) else []


class _Graph:
    """The packages of a lock by name, and where to start."""

    def __init__(self, reader: LockReader) -> None:
        self.reader, self.document = reader, reader.document
        self.nodes: defaultdict[str, list[_Node]] = defaultdict(list)
        self.root: _Node | None = None
        self.number = 0
        self.started: tuple[_Edge, ...] = ()
        self.extras = [""]
        """Values of `extra` in markers: uv names the groups that conflict by it."""
        packages = self.document.items("package")
        if len(packages) > PACKAGES:
            hint = "lock what training needs alone"
            reader.reading.wrong(reader.path, 0, f"the lock has more than {PACKAGES} packages", hint)
        for number in range(len(packages[:PACKAGES])):
            self._read(number)
        if many := next((name for name, nodes in self.nodes.items() if len(nodes) > FORKS), None):
            reader.reading.wrong(reader.path, 0, f"the lock has more than {FORKS} versions of {many}", "lock anew")
        self.targets: dict[tuple[str, str, Environment], _Node | None] = {}
        names = ("supported-markers", "environments")
        self.environments = [
            reader.marker(text, self.document.line(name, place))
            for name in names
            for place, text in enumerate(self.document.items(name))
        ]

    def start(self, groups: Sequence[str]) -> None:
        """Begin at the project's dependencies and those of these groups; a tracker among them is left out, and told."""
        root = self.root
        if root is None:
            return
        edges = [*root.edges]
        for group in groups:
            name = package_name(group)
            found = root.groups.get(name, root.extras.get(name))
            if found is None:
                raise pyproject.unknown_group(self.reader.path, group, {*root.groups, *root.extras})
            kind = "group" if name in root.groups else "extra"
            self.extras.append(f"{kind}-{len(root.package.name)}-{root.package.name}-{name}")
            edges += found
        for edge in edges:
            if edge.name in REMOVED:
                node = self.nodes.get(edge.name, [root])[0]
                text = f"{edge.name}=={node.package.version}" if node is not root else edge.name
                self.reader.reading.add(text, path=self.reader.path, line=node.package.line)
        self.started = tuple(edge for edge in edges if edge.name not in REMOVED)

    def select(self, environment: Environment) -> Iterator[LockedPackage]:
        """Everything that is reached there."""
        waiting = [edge for edge in self.started if self._holds(edge.marker, environment)]
        done: set[tuple[str, str, str]] = set()
        while waiting:
            edge = waiting.pop()
            node = self._target(edge, environment)
            if node is None or node is self.root:
                continue
            for extra in ("", *edge.extras):
                key = (edge.name, node.package.version, extra)
                if key not in done:
                    done.add(key)
                    following = node.extras.get(extra, ()) if extra else node.edges
                    waiting += [one for one in following if self._holds(one.marker, environment)]
            yield node.package

    def asked(self, groups: Sequence[str]) -> Reading | None:
        """What pyproject.toml asked for when the lock was made; None where the lock does not say."""
        metadata = self.document.table("package", self.number).get("metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("requires-dist"), list):
            return None
        wanted = {package_name(group) for group in groups}
        own = self.root.package.name if self.root else ""
        developing = metadata.get("requires-dev")
        groups_then = developing.items() if isinstance(developing, dict) else ()
        named = {package_name(name): items for name, items in groups_then if isinstance(items, list)}
        listed = [item for item in metadata["requires-dist"] if isinstance(item, dict)]
        for item in [item for item in listed if item.get("name") == own and self._of_extra(item, wanted)]:
            wanted |= set(map(package_name, _listed(item, "extras")))  # an extra made of other extras
        items = [item for item in listed if self._of_extra(item, wanted - set(named))]
        for group in wanted & set(named):
            items += named[group]
        then = Reading()
        for item in items:
            if isinstance(item, dict) and item.get("name") != own:
                extras = _listed(item, "extras")
                shown = f"[{','.join(map(str, extras))}]" if extras else ""
                then.add(f"{item.get('name')}{shown}{item.get('specifier', '')}", path=self.reader.path, line=0)
        return then if not then.problems else None

    def _of_extra(self, item: Mapping[str, Any], wanted: set[str]) -> bool:
        marker = str(item.get("marker", ""))
        return "extra ==" not in marker or any(f"extra == '{name}'" in marker for name in wanted)

    def _holds(self, marker: str, environment: Environment) -> bool:
        return any(holds(marker, environment, extra=extra) for extra in self.extras)

    def _target(self, edge: _Edge, environment: Environment) -> _Node | None:
        """What an edge leads to, looked for once."""
        key = (edge.name, edge.version, environment)
        if key not in self.targets:
            self.targets[key] = self._look(edge, environment)
        return self.targets[key]

    def _look(self, edge: _Edge, environment: Environment) -> _Node | None:
        nodes = [node for node in self.nodes.get(edge.name, ()) if edge.version in ("", node.package.version)]
        fitting = [
            node
            for node in nodes
            if len(nodes) == 1 or not node.markers or any(self._holds(marker, environment) for marker in node.markers)
        ]
        if not fitting:
            self.reader.reading.wrong(self.reader.path, 0, f"the lock lacks {edge.name}", "lock anew")
            return None
        return fitting[0]

    def _read(self, number: int) -> None:
        document, reader = self.document, self.reader
        table = document.table("package", number)
        line = document.line("package", number)
        name, version = package_name(table.get("name")), package_version(table.get("version"))
        source = document.table("package", number, "source")
        own = source.get("virtual", source.get("editable")) == "."
        foreign = next((what for kind, what in FOREIGN.items() if kind in source), "")
        registry = source.get("registry")
        if isinstance(registry, str) and not registry.startswith(("http://", "https://")):
            foreign = "a path"
        elif registry is not None:
            reader.from_index(registry, document.line("package", number, "source"))
        if not name or not (version or foreign):
            reader.reading.wrong(reader.path, line, "a package has no name or no version", "lock anew")
        node = _Node(
            package=LockedPackage(
                name=name,
                version=version,
                line=line,
                files=() if foreign else reader.wheels(table.get("wheels"), line),
                foreign=foreign,
            ),
            markers=tuple(
                reader.marker(text, document.line("package", number, "resolution-markers"))
                for text in document.items("package", number, "resolution-markers")
            ),
            edges=self._edges("package", number, "dependencies"),
            extras=self._named(number, "optional-dependencies"),
            groups=self._named(number, "dev-dependencies"),
        )
        self.nodes[name].append(node)
        if own:
            self.root, self.number = node, number

    def _named(self, number: int, kind: str) -> dict[str, tuple[_Edge, ...]]:
        table = self.document.table("package", number, kind)
        return {package_name(name): self._edges("package", number, kind, name) for name in table}

    def _edges(self, *keys: str | int) -> tuple[_Edge, ...]:
        edges = []
        for number, item in enumerate(self.document.items(*keys)):
            line = self.document.line(*keys, number)
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                self.reader.reading.wrong(self.reader.path, line, "a dependency has no name", "lock anew")
                continue
            told = item.get("extra") or []
            extras = tuple(map(package_name, told if isinstance(told, list) else [told]))
            marker = self.reader.marker(item.get("marker"), line)
            self.reader.use(line, 1 + len(extras))
            edges.append(
                _Edge(
                    name=package_name(item["name"]), version=str(item.get("version", "")), extras=extras, marker=marker
                )
            )
        return tuple(edges)


def _read(file: DependencyFile, reading: Reading) -> bool | str:
    complete = read_uv_lock(file.path, file.files, file.groups, file.platforms, reading)
    return pyproject.FILE if complete is None else complete


FORMAT = DependencyFormat(names=(FILE,), read=_read, has_groups=True)
