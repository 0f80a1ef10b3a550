"""Words of the OpenAPI document that several routes share."""

from __future__ import annotations

import inspect
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import Security, params
from fastapi.security import HTTPBearer

from flops.manager.documents import ErrorDocument

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
