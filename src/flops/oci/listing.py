"""Lists that a registry gives in pages: tags, repositories, referrers (distribution specification 1.1)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flops.errors import BadTarget, RegistryAuth, RegistryRefused
from flops.oci.authentication import pulling
from flops.oci.reference import is_tag, repository_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import httpx

    from flops.oci.transport import Session

#: A registry that sends pages of its own size is asked this often at most.
_PAGES = 10_000
_CATALOG = ("registry:catalog:*",)
_NOT_FOUND = 404


def tags(session: Session, repository: str) -> tuple[str, ...]:
    """All tags, in the registry's order; none where there is no such repository."""
    found: list[str] = []
    for answer in pages(session, f"/v2/{repository}/tags/list?n=1000", expect={200, 404}, scope=pulling(repository)):
        found += [name for name in _names(answer, "tags") if is_tag(name)]
    return tuple(dict.fromkeys(found))


def catalog(session: Session) -> tuple[str, ...]:
    """All repositories, in the registry's order."""
    found: list[str] = []
    try:
        for answer in pages(session, "/v2/_catalog?n=1000", expect={200}, scope=_CATALOG):
            found += [name for name in _names(answer, "repositories") if _is_repository(name)]
    except (RegistryAuth, RegistryRefused) as error:
        hint = "name the repository, or ask for a registry and account that may list them"
        raise type(error)(
            f"{session.registry.host} does not list its repositories: {error.message}", hint=hint
        ) from error
    return tuple(dict.fromkeys(found))


def pages(
    session: Session,
    path: str,
    *,
    expect: Collection[int],
    scope: tuple[str, ...],
    headers: Mapping[str, str] | None = None,
) -> Iterator[httpx.Response]:
    """Answer after answer, by the Link to the next one; ends where one repeats, or at an answer that is no list."""
    url: str | httpx.URL = path
    seen: set[str] = set()
    for _ in range(_PAGES):
        answer = session.request("GET", url, expect=expect, scope=scope, headers=headers)
        yield answer
        onward = answer.links.get("next", {}).get("url") if answer.is_success else None
        if not onward or onward in seen:
            return
        seen.add(onward)
        url = session.resolve(answer, onward)


def _names(answer: httpx.Response, key: str) -> list[str]:
    if answer.status_code == _NOT_FOUND:
        return []
    try:
        names: Any = json.loads(answer.content)[key] or []
        return [name for name in names if isinstance(name, str)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RegistryRefused(f"the registry's list of {key} can't be read") from error


def _is_repository(name: str) -> bool:
    try:
        return bool(repository_name(name))
    except BadTarget:
        return False
