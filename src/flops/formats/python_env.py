"""python_env.yaml, as MLflow writes it beside a model: Python, what builds packages, and the packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from flops.formats.requirement import DependencyFormat
from flops.formats.requirement_lines import RequirementLines
from flops.formats.yaml_document import compose, is_not_empty, line_of, texts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.formats.requirement import Reading

FILE = "python_env.yaml"
KEYS = frozenset({"python", "build_dependencies", "dependencies"})


def read_python_env(path: str, data: bytes, files: Mapping[str, bytes], reading: Reading) -> None:
    """Read the file into `reading`; `files` holds what a `-r` in it may follow."""
    root = compose(path, data, reading)
    if root is None:
        return
    for key, value in root.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name == "python":
            _read_python(path, value, reading)
        elif name == "build_dependencies" and is_not_empty(value):
            message = "build_dependencies are left out: wheels need nothing to build them"
            hint = "list under dependencies what the code itself imports, also setuptools"
            reading.note(path, line_of(key), "KEY_IGNORED", message, hint)
        elif name not in KEYS:
            reading.note(path, line_of(key), "KEY_IGNORED", "this key has no effect in an image")
        elif name == "dependencies" and isinstance(value, yaml.SequenceNode):
            lines = RequirementLines(reading=reading, files=files)
            for line, text in texts(path, value, reading):
                lines.read_line(path, line, text)
        elif name == "dependencies" and is_not_empty(value):
            reading.wrong(path, line_of(value), "`dependencies:` holds no list", "write one `- NAME==VERSION` a line")


def _read_python(path: str, node: yaml.Node, reading: Reading) -> None:
    """A version, as `python: 3.10.14`; quotes or not, since nodes keep what is written."""
    text = node.value.strip() if isinstance(node, yaml.ScalarNode) else "?"
    if not is_not_empty(node):
        return
    exact = f"=={text}" if text.count(".") > 1 else f"=={text}.*"
    specifier = text if text[:1] in "<>=!~" else exact
    reading.ask_python(specifier, path=path, line=line_of(node), text=text)


FORMAT = DependencyFormat(
    names=(FILE,), read=lambda file, reading: read_python_env(file.path, file.data, file.files, reading)
)
