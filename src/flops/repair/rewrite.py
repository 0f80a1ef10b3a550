"""Repairs written into the repository's own file: the smallest edit, which keeps comments, order, spelling and line ends.

Adjustments that change nothing for other users of the file are left alone (conda's names, packages that images bring).
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
from flops.repair import line_edit
from flops.repair.line_edit import CORRECTED, SPELLED, TAKEN_OUT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.errors import Adjustment
    from flops.formats.toml_document import ListPlace, Path


#: Keys of [project] behind which its list of dependencies begins where it has none, the last that is there.
BEFORE = ("name", "version", "requires-python")
INDENT = "    "


def added(text: str, requirements: Sequence[str], *, groups: Sequence[str] = (), end: str = "\n") -> str | None:
    """The text with requirements at the end of [project] dependencies, else of the first of these groups that it has.

    A project without such a list gets one. None where there is no place, or the dependencies are known to a build backend alone.
    """
    try:
        root = toml_document.loads(text)
        keys = _list(root, groups)
        place = toml_document.list_place(text, *keys) if keys else None
        if place is None:
            return _begun(text, root, requirements, end) if keys is None else None
    except ValueError:
        return None
    return _extended(text, place, [json.dumps(one, ensure_ascii=False) for one in requirements], end)


def _list(root: Mapping[str, object], groups: Sequence[str]) -> Path | None:
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
            names = table if isinstance(table, dict) else {}
            name = next((one for one in names if canonicalize_name(one) == canonicalize_name(group)), None)
            if name is not None:
                return (*keys, name)
    return None


def _extended(text: str, place: ListPlace, items: Sequence[str], end: str) -> str:
    line = text.rfind("\n", 0, place.end) + 1
    alone = line > place.last and not text[line : place.end].strip()
    comma = "" if place.empty or place.comma is not None else ","
    if alone:
        closing = text[line : place.end]
        before = text[text.rfind("\n", 0, place.last) + 1 : place.last]
        own = re.match(r"[ \t]*(?=[\"'{])", before)
        indent = own[0] if own is not None and not place.empty else closing + INDENT
        trailing = "," if place.empty or place.comma is not None else ""
        rows = f",{end}".join(f"{indent}{item}" for item in items) + trailing + end
        return text[: place.last] + comma + text[place.last : line] + rows + text[line:]
    if place.comma is not None:
        rows = "".join(f" {item}," for item in items)
        return text[: place.comma] + rows + text[place.comma :]
    rows = ", ".join(items)
    return text[: place.last] + comma + (" " if comma else "") + rows + text[place.last :]


def _begun(text: str, root: Mapping[str, object], requirements: Sequence[str], end: str) -> str | None:
    """A list of its own in [project], one requirement a line."""
    project = root.get("project")
    dynamic = project.get("dynamic") if isinstance(project, dict) else None
    if not isinstance(project, dict) or (isinstance(dynamic, list) and "dependencies" in dynamic):
        return None
    lines = toml_document.scan(text)
    rows = re.findall(r"[^\n]*\n|[^\n]+$", text)
    places = [lines[("project", key)] for key in BEFORE if isinstance(project.get(key), str)]
    place = max(places, default=0)
    if not place or "." in rows[place - 1].partition("=")[0] or "{" in rows[place - 1].partition("=")[0]:
        return None
    items = "".join(f"{INDENT}{json.dumps(one, ensure_ascii=False)},{end}" for one in requirements)
    if not rows[place - 1].endswith(("\n", "\r")):
        rows[place - 1] += end
    after = "".join([*rows[:place], f"dependencies = [{end}{items}]{end}", *rows[place:]])
    return after if _same_but_for_list(root, after, requirements) else None


def _same_but_for_list(root: Mapping[str, object], after: str, requirements: Sequence[str]) -> bool:
    """Whether the list landed in [project], and nothing else changed."""
    try:
        read = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        return False
    return read.get("project", {}).pop("dependencies", None) == list(requirements) and read == root


#: In the order in which those of one line are written.
CODES = (SPELLED, CORRECTED, "PIN_RELAXED", "UNPINNED", "PYTHON_MOVED", TAKEN_OUT, "ADDED")
WRITABLE = re.compile(r"(\.(ya?ml|txt|in|pip|reqs?)|(^|/)pyproject\.toml)$")
BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Files with repairs in them."""

    files: Mapping[str, bytes]
    """Those that changed, by path."""
    left: tuple[Adjustment, ...]
    """Repairs for which no place in a file was found."""


def edit(
    files: Mapping[str, bytes], adjustments: Sequence[Adjustment], *, main: str = "", groups: Sequence[str] = ()
) -> Edit:
    """Write what can be written; the adjustments' places count for the files as they are given.

    `main`: the file that takes what is added for a place in the code. `groups`: those of pyproject.toml that are asked for.
    Locks are their makers' own and are never edited.
    """
    by_path: dict[str, list[Adjustment]] = {}
    left: list[Adjustment] = []
    for change in adjustments:
        path = _place(change)[0]
        if change.code == "ADDED" and path not in files:
            path, change = main, replace(change, where=main)  # noqa: PLW2901 - the same change, elsewhere
        if change.code in CODES:
            (by_path.setdefault(path, []) if path in files and WRITABLE.search(path) else left).append(change)
    changed: dict[str, bytes] = {}
    for path, changes in by_path.items():
        page = _Page.read(path, files[path], groups)
        if page is None:
            left += changes
            continue
        left += page.write(changes)
        if (data := page.data) != files[path]:
            changed[path] = data
    return Edit(files=changed, left=tuple(left))


def patch(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """A unified diff (`patch -p1`) of the files that changed; as text, without line ends of other systems."""
    pieces: list[str] = []
    for path in sorted(after):
        old, new = (_lines(_decode(files[path]) or "") for files in (before, after))
        one, other = ([line.rstrip("\r\n") + "\n" for line in lines] for lines in (old, new))
        pieces += difflib.unified_diff(one, other, f"a/{path}", f"b/{path}", n=1)
    return "".join(pieces)


@dataclass(kw_only=True)
class _Page:
    """One file as lines with their ends."""

    path: str
    lines: list[str]
    encoding: str
    mark: bytes
    groups: Sequence[str]

    @classmethod
    def read(cls, path: str, data: bytes, groups: Sequence[str]) -> _Page | None:
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
        """Write changes from the last line to the first; those that have no place come back."""
        sections = _Sections.of("".join(self.lines)) if self.path.endswith((".yaml", ".yml")) else None
        by_line: dict[int, list[Adjustment]] = {}
        for change in changes:
            by_line.setdefault(_place(change)[1], []).append(change)
        left: list[Adjustment] = []
        for number in sorted(by_line, reverse=True):
            if number == 0:
                continue
            at_conda_level = sections is not None and number in sections.conda_lines
            ordered = sorted(by_line[number], key=lambda change: CODES.index(change.code))
            left += self._write_line(number, ordered, at_conda_level=at_conda_level)
        added = [change for change in by_line.get(0, ()) if change.code == "ADDED"]
        left += [change for change in by_line.get(0, ()) if change not in added]
        return left + (added if added and not self._append(added) else [])

    def _write_line(self, number: int, changes: Sequence[Adjustment], *, at_conda_level: bool) -> list[Adjustment]:
        start = number - 1
        stop = start + 1
        if stop > len(self.lines):
            return list(changes)
        while not at_conda_level and stop < len(self.lines) and self.lines[stop - 1].rstrip("\r\n").endswith("\\"):
            stop += 1
        text = "".join(self.lines[start:stop])
        body = text.rstrip("\r\n")
        end = text[len(body) :]
        pins = [change for change in changes if change.platform is not None]
        left: list[Adjustment] = []
        for change in changes:
            if change in pins and not at_conda_level:
                continue
            done = line_edit.of_conda(body, change) if at_conda_level else line_edit.of_pip(body, change)
            if done is None:
                left.append(change)
            else:
                body = done
        if pins and not at_conda_level:
            split = line_edit.split(body, pins)
            left += pins if split is None else []
            body = (end or self.end).join(split) if split is not None else body
        self.lines[start:stop] = _lines(body + end if body else "")
        return left

    def _append(self, changes: Sequence[Adjustment]) -> bool:
        """Add requirements at the end of the file's list."""
        texts = [f"{change.package}{change.after}" for change in changes]
        if self.path.endswith((".yaml", ".yml")):
            sections = _Sections.of("".join(self.lines))
            if sections is None or sections.last is None:
                return False
            dash = re.match(r"\s*-\s+", self.lines[sections.last])
            if dash is None:
                return False
            place, prefix = sections.last + 1, dash[0]
        elif self.path.endswith(".txt"):
            place, prefix = len(self.lines), ""
        else:
            after = added("".join(self.lines), texts, groups=self.groups, end=self.end)
            self.lines = _lines(after or "".join(self.lines))
            return after is not None
        if self.lines and place and not self.lines[place - 1].endswith(("\n", "\r")):
            self.lines[place - 1] += self.end
        self.lines[place:place] = [f"{prefix}{text}{self.end}" for text in texts]
        return True


@dataclass(frozen=True, kw_only=True)
class _Sections:
    """Where a conda file's requirements stand; lines from 1, `last` from 0."""

    conda_lines: frozenset[int]
    last: int | None
    """Line of the last requirement of the pip section, else of all."""

    @classmethod
    def of(cls, text: str) -> _Sections | None:
        """None where the file is no conda file."""
        try:
            root = yaml_document.root_of(text)
        except (yaml.YAMLError, ValueError):
            return None
        fields = {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
        dependencies = fields.get("dependencies")
        if not isinstance(dependencies, yaml.SequenceNode):
            return None
        level = [node for node in dependencies.value if isinstance(node, yaml.ScalarNode)]
        inner = [
            item
            for node in dependencies.value
            if isinstance(node, yaml.MappingNode)
            for _, value in node.value
            if isinstance(value, yaml.SequenceNode)
            for item in value.value
        ]
        last = (inner or level)[-1:]
        return cls(
            conda_lines=frozenset(node.start_mark.line + 1 for node in level),
            last=last[0].start_mark.line if last else None,
        )


def _encoding(data: bytes) -> tuple[bytes, str]:
    """The byte order mark, and what it stands for."""
    return next(((mark, name) for mark, name in BOMS if data.startswith(mark)), (b"", "utf-8"))


def _decode(data: bytes) -> str | None:
    """The text behind the byte order mark; None where it is none."""
    mark, encoding = _encoding(data)
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError:
        return None


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)


def _place(change: Adjustment) -> tuple[str, int]:
    path, colon, line = change.where.rpartition(":")
    return (path, int(line)) if colon and line.isdecimal() else (change.where, 0)
