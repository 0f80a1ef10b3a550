"""Conda environment files (`conda.yaml`, `environment.yml`): bytes in, requirements out, each with its line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml
from packaging.utils import canonicalize_name

from flops.builder.formats import conda
from flops.builder.formats.requirement import TEXT_LIMIT, PythonRequest
from flops.builder.formats.requirement_lines import Lines
from flops.builder.formats.yaml_document import FORM, compose, is_not_empty, line_of, texts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.builder.formats.requirement import Reading

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
            lines = Lines(reading=reading, files=files)
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
        spec = conda.match_spec(text)
        known = conda.names()
        reason = None if spec.name in ("python", "pip") else known.reason(spec.name)
        if reason is not None:
            reading.adjust("CONDA_ONLY", spec.name, spec.version, "", where=f"{path}:{line}", reason=reason)
            return
        version, chosen = conda.highest(spec.version)
    except ValueError:
        reading.wrong(path, line, "this is not conda's NAME=VERSION", "for example numpy=1.26.4, or numpy>=1.26,<2")
        return
    where = f"{path}:{line}"
    if chosen:
        reason = "a requirement has no alternatives; the highest is taken"
        reading.adjust("ALTERNATIVE_CHOSEN", spec.name, spec.version, version, where=where, reason=reason)
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
            where=where,
            reason=f"the package index knows conda's {spec.name} as {name}",
        )
    reading.add(text, path=path, line=line, pep508=name + version)


def _read_python(path: str, line: int, spec: conda.MatchSpec, version: str, reading: Reading) -> None:
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
