"""The manager's own pages: the login, and the list of its operations. Nothing in them comes from another host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jinja2 import Template

_METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One of the OpenAPI document, as the page shows it."""

    id: str
    method: str
    path: str
    summary: str
    description: tuple[str, ...]
    """Paragraphs."""
    parameters: tuple[dict[str, str], ...]
    body: str
    """An example of it; empty where there is none."""
    answers: tuple[dict[str, str], ...]
    example: str
    """Of the first answer that tells success."""


def login_page(*, told: str = "", label: str, target: str) -> str:
    """The form; `told` says why an earlier one was refused, `target` where it leads."""
    return _template("login.html").render(told=told, label=label, next=target)


def docs_page(document: Mapping[str, Any]) -> str:
    """The operations of an OpenAPI document, for people."""
    info = document["info"]
    return _template("docs.html").render(
        title=info["title"],
        version=info["version"],
        description=info.get("description", ""),
        operations=list(_operations(document)),
    )


@cache
def stylesheet() -> str:
    return _resource("manager.css")


def _operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    for path, entry in document["paths"].items():
        for method in _METHODS:
            if method not in entry:
                continue
            told = entry[method]
            body = told.get("requestBody", {}).get("content", {})
            answers = told["responses"]
            yield Operation(
                id=told["operationId"],
                method=method.upper(),
                path=path,
                summary=told.get("summary", ""),
                description=tuple(part for part in told.get("description", "").split("\n\n") if part),
                parameters=tuple(
                    {"name": one["name"], "place": one["in"], "description": one.get("description", "")}
                    for one in told.get("parameters", ())
                ),
                body=_example(body),
                answers=tuple(
                    {"status": status, "description": answer.get("description", "")}
                    for status, answer in sorted(answers.items())
                ),
                example=_example(answers.get("200", {}).get("content", {})),
            )


def _example(content: Mapping[str, Any]) -> str:
    for kind, entry in content.items():
        example = entry.get("example")
        if example is None:
            example = next((one["value"] for one in entry.get("examples", {}).values()), None)
        if example is not None:
            return json.dumps(example, indent=2) if kind.endswith("json") else str(example)
    return ""


@cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_resource(name))


def _resource(name: str) -> str:
    return (resources.files("flops") / "resources" / "manager" / name).read_text(encoding="utf-8")
