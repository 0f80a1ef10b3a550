"""Requirements added to a pyproject.toml, in the form that its list has; all else stays as it is (pure)."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from flops.builder.formats import toml_document

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.builder.formats.toml_document import ListPlace, Path

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
