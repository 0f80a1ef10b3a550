"""Conda's names and versions, translated to the package index's.

Versions follow conda's match specifications (`conda.models.match_spec`, `conda.models.version`) and become PEP 440:

    numpy=1.26, numpy=1.26.*, numpy 1.26.*   ==1.26.*     a single `=` means "begins with"
    numpy=1.26.4                             ==1.26.4     with three numbers it names a release, as the tools that write it mean
    numpy==1.26.4, numpy 1.26.4              ==1.26.4
    numpy=1.26.4=py311_0                     ==1.26.4     builds are conda's own and are left out
    numpy>=1.20,<2   numpy~=1.26             the same
    numpy=1.25|1.26                          ==1.26.*     the highest alternative, reported: PEP 440 has no "or"

Names and packages that only conda has are in `resources/conda-names.toml`.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import yaml
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from flops.formats.requirement import TEXT_LIMIT, DependencyFormat, PythonRequest, specifier_text
from flops.formats.requirement_lines import RequirementLines
from flops.formats.yaml_document import FORM, compose, is_not_empty, line_of, texts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.formats.requirement import Reading


NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
CLAUSE = re.compile(r"(==|!=|<=|>=|~=|=|<|>)?\s*([A-Za-z0-9.!+_-]*)(\*?)")
FIELD = re.compile(r"(?<!\w)(\w+)\s*=\s*(['\"]?)([^'\"]*)\2\s*(?:,(?=\s*\w+\s*=)|$)")
NUMBERS_OF_A_RELEASE = 3


@dataclass(frozen=True, kw_only=True)
class MatchSpec:
    """One entry under `dependencies`."""

    name: str
    version: str
    """Conda's version syntax; empty for any."""
    build: str
    channel: str


@dataclass(frozen=True, kw_only=True)
class CondaNames:
    """The data file."""

    index: Mapping[str, str]
    """Conda's name to the index's."""
    longer: frozenset[str]
    """Index names whose versions have one number more than conda's."""
    conda_only: Mapping[str, str]
    """Pattern to what happens instead."""

    def reason(self, name: str) -> str | None:
        """What happens instead of a package that only conda has; None for all others."""
        return next((text for pattern, text in self.conda_only.items() if fnmatch.fnmatchcase(name, pattern)), None)


@cache
def names() -> CondaNames:
    """Read `resources/conda-names.toml`."""
    data = tomllib.loads((resources.files("flops") / "resources" / "conda-names.toml").read_text(encoding="utf-8"))
    only = {pattern: group["reason"] for group in data["conda_only"] for pattern in group["packages"]}
    return CondaNames(index=data["index"], longer=frozenset(data["longer"]), conda_only=only)


def specifier(version: str) -> str:
    """Conda's version syntax without alternatives as PEP 440, `""` for any; ValueError where it has none."""
    clauses = [clause for part in version.split(",") if (clause := _clause(part.strip()))]
    try:
        return specifier_text(SpecifierSet(",".join(clauses)))
    except InvalidSpecifier as error:
        raise ValueError(version) from error


def _clause(text: str) -> str:
    found = CLAUSE.fullmatch(text)
    if found is None:
        raise ValueError(text)
    operator, number, star = found[1] or "==", found[2], bool(found[3])
    fuzzy = operator == "="
    if star:
        number = number.removesuffix(".")
    if not number:
        if star or not text:
            return ""
        raise ValueError(text)
    try:
        parsed = Version(number)
    except InvalidVersion as error:
        raise ValueError(text) from error
    release = parsed.is_prerelease or parsed.is_postrelease or parsed.local is not None
    if operator in ("<", "<=", ">", ">="):
        return f"{operator}{number}"
    if operator == "~=":
        return f"~={number}" if "." in number else f">={number}"
    begins = star or (fuzzy and len(parsed.release) < NUMBERS_OF_A_RELEASE)
    if operator == "!=":
        return f"!={number}.*" if begins and not release else f"!={number}"
    return f"=={number}.*" if begins and not release else f"=={number}"


def highest(version: str) -> tuple[str, bool]:
    """The highest of a version's alternatives (`a|b`) as PEP 440, and whether there were others. ValueError."""
    parts = version.split("|")
    if len(parts) > 1 and not all(parts):
        raise ValueError(version)
    found = {specifier(part) for part in parts}
    return max(found, key=_height), len(found) > 1


def _height(text: str) -> tuple[bool, Version]:
    numbers = [Version(clause.version.removesuffix(".*")) for clause in SpecifierSet(text)]
    return not numbers, max(numbers, default=Version("0"))


def match_spec(text: str) -> MatchSpec:
    """Read `[CHANNEL::]NAME[VERSION][=BUILD]` in conda's spellings; ValueError."""
    inner: dict[str, str] = {}
    if bracket := re.fullmatch(r"([^\[]*)\[([^\]]*)\]\s*", text):
        text = bracket[1]
        inner = {key: value for key, _, value in FIELD.findall(bracket[2])}
    channel, _, rest = " ".join(text.split()).rpartition("::")
    found = NAME.match(rest)
    if found is None:
        raise ValueError(text)
    tail = re.sub(r" ?(,|\||[=<>!~]+) ?", r"\1", rest[found.end() :].split(" #")[0]).strip()
    version, build = _version_and_build(tail)
    return MatchSpec(
        name=found[0].lower(),
        version=inner.get("version", version),
        build=inner.get("build", build),
        channel=inner.get("channel", channel),
    )


def _version_and_build(tail: str) -> tuple[str, str]:
    if exact := re.fullmatch(r"={1,2}([^=<>!~|,\s]+)=([^=<>!~|,\s]*)", tail):
        return f"=={exact[1]}", exact[2]
    match tail.split():
        case []:
            return "", ""
        case [version]:
            return version, ""
        case [version, build]:
            return version, build
    raise ValueError(tail)


#: Channels whose packages the index has too, by one name or another.
PUBLIC_CHANNELS = frozenset({"defaults", "conda-forge", "nodefaults", "pytorch", "nvidia", "anaconda", "main"})
#: Keys that change nothing in an image.
SILENT_KEYS = frozenset({"name", "prefix", "dependencies", "channels", "platforms"})


def read_environment(path: str, data: bytes, files: Mapping[str, bytes], reading: Reading) -> None:
    """Read one environment file into `reading`; `files` holds what a `-r` in its pip section may follow."""
    root = compose(path, data, reading)
    if root is None:
        return
    fields = {key.value: value for key, value in root.value if isinstance(key, yaml.ScalarNode)}
    for key, _ in root.value:
        if not isinstance(key, yaml.ScalarNode) or key.value not in SILENT_KEYS:
            message = "this key is for conda alone and has no effect in an image"
            reading.note(path, line_of(key), "KEY_IGNORED", message)
    if (channels := fields.get("channels")) is not None:
        _note_channels(path, channels, reading)
    dependencies = fields.get("dependencies")
    if isinstance(dependencies, yaml.SequenceNode):
        for node in dependencies.value:
            if isinstance(node, yaml.ScalarNode):
                _read_entry(path, line_of(node), node.value.strip(), reading)
            else:
                _read_section(path, node, files, reading)
    elif dependencies is None or is_not_empty(dependencies):
        reading.wrong(path, line_of(dependencies) if dependencies else 0, "the file lists no dependencies", FORM)


def _read_section(path: str, node: yaml.Node, files: Mapping[str, bytes], reading: Reading) -> None:
    """`- pip:` and its list."""
    sections = node.value if isinstance(node, yaml.MappingNode) else []
    if not sections:
        reading.wrong(path, line_of(node), "this is not a dependency", FORM)
    for key, value in sections:
        if not isinstance(key, yaml.ScalarNode) or key.value != "pip":
            reading.wrong(path, line_of(key), "only `pip:` may hold a list of its own", FORM)
        elif isinstance(value, yaml.SequenceNode):
            lines = RequirementLines(reading=reading, files=files)
            for line, text in texts(path, value, reading):
                lines.read_line(path, line, text)
        elif is_not_empty(value):
            reading.wrong(path, line_of(value), "`pip:` holds no list", "write one `- NAME==VERSION` a line below it")


def _read_entry(path: str, line: int, text: str, reading: Reading) -> None:
    """One conda-level entry."""
    if "${" in text or "{{" in text:
        reading.forbid(path, line, "variables are not filled in", "write the value itself")
        return
    if len(text) > TEXT_LIMIT:
        reading.wrong(path, line, f"an entry has more than {TEXT_LIMIT} characters", "shorten it")
        return
    try:
        spec = match_spec(text)
        known = names()
        reason = None if spec.name in ("python", "pip") else known.reason(spec.name)
        if reason is not None:
            reading.adjust("CONDA_ONLY", spec.name, spec.version, "", path=path, line=line, reason=reason)
            return
        version, chosen = highest(spec.version)
    except ValueError:
        reading.wrong(path, line, "this is not conda's NAME=VERSION", "for example numpy=1.26.4, or numpy>=1.26,<2")
        return
    if chosen:
        reason = "a requirement has no alternatives; the highest is taken"
        reading.adjust("ALTERNATIVE_CHOSEN", spec.name, spec.version, version, path=path, line=line, reason=reason)
    if spec.name == "python":
        _read_python(path, line, spec, version, reading)
        return
    if re.search(r"cuda|gpu", spec.build, re.IGNORECASE):
        message = f"the build of {spec.name} is conda's own and is left out"
        reading.note(path, line, "BUILD_IGNORED", message, "--accelerator cuda chooses wheels for GPUs")
    name = known.index.get(spec.name, spec.name)
    if name in known.longer:
        version = re.sub(r"==([0-9.]*[0-9])(?=,|$)", r"==\1.*", version)
    if canonicalize_name(name) != canonicalize_name(spec.name):
        reading.adjust(
            "RENAMED",
            spec.name,
            spec.name + spec.version,
            name + version,
            path=path,
            line=line,
            reason=f"the package index knows conda's {spec.name} as {name}",
        )
    reading.add(text, path=path, line=line, pep508=name + version)


def _read_python(path: str, line: int, spec: MatchSpec, version: str, reading: Reading) -> None:
    if reading.python is not None:
        reading.wrong(path, line, "python is named twice", f"keep one; the first is at line {reading.python.line}")
    elif version:
        text = re.sub(r"^=+", "", spec.version)
        reading.python = PythonRequest(text=text, specifier=version, path=path, line=line)


def _note_channels(path: str, node: yaml.Node, reading: Reading) -> None:
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    for item in items:
        name = item.value if isinstance(item, yaml.ScalarNode) else ""
        if name not in PUBLIC_CHANNELS:
            shown = name if re.fullmatch(r"[\w.-]{1,40}", name) else "this channel"
            reading.note(
                path,
                line_of(item),
                "CHANNEL_IGNORED",
                f"{shown} is not read: all packages come from the package index",
                "packages that only this channel has will not be found",
            )


FORMAT = DependencyFormat(
    names=("conda.yaml", "conda.yml", "environment.yaml", "environment.yml"),
    read=lambda file, reading: read_environment(file.path, file.data, file.files, reading),
)
