"""Words of the OpenAPI document that several routes share."""

from __future__ import annotations

import inspect
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import Security, params
from fastapi.security import HTTPBearer

from flops.platforms import Platform
from flops.recipe import Accelerator, Compression, Flavor, Policy
from flops.service.documents import ErrorDocument
from flops_wire.events import STAGES
from flops_wire.manager import EVENTS_LIMIT, TEXT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI
    from pydantic import BaseModel


Responses = dict[int | str, dict[str, Any]]

#: What every route can answer, whatever it does.
_ALWAYS = (400, 401, 403, 414, 421, 431, 500, 503)


TOKEN = "The manager's token (FLOPS_API_TOKEN), or the caller's own of Oakestra."  # noqa: S105 - about one


def add_route(
    app: FastAPI,
    path: str,
    endpoint: Callable[..., Any],
    method: str,
    *,
    tag: str,
    responses: Responses,
    **more: Any,
) -> None:
    """With the first line of the endpoint's docstring as summary, and the rest of it as description."""
    summary, _, description = inspect.cleandoc(endpoint.__doc__ or "").partition("\n")
    more.setdefault("response_model", None)
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        tags=[tag],
        summary=summary.rstrip("."),
        description=description.strip(),
        response_description="",
        responses=responses,
        operation_id=f"{tag}-{getattr(endpoint, '__name__', method)}",
        **more,
    )


def lock(name: str, told: str) -> list[params.Depends]:
    """That an operation wants a bearer token; here it is only described, the guard or the manager judges it."""
    return [Security(HTTPBearer(scheme_name=name, description=told, auto_error=False))]


def answers(model: type[BaseModel], told: str, shown: object, *failures: int) -> Responses:
    """A JSON answer with its example, and the failures that its route knows."""
    content = {"application/json": {"example": shown}}
    return {200: {"model": model, "description": told, "content": content}} | _failures(*failures)


def example(media_type: str, told: str, *failures: int, schema: dict[str, Any] | None = None) -> Responses:
    """An answer of text; its route's class is Response, so that failures stay JSON."""
    content = {media_type: {"schema": schema or {"type": "string"}}}
    return {200: {"description": told, "content": content}} | _failures(*failures)


def body(schema: dict[str, Any], shown: object) -> dict[str, Any]:
    """A JSON body that the route reads itself."""
    content = {"application/json": {"schema": schema, "example": shown}}
    return {"requestBody": {"required": True, "content": content}}


def _failures(*statuses: int) -> Responses:
    return {
        status: {"model": ErrorDocument, "description": HTTPStatus(status).phrase}
        for status in sorted({*statuses, *_ALWAYS})
    }


Schema = dict[str, Any]

#: One line: no control characters.
_LINE = r"^[^\x00-\x1f\x7f-\x9f]*$"


def _text(told: str, **more: Any) -> Schema:
    return {"type": ["string", "null"], "maxLength": 255, "pattern": _LINE, "description": told, **more}


def _choice(kind: type[Flavor | Policy | Accelerator | Compression], told: str) -> Schema:
    return {"enum": [*(one.value for one in kind), None], "description": told}


def _count(least: int, most: int = 1_000_000) -> Schema:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


def _texts(told: str, **more: Any) -> Schema:
    items = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": _LINE}
    return {"type": ["array", "null"], "maxItems": 100, "items": items, "description": told, **more}


SLA: Schema = {
    "title": "SLA",
    "type": "object",
    "required": ["ml_repo_url"],
    "additionalProperties": True,
    "description": "FLOps' request for a project; keys that are unknown are ignored, with a warning.",
    "properties": {
        "ml_repo_url": {
            "type": "string",
            "format": "uri",
            "maxLength": 2048,
            "description": "https://HOST/OWNER/REPOSITORY or ssh://git@HOST/OWNER/REPOSITORY, without a password.",
        },
        "ml_model_flavor": _choice(Flavor, "ML framework; told by the repository where it is absent."),
        "customerID": _text("Kept for FLOps."),
        "verbose": {"type": ["boolean", "null"]},
        "supported_platforms": {
            "type": ["array", "null"],
            "minItems": 1,
            "maxItems": 100,
            "items": {"enum": [one.value for one in Platform]},
            "description": "linux/amd64 where it is absent.",
        },
        "training_configuration": {
            "type": ["object", "null"],
            "properties": {
                "mode": {"enum": ["classic", "hierarchical", None]},
                "data_tags": _texts("Data that learners train on."),
                **{
                    name: _count(1)
                    for name in (
                        "training_cycles",
                        "training_rounds",
                        "min_available_clients",
                        "min_fit_clients",
                        "min_evaluate_clients",
                    )
                },
            },
        },
        "post_training_steps": _texts("Kept, and not acted on."),
        "resource_constraints": {
            "type": ["object", "null"],
            "properties": {name: _count(0, 1_000_000_000) for name in ("memory", "vcpus", "storage")},
        },
        "use_devel_base_images": {"type": ["boolean", "null"], "description": "Ignored."},
        "ml_repo_ref": _text("Branch, tag or commit; the default branch where it is absent."),
        "ml_repo_subdir": _text("Directory of the ML repository inside the Git repository."),
        "python": _text("For example 3.11.", pattern=r"^(3\.[0-9]{1,2}(\.[0-9]{1,2})?)?$"),
        "policy": _choice(Policy, "fix: repair and report; strict: repair nothing."),
        "accelerator": _choice(Accelerator, "Which builds of a framework are wanted."),
        "compression": _choice(Compression, "gzip: quick to build; zstd: smaller, for newer runtimes."),
        "base_image": _text("A base image that the operator lists, HOST/NAME:TAG, instead of Debian packages."),
        "groups": _texts("Groups of pyproject.toml that are needed too."),
        "git_credential": _text("A name of the operator's FLOPS_GIT_CREDENTIALS; for its host only."),
        "registry_credential": _text("A name of the operator's FLOPS_REGISTRY_CREDENTIALS; for its host only."),
    },
}

_EVENT: Schema = {
    "id": {
        "type": "string",
        "pattern": "^[A-Za-z0-9-]{8,64}$",
        "description": "UUIDv7 (RFC 9562): an event that comes twice is kept once.",
    },
    "time": {
        "type": "string",
        "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$",
        "description": "RFC 3339, UTC.",
    },
    "stage": {"enum": list(STAGES)},
    "platform": {"type": ["string", "null"], "maxLength": 100},
    "message": {"type": ["string", "null"], "maxLength": TEXT_LIMIT},
    "code": {"type": ["string", "null"], "maxLength": 100},
    "hint": {"type": ["string", "null"], "maxLength": TEXT_LIMIT},
}
_ERROR: Schema = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "string", "maxLength": 100},
        "message": {"type": "string", "maxLength": TEXT_LIMIT},
        "hint": {"type": "string", "maxLength": TEXT_LIMIT},
        "findings": {"type": "array", "maxItems": 1000, "items": {"type": "object"}},
    },
}
_IMAGE: Schema = {
    "type": "object",
    "required": ["platforms"],
    "properties": {"platforms": {"type": "object", "additionalProperties": {"type": "object"}}},
}
_PROGRESS: Schema = {
    "type": "object",
    "properties": {
        "done": {"type": "number"},
        "total": {"type": ["number", "null"]},
        "unit": {"type": "string", "maxLength": 20},
    },
    "additionalProperties": False,
}
_RESULT: Schema = {
    "type": "object",
    "required": ["images"],
    "properties": {"images": {"type": "object", "additionalProperties": _IMAGE}},
}


def _event(kinds: tuple[str, ...], data: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["id", "time", "stage", "kind", *(["data"] if data.get("required") else [])],
        "properties": {**_EVENT, "kind": {"enum": list(kinds)}, "data": data},
    }


EVENTS: Schema = {
    "title": "Events",
    "type": "object",
    "required": ["events"],
    "properties": {
        "events": {
            "type": "array",
            "maxItems": EVENTS_LIMIT,
            "items": {
                "anyOf": [
                    _event(("started", "finished", "adjusted", "finding", "warning"), {"type": "object"}),
                    _event(("progress",), _PROGRESS),
                    _event(("failed",), {"type": "object", "required": ["error"], "properties": {"error": _ERROR}}),
                    _event(
                        ("succeeded",), {"type": "object", "required": ["result"], "properties": {"result": _RESULT}}
                    ),
                ]
            },
        }
    },
}

#: One server-sent event (HTML, 9.2).
STREAM: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "The event's sequence; progress has none."},
        "event": {"type": "string", "description": "The event's kind."},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "The event."},
        "retry": {"type": "integer"},
    },
}
