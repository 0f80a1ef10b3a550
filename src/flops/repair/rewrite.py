"""Repairs written into the repository's own files: the smallest edit, which keeps comments, order, spelling and line ends.

Adjustments that other users of the file do not need are left out (conda's names, packages that images bring).
Bytes in, bytes out; nothing is read or written here.
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
import tomllib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import yaml
from packaging.utils import canonicalize_name

from flops.formats import toml_document, yaml_document
from flops.repair.line_edit import CORRECTED, SPELLED, TAKEN_OUT, edit_line, split_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.errors import Adjustment
    from flops.formats.toml_document import ListPlace, Path

#: Codes of the repairs that are written, in the order in which those of one line are.
CODES = (SPELLED, CORRECTED, "PIN_RELAXED", "UNPINNED", "PYTHON_MOVED", TAKEN_OUT, "ADDED")
WRITABLE = re.compile(r"(\.(ya?ml|txt|in|pip|reqs?)|(^|/)pyproject\.toml)$")
YAML = (".yaml", ".yml")
BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
#: Keys of [project] after which a new list of dependencies is put, after the last one that is there.
BEFORE = ("name", "version", "requires-python")
INDENT = "    "


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Files with repairs in them."""

    files: Mapping[str, bytes]
    """Those that changed, by path."""
    left: tuple[Adjustment, ...]
    """Repairs that could not be written into a file."""


def edit(
    files: Mapping[str, bytes], adjustments: Sequence[Adjustment], *, main: str = "", groups: Sequence[str] = ()
) -> Edit:
    """Write the repairs that can be written; their lines are those of the files as they are given.

    `main`: the file that takes packages which the code needs. `groups`: those of pyproject.toml that are requested.
    Lock files are never edited: only the tool that made one can keep it consistent.
    """
    by_path: dict[str, list[Adjustment]] = {}
    left: list[Adjustment] = []
    for change in adjustments:
        if change.code == "ADDED" and change.path not in files:
            change = replace(change, path=main, line=0)  # noqa: PLW2901 - the same change, elsewhere
        if change.code in CODES:
            writable = change.path in files and WRITABLE.search(change.path)
            (by_path.setdefault(change.path, []) if writable else left).append(change)
    changed: dict[str, bytes] = {}
    for path, changes in by_path.items():
        text = _TextFile.read(path, files[path], groups)
        if text is None:
            left += changes
            continue
        left += text.write(changes)
        if (data := text.data) != files[path]:
            changed[path] = data
    return Edit(files=changed, left=tuple(left))


def patch(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """A unified diff (`patch -p1`) of the files that changed; all line ends become those of Unix."""
    pieces: list[str] = []
    for path in sorted(after):
        old, new = (
            [line.rstrip("\r\n") + "\n" for line in _lines(_decode(files[path]) or "")] for files in (before, after)
        )
        pieces += difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", n=1)
    return "".join(pieces)


@dataclass(kw_only=True)
class _TextFile:
    """One file as lines with their ends."""

    path: str
    lines: list[str]
    encoding: str
    mark: bytes
    """The byte order mark, or nothing."""
    groups: Sequence[str]

    @classmethod
    def read(cls, path: str, data: bytes, groups: Sequence[str]) -> _TextFile | None:
        """None where the bytes are not text."""
        text = _decode(data)
        if text is None:
            return None
        mark, encoding = _encoding(data)
        return cls(path=path, lines=_lines(text), encoding=encoding, mark=mark, groups=groups)

    @property
    def data(self) -> bytes:
        return self.mark + "".join(self.lines).encode(self.encoding)

    @property
    def end(self) -> str:
        """The line end that the file uses."""
        return "\r\n" if any(line.endswith("\r\n") for line in self.lines) else "\n"

    def write(self, changes: Sequence[Adjustment]) -> list[Adjustment]:
        """Write changes from the last line to the first; the result are those that can't be written."""
        sections = _CondaSections.of("".join(self.lines)) if self.path.endswith(YAML) else None
        conda_lines = sections.conda_lines if sections else frozenset()
        by_line: dict[int, list[Adjustment]] = {}
        for change in changes:
            by_line.setdefault(change.line, []).append(change)
        of_file = by_line.pop(0, [])
        added = [change for change in of_file if change.code == "ADDED"]
        left: list[Adjustment] = []
        for number in sorted(by_line, reverse=True):
            ordered = sorted(by_line[number], key=lambda change: CODES.index(change.code))
            left += self._write_line(number, ordered, is_conda=number in conda_lines)
        left += [change for change in of_file if change.code != "ADDED"]
        return left + (added if added and not self._append(added) else [])

    def _write_line(self, number: int, changes: Sequence[Adjustment], *, is_conda: bool) -> list[Adjustment]:
        if number > len(self.lines):
            return list(changes)
        start, stop = number - 1, number
        while not is_conda and stop < len(self.lines) and self.lines[stop - 1].rstrip("\r\n").endswith("\\"):
            stop += 1
        text = "".join(self.lines[start:stop])
        body = text.rstrip("\r\n")
        end = text[len(body) :]
        pins = [] if is_conda else [change for change in changes if change.platform is not None]
        left: list[Adjustment] = []
        for change in changes:
            if change in pins:
                continue
            edited = edit_line(body, change, is_conda=is_conda)
            if edited is None:
                left.append(change)
            else:
                body = edited
        if pins:
            split = split_line(body, pins)
            left += pins if split is None else []
            body = (end or self.end).join(split) if split is not None else body
        self.lines[start:stop] = _lines(body + end if body else "")
        return left

    def _append(self, changes: Sequence[Adjustment]) -> bool:
        """Add requirements at the end of the file's list; False where it has none."""
        texts = [f"{change.package}{change.after}" for change in changes]
        if self.path.endswith(YAML):
            sections = _CondaSections.of("".join(self.lines))
            dash = re.match(r"\s*-\s+", self.lines[sections.last - 1]) if sections and sections.last else None
            if sections is None or dash is None:
                return False
            index, prefix = sections.last, dash[0]
        elif self.path.endswith(".txt"):
            index, prefix = len(self.lines), ""
        else:
            after = _with_dependencies("".join(self.lines), texts, self.groups, self.end)
            self.lines = _lines(after) if after else self.lines
            return after is not None
        if index and not self.lines[index - 1].endswith(("\n", "\r")):
            self.lines[index - 1] += self.end
        self.lines[index:index] = [f"{prefix}{text}{self.end}" for text in texts]
        return True


@dataclass(frozen=True, kw_only=True)
class _CondaSections:
    """The lines of a conda file's requirements, from 1."""

    conda_lines: frozenset[int]
    last: int
    """The last requirement of the pip section, else of all; 0 where there is none."""

    @classmethod
    def of(cls, text: str) -> _CondaSections | None:
        """None where the file is not a conda file."""
        try:
            root = yaml_document.root_of(text)
        except (yaml.YAMLError, ValueError):
            return None
        fields = {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
        dependencies = fields.get("dependencies")
        if not isinstance(dependencies, yaml.SequenceNode):
            return None
        own = [node for node in dependencies.value if isinstance(node, yaml.ScalarNode)]
        inner = [
            item
            for node in dependencies.value
            if isinstance(node, yaml.MappingNode)
            for _, value in node.value
            if isinstance(value, yaml.SequenceNode)
            for item in value.value
        ]
        last = (inner or own)[-1:]
        return cls(
            conda_lines=frozenset(node.start_mark.line + 1 for node in own),
            last=last[0].start_mark.line + 1 if last else 0,
        )


def _with_dependencies(text: str, requirements: Sequence[str], groups: Sequence[str], end: str) -> str | None:
    """A pyproject.toml with requirements added to [project] dependencies, else to the first of these groups that it has.

    A project without such a list gets one. None where that is impossible, as when a build backend computes the dependencies.
    """
    try:
        root = toml_document.loads(text)
        keys = _dependency_list(root, groups)
        place = toml_document.list_place(text, *keys) if keys else None
    except (ValueError, RecursionError):
        return None
    items = [json.dumps(one, ensure_ascii=False) for one in requirements]
    if place is not None:
        return _with_items(text, place, items, end)
    return _with_new_list(text, root, items, end) if keys is None else None


def _dependency_list(root: Mapping[str, object], groups: Sequence[str]) -> Path | None:
    """The keys of the list that takes more."""
    project = root.get("project")
    if isinstance(project, dict) and isinstance(project.get("dependencies"), list):
        return ("project", "dependencies")
    extras = project.get("optional-dependencies") if isinstance(project, dict) else None
    tables: tuple[tuple[Path, object], ...] = (
        (("dependency-groups",), root.get("dependency-groups")),
        (("project", "optional-dependencies"), extras),
    )
    for group in groups:
        for keys, table in tables:
            for name in table if isinstance(table, dict) else ():
                if canonicalize_name(name) == canonicalize_name(group):
                    return (*keys, name)
    return None


def _with_items(text: str, place: ListPlace, items: Sequence[str], end: str) -> str:
    line = text.rfind("\n", 0, place.end) + 1
    bracket_is_alone = line > place.last and not text[line : place.end].strip()
    comma = "" if place.empty or place.comma is not None else ","
    if bracket_is_alone:
        before = text[text.rfind("\n", 0, place.last) + 1 : place.last]
        own = re.match(r"[ \t]*(?=[\"'{])", before)
        indent = own[0] if own is not None and not place.empty else text[line : place.end] + INDENT
        trailing = "," if place.empty or place.comma is not None else ""
        rows = f",{end}".join(f"{indent}{item}" for item in items) + trailing + end
        return text[: place.last] + comma + text[place.last : line] + rows + text[line:]
    if place.comma is not None:
        rows = "".join(f" {item}," for item in items)
        return text[: place.comma] + rows + text[place.comma :]
    return text[: place.last] + comma + (" " if comma else "") + ", ".join(items) + text[place.last :]


def _with_new_list(text: str, root: Mapping[str, object], items: Sequence[str], end: str) -> str | None:
    """With a list of dependencies in [project], one requirement a line, if nothing else changes by that."""
    project = root.get("project")
    dynamic = project.get("dynamic") if isinstance(project, dict) else None
    if not isinstance(project, dict) or (isinstance(dynamic, list) and "dependencies" in dynamic):
        return None
    lines = toml_document.scan(text)
    rows = re.findall(r"[^\n]*\n|[^\n]+$", text)
    number = max((lines["project", key] for key in BEFORE if isinstance(project.get(key), str)), default=0)
    if not number or re.search(r"[.{]", rows[number - 1].partition("=")[0]):
        return None
    if not rows[number - 1].endswith(("\n", "\r")):
        rows[number - 1] += end
    new = "".join(f"{INDENT}{item},{end}" for item in items)
    after = "".join([*rows[:number], f"dependencies = [{end}{new}]{end}", *rows[number:]])
    try:
        read = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        return None
    project["dependencies"] = [json.loads(item) for item in items]
    return after if read == root else None


def _encoding(data: bytes) -> tuple[bytes, str]:
    """The byte order mark and the encoding that it stands for."""
    return next(((mark, name) for mark, name in BOMS if data.startswith(mark)), (b"", "utf-8"))


def _decode(data: bytes) -> str | None:
    """The text after the byte order mark; None where the bytes are not text."""
    mark, encoding = _encoding(data)
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError:
        return None


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)
