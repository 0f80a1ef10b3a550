"""One line of a dependency file with one repair in it; comments, spelling and other requirements stay as they are (pure)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from flops.formats import conda
from flops.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.errors import Adjustment

#: Codes of repairs that change more than a specifier.
CORRECTED, SPELLED, TAKEN_OUT = "NAME_CORRECTED", "SYNTAX_CORRECTED", "TAKEN_OUT"
NAME = re.compile(r"(?<![\w.\-=<>~!\]])[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")
PYTHON = re.compile(r"((?:python\s*:|requires-python\s*=)\s*[\"']?)([^\"'#\r\n]*?)(?=[\"']|\s*(?:#|$))")
CLAUSE = r"(?:===|==|~=|!=|<=|>=|<|>)\s*[\w.!*+-]+"
SPECIFIER = re.compile(rf"(?P<extras>\s*\[[^\]]*\])?(?P<spec>\s*\(?\s*{CLAUSE}(?:\s*,\s*{CLAUSE})*\s*\)?)?")
CONDA = re.compile(r"(?:\[[^\]]*\]|\s*[=<>!~][^\s#\"']*(?:\s+(?![#\"'])[^\s#\"']+)*|(?:\s+(?![#\"'])[^\s#\"']+)+)?")
MARKER = re.compile(r"\s*;\s*(?P<marker>[^#\r\n]*?)(?=\s*(?:\\?\s*$|\s#|\s--hash))", re.MULTILINE)
HASH = re.compile(r"\s*\\?\s*--hash[= ]\S+")


def edit_line(body: str, change: Adjustment, *, is_conda: bool) -> str | None:
    """The line with one change in it; "" where the line goes, None where the requirement is not found.

    `is_conda`: the line is a conda requirement, not pip's.
    """
    if change.code == SPELLED:
        return body.replace(change.before, change.after, 1) if change.before and change.before in body else None
    if change.code == "PYTHON_MOVED" and not is_conda:
        return _with_python(body, change.after)
    found = _find_name(body, change.package, conda.names().index if is_conda else {})
    if found is None:
        return None
    if change.code == CORRECTED:
        return body[: found.start()] + change.after + body[found.end() :]
    if change.code == TAKEN_OUT:
        is_alone = re.fullmatch(r"\s*(-\s*)?[\"']?", body[: found.start()])
        return "" if is_conda or is_alone else None
    write = _with_conda_version if is_conda else _with_specifier
    return write(body, found.end(), change.after)


def split_line(body: str, pins: Sequence[Adjustment]) -> list[str] | None:
    """A line for all other platforms, then one for each platform that has its own pin; markers tell them apart."""
    found = _find_name(body, pins[0].package, {})
    if found is None or any(pin.package != pins[0].package for pin in pins):
        return None
    quote = "'" if '"' in body else '"'
    machines = {pin: Platform.parse(pin.platform or "").machine for pin in pins}
    rest = " and ".join(f"platform_machine != {quote}{machine}{quote}" for machine in machines.values())
    lines = [_with_marker(body, rest)]
    for pin, machine in machines.items():
        line = _with_specifier(body.split(" #", maxsplit=1)[0].rstrip(), found.end(), pin.after)
        lines.append(_with_marker(line, f"platform_machine == {quote}{machine}{quote}"))
    return lines


def _find_name(body: str, package: str, index_names: Mapping[str, str]) -> re.Match[str] | None:
    """The first name in the line that stands for the package; `index_names`: the index's name by conda's."""
    for found in NAME.finditer(body.split(" #", maxsplit=1)[0]):
        name = found[0].lower()
        if canonicalize_name(package) in {canonicalize_name(index_names.get(name, name)), canonicalize_name(name)}:
            return found
    return None


def _with_python(body: str, version: str) -> str | None:
    """For `python: 3.10.14` of MLflow's python_env.yaml and `requires-python = ">=3.8,<3.11"` of pyproject.toml."""
    found = PYTHON.search(body)
    if found is None:
        return None
    specifier = version if found[1].startswith("python") else f"=={'.'.join(version.split('.')[:2])}.*"
    return body[: found.start(2)] + specifier + body[found.end(2) :]


def _with_conda_version(body: str, name_end: int, specifier: str) -> str:
    old = CONDA.match(body, name_end)
    assert old is not None  # noqa: S101 - it matches the empty text, too
    version = specifier.removeprefix("==")
    if re.fullmatch(r"[\w.!+]+", version):
        specifier = f"=={version}" if old[0].lstrip().startswith("==") else f"={version}"
    return body[:name_end] + specifier + body[old.end() :]


def _with_specifier(body: str, name_end: int, specifier: str) -> str:
    """The hashes of the old version are removed, too."""
    old = SPECIFIER.match(body, name_end)
    assert old is not None  # noqa: S101 - it matches the empty text, too
    start = old.end("extras") if old["extras"] else name_end
    end = old.end("spec") if old["spec"] else start
    if old["spec"] and not old["spec"].strip().startswith("("):
        end -= len(old["spec"]) - len(old["spec"].rstrip())
        start += len(old["spec"]) - len(old["spec"].lstrip())
    return body[:start] + specifier + HASH.sub("", body[end:])


def _with_marker(body: str, marker: str) -> str:
    closing = re.search(r"[\"']\s*,?\s*(#.*)?$", body) if re.match(r"\s*(-\s*)?[\"']", body) else None
    inner, outer = (body[: closing.start()], body[closing.start() :]) if closing else (body, "")
    old = MARKER.search(inner)
    if old is not None:
        both = f"({old['marker']}) and {marker}" if " or " in old["marker"] else f"{old['marker']} and {marker}"
        return f"{inner[: old.start()]}; {both}{inner[old.end() :]}{outer}"
    tail = re.search(r"\s*(\s#.*|\s--hash.*|\\\s*)?$", inner, re.DOTALL)
    end = tail.start() if tail else len(inner)
    return f"{inner[:end]}; {marker}{inner[end:]}{outer}"
