"""One line of a dependency file with one repair in it; comments, spelling and all other requirements stay as they are (pure)."""

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


def of_pip(body: str, change: Adjustment) -> str | None:
    """The line with one change in it; "" where it goes, None where the requirement is not found."""
    if change.code == SPELLED:
        return body.replace(change.before, change.after, 1) if change.before and change.before in body else None
    if change.code == "PYTHON_MOVED":
        return _python(body, change.after)
    found = _name(body, change.package)
    if found is None:
        return None
    if change.code == CORRECTED:
        return body[: found.start()] + change.after + body[found.end() :]
    if change.code == TAKEN_OUT:
        return "" if _alone(body, found) else None
    return _with_specifier(body, found, change.after)


def of_conda(body: str, change: Adjustment) -> str | None:
    if change.code == SPELLED:
        return body.replace(change.before, change.after, 1) if change.before and change.before in body else None
    found = _name(body, change.package, names=conda.names().index)
    if found is None:
        return None
    if change.code == CORRECTED:
        return body[: found.start()] + change.after + body[found.end() :]
    if change.code == TAKEN_OUT:
        return ""
    old = CONDA.match(body, found.end())
    assert old is not None  # noqa: S101 - it matches nothing, too
    version = change.after.removeprefix("==")
    exact = bool(re.fullmatch(r"[\w.!+]+", version))
    sign = "==" if old[0].lstrip().startswith("==") else "="
    return body[: found.end()] + (f"{sign}{version}" if exact else change.after) + body[old.end() :]


def _python(body: str, version: str) -> str | None:
    """`python: 3.10.14` of MLflow's python_env.yaml, `requires-python = ">=3.8,<3.11"` of pyproject.toml."""
    found = PYTHON.search(body)
    if found is None:
        return None
    exact = found[1].startswith("python")
    meant = version if exact else f"=={'.'.join(version.split('.')[:2])}.*"
    return body[: found.start(2)] + meant + body[found.end(2) :]


def _with_specifier(body: str, found: re.Match[str], specifier: str) -> str:
    """Hashes of the old version go with it."""
    old = SPECIFIER.match(body, found.end())
    assert old is not None  # noqa: S101 - it matches nothing, too
    start = old.end("extras") if old["extras"] else found.end()
    stop = old.end("spec") if old["spec"] else start
    if old["spec"] and not old["spec"].strip().startswith("("):
        stop -= len(old["spec"]) - len(old["spec"].rstrip())
        start += len(old["spec"]) - len(old["spec"].lstrip()) if old["spec"][0].isspace() else 0
    return body[:start] + specifier + HASH.sub("", body[stop:])


def split(body: str, pins: Sequence[Adjustment]) -> list[str] | None:
    """One line for each platform that differs, after the one for all others; told apart by markers."""
    found = _name(body, pins[0].package)
    if found is None or any(pin.package != pins[0].package for pin in pins):
        return None
    quote = "'" if '"' in body else '"'
    machines = {pin: Platform.parse(pin.platform or "").machine for pin in pins}
    rest = " and ".join(f"platform_machine != {quote}{machine}{quote}" for machine in machines.values())
    lines = [_with_marker(body, rest)]
    for pin, machine in machines.items():
        line = _with_specifier(body.split(" #", maxsplit=1)[0].rstrip(), found, pin.after)
        lines.append(_with_marker(line, f"platform_machine == {quote}{machine}{quote}"))
    return lines


def _with_marker(body: str, marker: str) -> str:
    closing = re.search(r"[\"']\s*,?\s*(#.*)?$", body) if re.match(r"\s*(-\s*)?[\"']", body) else None
    inner, outer = (body[: closing.start()], body[closing.start() :]) if closing else (body, "")
    old = MARKER.search(inner)
    if old is not None:
        whole = f"({old['marker']}) and {marker}" if " or " in old["marker"] else f"{old['marker']} and {marker}"
        return f"{inner[: old.start()]}; {whole}{inner[old.end() :]}{outer}"
    tail = re.search(r"\s*(\s#.*|\s--hash.*|\\\s*)?$", inner, re.DOTALL)
    place = tail.start() if tail else len(inner)
    return f"{inner[:place]}; {marker}{inner[place:]}{outer}"


def _name(body: str, package: str, *, names: Mapping[str, str] | None = None) -> re.Match[str] | None:
    """The first name in the line that means the package."""
    for found in NAME.finditer(body.split(" #", maxsplit=1)[0]):
        shown = found[0].lower()
        meant = (names or {}).get(shown, shown)
        if canonicalize_name(package) in {canonicalize_name(meant), canonicalize_name(shown)}:
            return found
    return None


def _alone(body: str, found: re.Match[str]) -> bool:
    """Whether the line holds this requirement only."""
    return re.fullmatch(r"\s*(-\s*)?[\"']?", body[: found.start()]) is not None
