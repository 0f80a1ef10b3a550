"""YAML files of the dependency formats: bytes in, nodes out, each of which knows its line.

YAML is composed to nodes, never constructed to objects; aliases are refused, since a small file of them unfolds to a large one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from flops.formats.requirement_lines import COMMENT
from flops.formats.toml_document import Unfit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flops.formats.requirement import Reading

#: Collections in one another; an environment file has three.
DEPTH = 16
#: Collections and values; an environment file has some hundred, and Python's YAML reads ten thousand a second.
NODES = 10_000
FORM = "write a list of `- NAME=VERSION` under `dependencies:`"


def compose(path: str, data: bytes, reading: Reading) -> yaml.MappingNode | None:
    text = reading.text(path, data)
    if text is None:
        return None
    try:
        root = root_of(text)
    except Unfit as error:
        reading.wrong(path, error.line, error.reason, "write the entries themselves, one a line")
        return None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        reading.wrong(path, line, f"not YAML: {error.problem}", "check its indentation")
        return None
    except (yaml.YAMLError, ValueError):
        reading.wrong(path, 0, "not YAML", FORM)
        return None
    if not isinstance(root, yaml.MappingNode):
        reading.wrong(path, 0, "the file lists no dependencies", FORM)
        return None
    return root


def root_of(text: str) -> yaml.Node | None:
    """The document, built only after its size and nesting were looked at. Unfit, yaml.YAMLError, ValueError."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise Unfit(line, "YAML aliases are not supported")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        nodes += isinstance(event, yaml.NodeEvent)
        if depth > DEPTH:
            raise Unfit(line, f"lists or maps lie more than {DEPTH} levels deep in one another")
        if nodes > NODES:
            raise Unfit(line, f"the file has more than {NODES} values")
    root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    return root


def texts(path: str, sequence: yaml.SequenceNode, reading: Reading) -> Iterator[tuple[int, str]]:
    for node in sequence.value:
        if not isinstance(node, yaml.ScalarNode):
            reading.wrong(path, line_of(node), "this is not a requirement", "write NAME==VERSION")
            continue
        text = COMMENT.sub("", node.value).strip()
        if text:
            yield line_of(node), text


def is_not_empty(node: yaml.Node) -> bool:
    return not (isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~"))


def line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
